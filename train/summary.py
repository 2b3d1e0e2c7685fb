"""summary.json: the outcome of a run in one file, for the ledger and for people. Rewritten at every checkpoint."""

import importlib.metadata
import platform
import subprocess
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from data_prep.manifest import Manifest
from train.config import TrainConfig
from train.metrics import DeviceSeconds, Metrics
from train.plan import Plan
from train.run_folder import config_sha256

SCHEMA_VERSION = 1
_STEPS_AVERAGED = 20  # a single step's loss is noise; so is its speed


class Status(StrEnum):
    running = "running"
    finished = "finished"
    diverged = "diverged"
    failed = "failed"
    preempted = "preempted"


def summarize(
    config: TrainConfig,
    plan: Plan,
    manifest: Manifest,
    metrics: Metrics,
    spent: DeviceSeconds,
    *,
    step: int,
    status: Status,
    restarts: int,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The fields of summary.json, schema version 1. Totals count from the first start of the run, over all restarts."""
    tokens_seen = step * plan.tokens_per_step
    train_tokens = manifest.tokens("train")
    usd = config.cluster.usd_per_device_hour
    return {
        "schema_version": SCHEMA_VERSION,
        "run_name": config.run.name,
        "status": str(status),
        "step": step,
        "total_steps": plan.total_steps,
        "model": asdict(config.model),
        "n_params": plan.n_params,
        "n_params_matmul": plan.n_params_matmul,
        "n_params_non_embedding": plan.n_params_non_embedding,
        "seq_len": config.data.seq_len,
        "global_batch_size": config.batch.global_batch_size,
        "tokens_seen": tokens_seen,
        "unique_tokens": min(tokens_seen, train_tokens),
        "epochs": tokens_seen / train_tokens,
        "flops_full": plan.flops_full_per_token * tokens_seen,
        "flops_causal": plan.flops_causal_per_token * tokens_seen,
        "device": plan.machine.device,
        "n_devices": plan.machine.n_devices,
        "device_hours": spent.hours(),
        "cost_usd": None if usd is None else usd * spent.total / 3600,
        "price": plan.price,
        "train_loss": metrics.mean_of_last_steps("loss", _STEPS_AVERAGED),
        "val_loss": metrics.last("val_loss"),
        "val_loss_stderr": metrics.last("val_loss_stderr"),
        "bits_per_byte": metrics.last("bits_per_byte"),
        "baselines": baselines(config, manifest),
        "tokens_per_second": metrics.mean_of_last_steps("tokens_per_second", _STEPS_AVERAGED),
        "mfu": metrics.mean_of_last_steps("mfu", _STEPS_AVERAGED),
        "schedule_finished": step == plan.total_steps,
        "seed": config.run.seed,
        "data": {"manifest_sha256": manifest.sha256, "tokenizer_sha256": manifest.tokenizer_sha256},
        "config_sha256": config_sha256(config),
        **provenance,
        "restarts": restarts,
    }


def baselines(config: TrainConfig, manifest: Manifest) -> dict[str, float]:
    """What the loss is to be compared with, in bits per byte of the validation text."""
    import math

    tokens_per_byte = manifest.tokens("val") / manifest.text_bytes("val")
    return {
        "uniform_loss": math.log(config.model.vocab_size),
        "uniform_bits_per_byte": math.log2(config.model.vocab_size) * tokens_per_byte,
        **manifest.baselines,
    }


def provenance() -> dict[str, Any]:
    """Which code runs here: to be asked once, at the start, for the checkout may change while a run goes on."""
    return {"git": _git(), "versions": _versions()}


def _versions() -> dict[str, str]:
    names = ("torch", "deepspeed", "sentencepiece", "hydra-core", "safetensors", "numpy", "tensorboard")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _git() -> dict[str, Any]:
    """The commit of the project's own checkout, and whether files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return {"commit": commit, "dirty": None if commit is None else bool(ask("status", "--porcelain"))}

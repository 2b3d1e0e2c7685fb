"""summary.json: the outcome of a run in one file, for the ledger and for people. Rewritten at every checkpoint."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from train.account import Flops
from train.effective import device_time_ratio, effective_time_ratio
from train.history import first_start
from train.metrics import DeviceSeconds, Metrics
from train.plan import Plan
from train.run_folder import config_sha256
from train.setup import Setup
from train.stream import shards_of

SCHEMA_VERSION = 1
_STEPS_AVERAGED = 20  # a single step's loss is noise; so is its speed


class Status(StrEnum):
    running = "running"
    finished = "finished"
    diverged = "diverged"
    failed = "failed"
    preempted = "preempted"


def summarize(
    setup: Setup,
    plan: Plan,
    metrics: Metrics,
    spent: DeviceSeconds,
    flops: Flops,
    *,
    step: int,
    status: Status,
    restarts: int,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The fields of summary.json, schema version 1. Totals count from the first start of the run, over all restarts.

    flops: of the steps learnt from, each once. What was left out, computed a second time or thrown away by a kill does
    not count; the time that it took does, in device_hours.
    """
    config, manifest, branch = setup.config, setup.manifest, setup.branch
    own_seconds = metrics.step_seconds(branch.step if branch else 0)
    tokens_seen = setup.batch.tokens_seen(step)
    sources = _sources(setup, step)
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
        "unique_tokens": sum(source["unique_tokens"] for source in sources.values()),
        "epochs": tokens_seen / setup.train_tokens,
        "sources": sources,
        "flops_full": flops.full,
        "flops_causal": flops.causal,
        "device": plan.machine.device,
        "n_devices": plan.machine.n_devices,
        "device_hours": spent.hours(),
        "device_time_ratio": device_time_ratio(spent.train, spent.total),
        "effective_time_ratio": effective_time_ratio(own_seconds, first_start(setup.folder.path), time.time()),
        "cost_usd": None if usd is None else usd * spent.total / 3600,
        "price": plan.price,
        "train_loss": metrics.mean_of_last_steps("loss", _STEPS_AVERAGED),
        "val_loss": metrics.last("val_loss"),
        "val_loss_stderr": metrics.last("val_loss_stderr"),
        "bits_per_byte": metrics.last("bits_per_byte"),
        "baselines": baselines(setup),
        "tokens_per_second": metrics.mean_of_last_steps("tokens_per_second", _STEPS_AVERAGED),
        "mfu": metrics.mean_of_last_steps("mfu", _STEPS_AVERAGED),
        "schedule_finished": step == plan.total_steps,
        "seed": config.run.seed,
        "labels": dict(config.run.labels),
        "branch": branch and branch.summary(),
        "data": {
            "manifest_sha256": manifest.sha256 if len(setup.corpora) == 1 else None,
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "validation_sha256": validation_sha256(setup),
            "phases": len(setup.phases),
        },
        "config_sha256": config_sha256(config),
        **provenance,
        "restarts": restarts,
    }


def validation_sha256(setup: Setup) -> str:
    """Of what val_loss is measured on: losses of runs that differ in it are no points of one curve."""
    data = setup.config.data
    shards = [
        shard.bin_sha256
        for corpus in setup.corpora
        for shard in shards_of(corpus.manifest, "val", corpus.config.source)
    ]
    asked = [data.seq_len, setup.config.evaluation.max_sequences, data.mask_documents, *shards]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _sources(setup: Setup, step: int) -> dict[str, Any]:
    """What the run has had of each source by name, those of earlier phases too."""
    found: dict[str, Any] = {}
    for i, (source, used) in enumerate(zip(setup.phase.sources, setup.phase.consumed_at(step), strict=True)):
        epochs = source.order(setup.config.run.seed).epochs(used)
        name = source.name if source.name not in found else f"{source.name}-{i}"
        found[name] = {
            "digest": source.digest,
            "tokens": source.tokens,
            "tokens_seen": used,
            "unique_tokens": min(used, source.unique_tokens),
            "epochs": epochs,
        }
    return found


def baselines(setup: Setup) -> dict[str, float]:
    """What the loss is to be compared with, in bits per byte of the validation text."""
    import math

    config, manifest = setup.config, setup.manifest
    text_bytes = sum(corpus.text_bytes("val") for corpus in setup.corpora)
    tokens_per_byte = sum(corpus.tokens("val") for corpus in setup.corpora) / text_bytes
    return {
        "uniform_loss": math.log(config.model.vocab_size),
        "uniform_bits_per_byte": math.log2(config.model.vocab_size) * tokens_per_byte,
        **(manifest.baselines if len(setup.corpora) == 1 else {}),
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

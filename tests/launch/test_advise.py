"""`launch advise`: what to train for a budget, against a surface whose law is known, over real shapes."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.app import App
from conf.compose import compose
from conf.errors import ConfigError
from launch.advise import advise, command_words
from launch.advise_config import AdviseConfig
from launch.advise_law import Candidates, Supply, best, regret, to_reach
from launch.advise_made import Advice, advice
from launch.scaling.law import Law
from launch.scaling.repeated import Repeated
from model.arithmetic import count_parameters, flops_per_token
from model.config import ModelConfig
from tests.launch.scaling.surfaces import ledger
from train.__main__ import APP as TRAIN
from train.optimizer_config import OPTIONS

APP = App("launch_advise", AdviseConfig, OPTIONS)
TRUE = Law(E=1.2, A=79.0, B=200.0, alpha=0.35, beta=0.33)
SEQ = 128
BASE = (
    "run.name=advised",
    "model={vocab_size: 512, n_layers: 2, d_model: 64, n_heads: 4, n_kv_heads: 4, d_ff: 192}",
    f"data={{folder: data/none, seq_len: {SEQ}}}",
    "batch={global_batch_size: 8, micro_batch_size: 4}",
    "cluster={device: cpu, peak_flops_per_second: 1.0e+12, expected_mfu: 0.5, memory_gib: 8}",
    "fit.resamples=60",
)
PRICE = ("cluster.usd_per_device_hour=2", "cluster.price_rule=rented", "cluster.price_date=2026-11-01")
SHAPES = ((32, 2), (64, 3), (96, 4), (128, 5), (192, 6), (256, 7))


def network(width: int, layers: int, heads_of: int = 16) -> ModelConfig:
    heads = width // heads_of
    return ModelConfig(
        vocab_size=512, n_layers=layers, d_model=width, n_heads=heads, n_kv_heads=heads, d_ff=3 * width
    )  # fmt: skip


def a_run(model: ModelConfig, tokens: int, loss: float, **changed: Any) -> dict[str, Any]:
    """As `summary.json` has it."""
    counts, (full, causal) = count_parameters(model), flops_per_token(model, SEQ)
    return {
        "schema_version": 1,
        "run_name": f"w{model.d_model}-{tokens}",
        "status": "finished",
        "model": {"d_model": model.d_model, "n_layers": model.n_layers, "vocab_size": 512},
        "n_params": counts.n_params,
        "n_params_matmul": counts.n_params_matmul,
        "n_params_non_embedding": counts.n_params_non_embedding,
        "seq_len": SEQ,
        "tokens_seen": tokens,
        "unique_tokens": tokens,
        "flops_full": full * tokens,
        "flops_causal": causal * tokens,
        "val_loss": loss,
        "bits_per_byte": loss / 3,
        "schedule_finished": True,
        "seed": 1,
        "data": {"tokenizer_sha256": "t" * 64, "validation_sha256": "v" * 64},
    } | changed


def sweep(noise: float = 0.004, seed: int = 3) -> list[dict[str, Any]]:
    """36 runs of six shapes on the known surface."""
    rng, made = np.random.default_rng(seed), []
    for width, layers in SHAPES:
        model = network(width, layers)
        n = float(count_parameters(model).n_params_matmul)
        for tokens in (2**20, 2**21, 2**22, 2**23, 2**24, 2**25):
            loss = float(TRUE.loss(n, float(tokens))) * math.exp(noise * rng.standard_normal())
            made.append(a_run(model, tokens, loss))
    return made


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger(tmp_path_factory.mktemp("advise") / "ledger.jsonl", sweep())


def asked(rows: Path, *words: str) -> Advice:
    return advice(compose(APP, [*BASE, f"ledger={rows}", *words]))

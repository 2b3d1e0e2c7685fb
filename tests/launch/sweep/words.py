"""A sweep of tiny cells, as words of a command line."""

from typing import Any

from conf.compose import App, compose
from launch.sweep.config import CELL, SweepConfig
from train.optimizer_config import OPTIONS

APP = App("launch_sweep", SweepConfig, OPTIONS)
MODEL = "model={vocab_size: 512, n_layers: 2, d_model: 32, n_heads: 4, n_kv_heads: 2, d_ff: 64}"
TINY = (
    MODEL,
    "data={folder: data/tiny, seq_len: 32}",
    "batch={global_batch_size: 8, micro_batch_size: 4}",
    "schedule={warmup_tokens: 512}",
    "evaluation={every_steps: 1000, max_sequences: 5}",
    "checkpoint.every_steps=1000",
    "sample.n_tokens=8",
    "cluster={device: cpu, peak_flops_per_second: 1.0e+11}",
    "sweep={name: tiny, steps_at_least: 5}",
    "sweep.shapes=[{d_model: 16, n_layers: 1}, {d_model: 32, n_layers: 2}]",
    "sweep.tokens=[2560, 5120]",
)
"""two sizes, 10 and 20 steps of 256 tokens"""


def sweep_of(*words: str) -> Any:
    return compose(APP, [f"run.name={CELL}", *TINY, *words])

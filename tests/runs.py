"""Tiny real runs for tests: in a forked process where only the outcome counts, as a command where the process
itself does.
"""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from tests.distributed.ranks import run_ranks
from train.__main__ import APP
from train.config import TrainConfig

TINY = (
    "total_tokens=12_800",
    "data={folder: data/tiny, seq_len: 32}",
    "batch={global_batch_size: 8, micro_batch_size: 4}",
    "model={vocab_size: 512, n_layers: 2, d_model: 32, n_heads: 4, n_kv_heads: 2, d_ff: 64}",
    "schedule={warmup_tokens: 2560}",
    "evaluation={every_steps: 20, max_sequences: 5}",
    "checkpoint.every_steps=10",
    "sample.n_tokens=8",
    "cluster={device: cpu, peak_flops_per_second: 1.0e+11}",
)
"""50 steps of 256 tokens"""
STEPS = 50


def outcome(folder: Path, *overrides: str, ranks: int = 1) -> tuple[int, str]:
    """(exit code, message) of `python -m train` with these overrides, in a forked process whose directory is
    `folder`.
    """
    try:
        config = tiny(*overrides)
    except ConfigError as error:
        return error.exit_code, str(error)
    return run_ranks(forked, ranks, str(folder), config)[0]


@functools.cache
def tiny(*overrides: str) -> TrainConfig:
    """Composed here and once, since that takes a process that is new to it about a second."""
    return compose(APP, [*TINY, *overrides])


def forked(folder: str, config: TrainConfig, largest_file_bytes: int | None = None) -> tuple[int, str]:
    """What `outcome` runs in each rank; optionally as on a disk that has room for small files only."""
    import contextlib
    import io
    import resource

    from train.__main__ import run

    if largest_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            return run(config), printed.getvalue()
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                raise
            return code, printed.getvalue() + str(error)


def train(folder: Path, *overrides: str, **options: Any) -> "subprocess.Popen[str]":
    """A tiny run as a command."""
    return start(folder, *TINY, *overrides, module="train", **options)


def start(folder: Path, *words: str, module: str, **options: Any) -> "subprocess.Popen[str]":
    """`python -m module words…` in `folder`, as a person types it."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", module, *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that `finish` can end what the command has started
        **options,
    )


def finish(process: "subprocess.Popen[str]", timeout_seconds: float = 120) -> tuple[int, str]:
    """(exit code, everything printed). A command that hangs is ended with all its children, and fails the test."""
    try:
        printed, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{process.args} hung; it had printed:\n{process.communicate()[0]}")
    return process.returncode, printed


def cpu_seconds_of_commands() -> float:
    """CPU seconds that ended child processes have used: what a command costs, whatever else the machine does."""
    times = os.times()
    return times.children_user + times.children_system


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step_row(step: int, **facts: Any) -> dict[str, Any]:
    """As a run writes it for a step that it learnt from."""
    numbers = dict.fromkeys(("loss", "grad_norm", "lr", "seconds", "tokens_per_second", "mfu"), 1.0)
    of_data = {"n_targets": 8, "batch_hash": "0" * 16, "source_tokens": {"text": 8 * step}}
    return {"step": step, "tokens_seen": 8 * step, **numbers, **of_data, **facts}


def curve(run: Path) -> list[tuple[Any, ...]]:
    """What must not change by a kill: step, loss, norm, rate, and the validation figures, to the last bit."""
    names = ("step", "tokens_seen", "loss", "grad_norm", "lr", "val_loss", "val_loss_stderr", "bits_per_byte")
    return [tuple(row.get(name) for name in names) for row in rows(run)]

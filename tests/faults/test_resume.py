"""Exact resume: a run that is stopped or killed anywhere, any number of times, is the run that never was."""

import hashlib
import json
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Fault, Job
from tests.runs import curve, outcome, rows

# 9 steps: warm-up to 3, epoch borders after 4.46 and 8.9, evaluations at 4, 8, 9, decay from 8 on
SHORT = (
    "data.seq_len=64",
    "batch={global_batch_size: 96, micro_batch_size: 48}",
    "total_tokens=55_296",
    "schedule=wsd",
    "schedule.warmup_tokens=18_432",
    "evaluation={every_steps: 4, max_sequences: 4}",
    "checkpoint.every_steps=3",
    "run.max_idle_starts=100",
)
STEPS = 9


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return f"parallel.precision={request.param}"


@pytest.fixture(scope="module")
def undisturbed(workplace: Path, precision: str) -> Path:
    name = f"undisturbed-resume-{precision[-4:]}"
    code, message = outcome(workplace, *SHORT, precision, f"run.name={name}")
    assert code == 0, message
    return workplace / "runs" / name


def tensor_hashes(run: Path) -> dict[str, Any]:
    """Of weights, masters and moments after the last step."""
    return json.loads((run / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json").read_text())["tensor_hashes"]


def assert_same(run: Path, undisturbed: Path) -> None:
    assert curve(run) == curve(undisturbed)
    assert [row.get("batch_hash") for row in rows(run)] == [row.get("batch_hash") for row in rows(undisturbed)]
    assert tensor_hashes(run) == tensor_hashes(undisturbed)


def test_a_run_that_is_stopped_after_every_step_is_the_same_to_the_last_bit(
    here: Path, undisturbed: Path, precision: str
):
    """F8: nine times in succession (five in bf16); in warm-up and decay, at evaluations, across the borders of two
    epochs."""
    for step in range(1, STEPS + 1, 2 if "bf16" in precision else 1):
        code, message = outcome(here, *SHORT, precision, "run.name=a", f"run.stop_at_step={step}")
        assert code == 0, message
    summary = json.loads((here / "runs" / "a" / "summary.json").read_text())
    assert summary["epochs"] > 2, "the run is to cross borders of epochs"
    assert_same(here / "runs" / "a", undisturbed)


DEATHS = {  # instants inside a save: tests/faults/test_saves.py
    "before an evaluation": ("train.session", "Session.evaluate", 2, False),
    "after an evaluation": ("train.session", "Session.evaluate", 2, True),
    "while a save runs": ("train.session", "Session.save", 2, True),
}


def dies_in(module: str, name: str, call: int, after: bool, rank: int) -> None:
    """A fault: kill -9 before or after the n-th call of a function."""
    import importlib

    *owners, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    right, calls = getattr(owner, last), [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), 9)
        result = right(*arguments, **named)
        if calls[0] == call:
            os.kill(os.getpid(), 9)
        return result

    setattr(owner, last, wrapped)


def run(here: Path, *words: str, fault: Fault | None = None, ranks: int = 1) -> tuple[list[int], str]:
    job = Job(here, *SHORT, "run.name=a", *words, ranks=ranks, fault=fault)
    codes = job.end()
    return codes, job.printed()


@pytest.mark.parametrize("precision", ["fp32"], indirect=True)
@pytest.mark.parametrize("where", DEATHS)
def test_a_kill_at_an_evaluation_or_in_a_save_changes_nothing(
    here: Path, undisturbed: Path, precision: str, where: str
):
    """F1, F2"""
    codes, _ = run(here, precision, fault=partial(dies_in, *DEATHS[where]))
    assert codes == [-9]
    codes, printed = run(here, precision)
    assert codes == [0], printed
    assert "resumed at step" in printed
    assert_same(here / "runs" / "a", undisturbed)


def random_states() -> str:
    """Of all generators that a step could draw from."""
    import random

    import numpy as np
    import torch

    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().tobytes())
    return hashlib.sha256(pickle.dumps(states)).hexdigest()


def notes_random_states(rank: int) -> None:
    """A fault that hurts nothing: the states after every step."""
    from train.metrics import Metrics

    step = Metrics.step

    def noting(self: Metrics, *facts: Any) -> None:
        step(self, *facts)
        with Path("states").open("a") as stream:
            stream.write(random_states() + "\n")

    Metrics.step = noting  # type: ignore[method-assign]


def test_nothing_in_a_step_is_random_so_no_random_state_need_be_saved(here: Path):
    """F1: neither steps, nor evaluations, nor saves draw from a generator of Python, numpy or torch."""
    codes, printed = run(here, fault=notes_random_states)
    assert codes == [0], printed
    states = (here / "states").read_text().splitlines()
    assert (len(states), len(set(states))) == (STEPS, 1)


def test_on_other_layouts_the_data_are_the_same_and_losses_differ_by_rounding(here: Path, workplace: Path):
    """F17: 2, 1, 4, 3 ranks, another ZeRO stage and micro-batch at each."""
    words = ("batch.global_batch_size=12", "total_tokens=9_216", "schedule.warmup_tokens=3_072", "schedule=wsd")
    code, message = outcome(here, *SHORT, *words, "batch.micro_batch_size=12", "run.name=whole")
    assert code == 0, message
    layouts = [(2, 1, 3, 3), (1, 2, 6, 6), (4, 3, 1, 9), (3, 2, 4, 12)]
    for ranks, stage, micro, stop in layouts:
        codes, printed = run(
            here,
            *words,
            f"parallel.zero_stage={stage}",
            f"batch.micro_batch_size={micro}",
            f"run.stop_at_step={stop}",
            ranks=ranks,
        )
        assert codes == [0] * ranks, printed
    ours, theirs = ([row for row in rows(here / "runs" / name) if "loss" in row] for name in ("a", "whole"))
    assert [row["batch_hash"] for row in ours] == [row["batch_hash"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-6)

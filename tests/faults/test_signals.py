"""Runs that are told to stop, at the worst moments: each start ends with 143 and what it has done, and the run as a
whole has the curve of one that was never told anything.
"""

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Fault, Job
from tests.runs import curve

SHORT = ("total_tokens=6144", "evaluation.every_steps=8", "checkpoint.every_steps=6")
STEPS = 24
TERM, USR1, USR2 = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> list[tuple[Any, ...]]:
    codes = Job(workplace, *SHORT, "run.name=unsignalled").end()
    assert codes == [0, 0]
    return curve(workplace / "runs" / "unsignalled")


def newest(run: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=0)


def starts(run: Path) -> int:
    return (run / "events.jsonl").read_text().count('"event": "started"')


# --- where a signal strikes: each is called in a rank before its run -------------------------------------------------


def during(owner: Any, name: str, action: Callable[[], None]) -> None:
    """`action` whenever `owner.name` is called, before it does its work."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def changed(*arguments: Any, **options: Any) -> Any:
        action()
        return real(*arguments, **options)

    setattr(owner, name, changed)


class At:
    """Knows at which step the run is: the one whose batch was asked for last."""

    def __init__(self) -> None:
        from train.data import TrainBatches

        self.step = 0
        real = TrainBatches.micro_batches

        def micro_batches(batches: TrainBatches, step: int) -> Any:
            self.step = step + 1
            return real(batches, step)

        setattr(TrainBatches, "micro_batches", micro_batches)  # noqa: B010


def told(place: str, step: int, ranks: tuple[int, ...], numbers: tuple[signal.Signals, ...], rank: int) -> None:
    """These ranks get these signals one after another, once, in the midst of this."""
    at, sent = At(), []

    def tell() -> None:
        if rank in ranks and at.step >= step and not sent:
            sent.append(rank)
            for number in numbers:
                os.kill(os.getpid(), number)

    import deepspeed
    from deepspeed.runtime.engine import DeepSpeedEngine

    import train.setup
    from train.checkpoint.saver import Saver
    from train.data import ValidationBatches

    match place:
        case "start":
            during(train.setup, "check", tell)
        case "engine":
            during(deepspeed, "initialize", tell)
        case "step":
            during(DeepSpeedEngine, "backward", tell)
        case "evaluation":
            during(ValidationBatches, "batches", tell)
        case _:
            during(Saver, "save", tell)


def test_a_run_that_is_told_to_stop_again_and_again_has_one_curve(here: Path, undisturbed: list[tuple[Any, ...]]):
    """F8, F9: USR1, TERM and USR2, to one rank, to the other, to all, twice: at start, while the engine is made, in the
    first step, in mid-step, in an evaluation, in a save, in the last step."""
    run = here / "runs" / "told"
    strikes: list[tuple[Fault, range]] = [
        (functools.partial(told, "start", 0, (1,), (USR1,)), range(1)),
        (functools.partial(told, "engine", 0, (0,), (TERM, TERM)), range(1)),
        (functools.partial(told, "step", 1, (1,), (USR2,)), range(1, 3)),
        (functools.partial(told, "step", 4, (0, 1), (TERM, USR1, TERM, USR1)), range(4, 6)),
        (functools.partial(told, "evaluation", 8, (0,), (USR1, USR1)), range(8, 10)),
        (functools.partial(told, "save", 12, (1,), (TERM, TERM)), range(12, 14)),
    ]
    for number, (strike, saved) in enumerate(strikes):
        job = Job(here, *SHORT, "run.name=told", fault=strike)
        assert (job.end(), number) == ([143, 143], number), job.printed()
        assert newest(run) in saved, job.printed()
    job = Job(here, *SHORT, "run.name=told", fault=functools.partial(told, "step", STEPS, (0, 1), (TERM, TERM)))
    assert job.end() == [0, 0], job.printed()  # told in the last step: there is nothing left to stop
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert curve(run) == undisturbed


def slowed(rank: int) -> None:
    """Steps of a tenth of a second; a disk that takes ten seconds to confirm, once the run was told to stop."""
    from train.data import TrainBatches
    from train.stop import install

    stop = install()
    during(TrainBatches, "micro_batches", lambda: time.sleep(0.1))
    during(os, "fsync", lambda: time.sleep(10.0 if stop.code else 0.0))


def test_a_grace_time_shorter_than_the_save_costs_the_steps_since_the_last_checkpoint_and_no_more(
    here: Path, undisturbed: list[tuple[Any, ...]]
):
    """F10: SIGKILL 0.2 s after SIGTERM, while the checkpoint is being written."""
    run = here / "runs" / "cut"
    job = Job(here, *SHORT, "run.name=cut", "checkpoint.every_steps=12", fault=slowed)
    job.wait_for_step(run, 15)
    for rank in (0, 1):
        job.send(TERM, rank)
    time.sleep(0.2)
    for rank in (0, 1):
        job.kill(rank)
    assert job.end() == [-9, -9]
    assert newest(run) == 12
    job = Job(here, *SHORT, "run.name=cut")
    assert job.end() == [0, 0], job.printed()
    assert f"resumed at step 12 of {STEPS}" in job.printed()
    assert curve(run) == undisturbed


def late(step: int, rank: int) -> None:
    """On rank 0 the clock jumps by three hours in this step."""
    at, real = At(), time.monotonic
    time.monotonic = lambda: real() + (10_800 if at.step >= step and rank == 0 else 0)


def test_a_run_saves_and_leaves_when_its_time_is_nearly_up(here: Path, undisturbed: list[tuple[Any, ...]]):
    """F8: no signal at all; rank 0 looks at the time, and all ranks stop after the same step."""
    run = here / "runs" / "timed"
    job = Job(here, *SHORT, "run.name=timed", "run.time_limit_seconds=7200", fault=functools.partial(late, 9))
    assert job.end() == [143, 143], job.printed()
    assert newest(run) in (9, 10)
    assert "time limit" in job.printed()
    job = Job(here, *SHORT, "run.name=timed", "run.time_limit_seconds=7200")
    assert job.end() == [0, 0], job.printed()
    assert curve(run) == undisturbed


def test_a_time_limit_with_room_for_nothing_is_complained_of(here: Path):
    """F10: else a chain of starts would go on for ever without a word."""
    job = Job(here, *SHORT, "run.name=hasty", "run.time_limit_seconds=0.5")
    assert job.end() == [143, 143], job.printed()
    assert "run.time_limit_seconds=0.5 leaves 0 s" in job.printed()
    events = [json.loads(line) for line in (here / "runs" / "hasty" / "events.jsonl").read_text().splitlines()]
    assert "time_limit_too_short" in [event["event"] for event in events]


def late_in_the_evaluation(rank: int) -> None:
    """From the first evaluation on it is three hours later."""
    from train.data import ValidationBatches

    began: list[int] = []
    real = time.monotonic
    during(ValidationBatches, "batches", lambda: began.append(1))
    time.monotonic = lambda: real() + (10_800 if began and rank == 0 else 0)


def test_time_that_runs_out_in_an_evaluation_ends_it(here: Path):
    """F8: the first one, of which nobody knew how long it takes; what was trained is saved in time."""
    run = here / "runs" / "evaluating"
    words = ("run.name=evaluating", "run.time_limit_seconds=7200")
    job = Job(here, *SHORT, *words, fault=late_in_the_evaluation)
    assert job.end() == [143, 143], job.printed()
    assert newest(run) == 8, job.printed()
    assert "val_loss" not in (run / "metrics.jsonl").read_text()

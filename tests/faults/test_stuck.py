"""Whole runs in which one rank gets stuck, is killed, or has no memory left: what the others do, and what is told."""

import ctypes
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job
from tests.runs import curve
from train.watch import suspect

STEP, RANK, STUCK_SECONDS = 15, 1, 4


def hurt(rank: int, action: Any) -> None:
    """The fault: rank RANK does this when it is asked for the batch after STEP."""
    from train.data import TrainBatches

    original = TrainBatches.micro_batches

    def micro_batches(self: TrainBatches, step: int) -> Iterator[Any]:
        if step == STEP:
            action()
        yield from original(self, step)

    if rank == RANK:
        TrainBatches.micro_batches = micro_batches


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def loader_hangs() -> None:
    time.sleep(1000)


def hold_the_gil() -> None:
    while True:
        ctypes.PyDLL(None).sleep(1000)  # pyright: ignore[reportOptionalMemberAccess]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exhaust_memory() -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (64 << 20), in_use + (64 << 20)))
    bytearray(256 << 20)


def gives_up_while_a_save_runs(rank: int) -> None:
    """No loss of this run is a number after step STEP; the save that runs then takes longer than a step may."""
    from train.checkpoint.saver import Saver
    from train.guard import Guard
    from train.session import Session

    wait, give_up, train = Saver.wait, Session._give_up, Guard.step  # pyright: ignore[reportPrivateUsage]

    def slow_wait(self: Saver) -> Any:
        time.sleep(2 * STUCK_SECONDS)
        return wait(self)

    def slow_end(self: Session, incident: Any) -> None:
        Saver.wait = slow_wait
        give_up(self, incident)

    def judged(self: Guard, step: int, *arguments: Any, **named: Any) -> Any:
        if step == STEP + 1:
            layer: Any = self._engine.module.model.blocks[1].mlp.up  # pyright: ignore[reportPrivateUsage]
            layer.register_forward_hook(lambda layer, given, found: found * float("nan"))
        return train(self, step, *arguments, **named)

    Session._give_up = slow_end  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    Guard.step = judged  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def undisturbed(undisturbed_on_two: Path) -> list[Any]:
    return curve(undisturbed_on_two)


def hurt_run(here: Path, action: Any) -> tuple[Path, list[int], str]:
    """(folder of the first attempt, exit codes, what was printed) of a run that is hurt."""
    job = Job(here, "run.name=hurt", f"health.stuck_seconds={STUCK_SECONDS}", fault=partial(hurt, action=action))
    codes = job.end()
    [attempt] = (here / "runs" / "hurt" / "attempts").iterdir()
    return attempt, codes, job.printed()


def records(attempt: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(attempt.glob("rank-*.failure.json"))]


def goes_on(here: Path, undisturbed: list[Any]) -> bool:
    codes = Job(here, "run.name=hurt", f"health.stuck_seconds={STUCK_SECONDS}").end()
    return codes == [0, 0] and curve(here / "runs" / "hurt") == undisturbed


def test_a_frozen_rank_is_named_and_the_same_command_goes_on(here: Path, undisturbed: list[Any]):
    """F13: a rank that was stopped; the stacks of the other show the collective in which it waits."""
    attempt, codes, printed = hurt_run(here, freeze)
    assert all(codes)
    first = suspect(records(attempt))
    assert (first["rank"], first["host"], first["step"], first["kind"]) == (RANK, os.uname().nodename, STEP, "stuck")
    assert "stopped" in first["message"]
    assert first["seconds_since_progress"] < 5 * STUCK_SECONDS
    assert "torch/distributed" in (attempt / "rank-00000.stacks.txt").read_text()
    assert [record["is_echo"] for record in records(attempt)] == [True, False]
    assert f"rank {RANK} on {os.uname().nodename} after step {STEP}" in printed
    assert goes_on(here, undisturbed)


@pytest.mark.parametrize("action", [loader_hangs, hold_the_gil])
def test_a_stuck_rank_is_named_with_the_place_where_it_hangs(here: Path, action: Any):
    """F13: in the data loader, and in a call in C that holds the GIL."""
    attempt, codes, _ = hurt_run(here, action)
    assert all(codes)
    first = suspect(records(attempt))
    assert first["rank"] == RANK
    assert f"in {action.__name__}" in first["message"]
    assert f"in {action.__name__}" in (attempt / f"rank-0000{RANK}.stacks.txt").read_text()
    assert "torch/distributed" in (attempt / "rank-00000.stacks.txt").read_text()


@pytest.mark.parametrize("action", [die, exhaust_memory])
def test_a_rank_that_dies_ends_the_others_and_the_same_command_goes_on(here: Path, undisturbed: list[Any], action: Any):
    """F1, F29: killed without a word, as by the kernel when memory is short; and an allocation that is refused."""
    attempt, codes, _ = hurt_run(here, action)
    assert all(codes)
    if action is die:
        assert [(record["rank"], record["kind"]) for record in records(attempt) if not record["is_echo"]] == [
            (RANK, "died")
        ]
    assert goes_on(here, undisturbed)


def test_a_run_that_gives_up_may_wait_for_its_save(here: Path):
    """F11, F13: it ends with the code that says "do not try again", not as a rank that is stuck."""
    words = ("run.name=hurt", f"health.stuck_seconds={STUCK_SECONDS}", "health.on_nonfinite=stop")
    job = Job(here, *words, ranks=1, fault=gives_up_while_a_save_runs)
    assert job.end() == [5], job.printed()

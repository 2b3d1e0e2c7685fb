"""Dead, doubled and superseded processes: who may write a run, who is named as the cause, and what the next start
does.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job
from tests.runs import STEPS, TINY, curve, finish, start

HOST = socket.gethostname()
LOST_SECONDS = 25  # five times what the ranks that are left have to notice a dead one


def notes(run: Path, event: str) -> list[dict]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [row for row in found if row["event"] == event]


def attempts(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "attempts").iterdir())


# --- F1, F29: a rank dies


def test_a_killed_rank_is_named_and_the_same_command_gives_the_same_curve(here: Path, undisturbed_on_two: Path):
    """F1: kill -9 of one rank in mid-step; the other ends within seconds, with a code that is not 0."""
    run = here / "runs" / "killed"
    job = Job(here, "run.name=killed")
    job.wait_for_step(run, 13)
    job.kill(1)
    killed = time.monotonic()
    first, second = job.end()
    assert time.monotonic() - killed < LOST_SECONDS
    assert first != 0
    assert second == -signal.SIGKILL
    step = notes(run, "failed")[0]["step"]
    named = re.search(rf"error: rank 1 on {HOST} after step (\d+) \(train\): died", job.printed())
    assert named is not None, job.printed()
    assert abs(int(named[1]) - step) <= 1  # it may have been behind rank 0, or before
    assert job.printed().count("error: ") == 1
    assert "Traceback" not in job.printed()
    again = Job(here, "run.name=killed")
    assert again.end() == [0, 0], again.printed()
    assert curve(run) == curve(undisturbed_on_two)
    assert attempts(run) == ["0001", "0002"]
    assert [row["attempt"] for row in notes(run, "started")] == [1, 2]


def test_if_rank_0_is_killed_another_one_tells_it(here: Path):
    """F1: the rank that writes and speaks dies."""
    run = here / "runs" / "headless"
    job = Job(here, "run.name=headless")
    job.wait_for_step(run, 3)
    job.kill(0)
    assert job.end()[1] != 0
    assert f"error: rank 0 on {HOST} after step" in job.printed()
    assert job.printed().count("error: ") == 1
    again = Job(here, "run.name=headless", "run.stop_at_step=5")
    assert again.end() == [0, 0], again.printed()  # its pid is dead: nobody waits for a lease


def take_all_memory(rank: int) -> None:
    """On rank 1, from the 13th step on, nothing can be had any more."""
    from train.data import TrainBatches

    micro_batches = TrainBatches.micro_batches

    def batches_and_hunger(self: TrainBatches, step: int) -> Any:
        if step == 12 and rank == 1:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
            eaten: list[bytearray] = []
            while True:
                eaten.append(bytearray(1 << 20))
        return micro_batches(self, step)

    TrainBatches.micro_batches = batches_and_hunger


def test_a_rank_out_of_memory_is_named_and_nothing_saved_is_lost(here: Path, undisturbed_on_two: Path):
    """F29: an allocation fails on one rank."""
    run = here / "runs" / "hungry"
    job = Job(here, "run.name=hungry", fault=take_all_memory)
    assert all(job.end()), job.printed()
    assert f"error: rank 1 on {HOST} after step 12 (train): MemoryError" in job.printed()
    assert job.printed().count("MemoryError") >= 2  # and once with its trace, on the rank itself
    again = Job(here, "run.name=hungry")
    assert again.end() == [0, 0], again.printed()
    assert "resumed at step 10" in again.printed()
    assert curve(run) == curve(undisturbed_on_two)


# --- F15, F16: two at once


def test_the_second_of_two_jobs_refuses_and_the_first_goes_on_unhurt(here: Path, undisturbed_on_two: Path):
    """F16: two jobs on one run folder. The refusal names the holder, is said once, and has one code on all ranks."""
    run = here / "runs" / "one"
    (here / "second").mkdir()
    for name in ("data", "runs"):
        (here / "second" / name).symlink_to(here / name)
    (here / "runs").mkdir()
    first = Job(here, "run.name=one", fault=wait_for_the_second)
    first.wait_for_step(run, 3)
    second = Job(here / "second", "run.name=one")
    try:
        assert second.end() == [3, 3], second.printed()
    finally:
        (here / "go on").touch()
    holder = json.loads((run / "attempts" / "0001" / "holder.json").read_text())
    assert f"error: attempt 1 is that of pid {holder['pid']} on {HOST}" in second.printed()
    assert second.printed().count("another process is writing to runs/one") == 1
    assert first.end() == [0, 0], first.printed()
    assert curve(run) == curve(undisturbed_on_two)
    assert attempts(run) == ["0001"]


def wait_for_the_second(rank: int) -> None:
    """After step 5, until another start has ended, however long that takes."""
    from train.data import TrainBatches

    micro_batches = TrainBatches.micro_batches

    def patiently(self: TrainBatches, step: int) -> Any:
        while step >= 5 and not Path("go on").exists():
            time.sleep(0.02)
        return micro_batches(self, step)

    TrainBatches.micro_batches = patiently


def take_time(rank: int) -> None:
    """So that it is still under way when it is frozen."""
    from train.data import TrainBatches

    micro_batches = TrainBatches.micro_batches

    def slowly(self: TrainBatches, step: int) -> Any:
        time.sleep(0.1)
        return micro_batches(self, step)

    TrainBatches.micro_batches = slowly


def elsewhere(rank: int) -> None:
    """As if this were another machine."""
    from train import claim

    here = claim.identity
    claim.identity = lambda: replace(here(), host="elsewhere", boot_id="another")


def tree_of(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for child in (task / "children").read_text().split():
                found += tree_of(int(child))
    return found


def contents(run: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file but those of the first attempt's own folder."""
    files = [path for path in run.rglob("*") if path.is_file() and path.parent != run / "attempts" / "0001"]
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def test_a_rank_that_comes_back_after_its_run_went_on_elsewhere_writes_nothing(here: Path):
    """F15: a machine that stood still for longer than the lease. What it would write now is another attempt's."""
    run = here / "runs" / "stale"
    words = ("run.name=stale", "run.lease_seconds=5")
    job = Job(here, *words, "checkpoint.every_steps=20", ranks=1, fault=take_time)
    job.wait_for_step(run, 5)
    frozen = tree_of(job.processes[0].pid)  # and its watchdog, as if the machine had stopped
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    second = Job(here, *words, ranks=1, fault=elsewhere)
    try:
        assert second.end() == [0], second.printed()
        before = contents(run)
        assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert job.end()[0] in (4, -signal.SIGKILL), job.printed()
    assert contents(run) == before
    assert len([row for row in curve(run) if row[2] is not None]) == STEPS
    assert {row["attempt"] for row in notes(run, "saved")} == {2}


# --- exit 6


def fail_at_start(rank: int) -> None:
    from train import session

    def assemble(*anything: object) -> None:
        raise OSError("no kernel for this device")

    session.assemble = assemble


def test_starts_in_vain_end_by_themselves_and_one_more_can_be_allowed(here: Path):
    """F1, F29: whatever ends every start before a new step, starting again stops: exit 6 on all ranks, naming it."""
    run, words = here / "runs" / "vain", ("run.name=vain", "run.max_idle_starts=2", "run.stop_at_step=2")
    for _ in range(2):
        assert Job(here, *words, fault=fail_at_start).end() == [1, 1]
    for _ in range(2):
        job = Job(here, *words)
        assert job.end() == [6, 6], job.printed()
        assert re.search(rf"attempt 2: rank [01] on {HOST} after step 0 \(start\): OSError: no kernel", job.printed())
        assert job.printed().count("run.max_idle_starts=3") == 1
    assert attempts(run) == ["0001", "0002"]  # a refusal takes no number
    allowed = Job(here, "run.name=vain", "run.max_idle_starts=3", "run.stop_at_step=2")
    assert allowed.end() == [0, 0], allowed.printed()
    assert Job(here, "run.name=vain", "run.max_idle_starts=1", "run.stop_at_step=3").end() == [0, 0]


# --- torchrun


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_rank_was_killed(here: Path, undisturbed_on_two: Path):
    """F1: with --max-restarts nobody is needed between the kill and the next step, and the exit code is 0."""
    words = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "-m", "tests.faults.dies_once")
    code, printed = finish(start(here, *words, *TINY, "run.name=again", module="torch.distributed.run"), 300)
    assert code == 0, printed
    assert (here / "died").exists()
    assert f"rank 1 on {HOST} after step 12" in printed
    assert "resumed at step 10" in printed
    run = here / "runs" / "again"
    assert attempts(run) == ["0001", "0002"]
    assert curve(run) == curve(undisturbed_on_two)

"""Who may take over a run, and what the others are told."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import HeldError, publish_json
from train.attempt import (
    Attempt,
    Identity,
    Standing,
    has_saved,
    is_running,
    next_number,
    open_attempt,
    reached_before,
    refuse_idle,
    standing,
)
from train.errors import FencedError, NoProgressError
from train.failure import first_failure
from train.parallel import identity

ME = Identity(host="n1", boot_id="b1", pid_namespace="pid:[1]", pid=17, pid_started=100)
IN_JOB = replace(ME, slurm_job="c/55", slurm_restarts=1, torchrun="t@n1:2", torchrun_restarts=1)
ELSEWHERE = {"host": "n2", "boot_id": "b2", "pid": 99}


@pytest.mark.parametrize(
    ("holder", "me", "has_ended", "runs", "expected"),
    [
        (replace(ME, pid=18), ME, True, True, "free"),
        (None, ME, True, False, "free"),
        (None, ME, False, False, "unknown"),
        # on the same machine the number of the process tells
        (replace(ME, pid=18), ME, False, True, "held"),
        (replace(ME, pid=18), ME, False, False, "free"),
        (replace(ME, pid=18, boot_id="b0"), ME, False, False, "unknown"),
        (replace(ME, pid=18, pid_namespace="pid:[2]"), ME, False, False, "unknown"),
        (replace(ME, pid=18, host="n2"), ME, False, False, "unknown"),
        # a job that was started again replaces itself, even while the old process lives
        (replace(IN_JOB, slurm_restarts=0), IN_JOB, False, True, "free"),
        (replace(IN_JOB, slurm_restarts=0, **ELSEWHERE), IN_JOB, False, True, "free"),
        (replace(IN_JOB, torchrun_restarts=0, **ELSEWHERE), IN_JOB, False, True, "free"),
        # two commands of one session have equal counts
        (replace(IN_JOB, pid=18), IN_JOB, False, True, "held"),
        (replace(IN_JOB, **ELSEWHERE), IN_JOB, False, True, "unknown"),
        (replace(IN_JOB, slurm_restarts=2, pid=18), IN_JOB, False, True, "held"),
        (replace(IN_JOB, slurm_job="other/55", torchrun=None, slurm_restarts=0, pid=18), IN_JOB, False, True, "held"),
        (replace(IN_JOB, slurm_job=None, torchrun="t@n9:2", torchrun_restarts=0, pid=18), IN_JOB, False, True, "held"),
        (replace(ME, pid=18), IN_JOB, False, True, "held"),
    ],
)
def test_who_may_take_over(holder: Identity | None, me: Identity, has_ended: bool, runs: bool, expected: str):
    assert standing(holder, has_ended, me, lambda process: runs) == Standing(expected)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (None, 0, None, 0)),
        ({"SLURM_JOB_ID": "55"}, ("/55", 0, None, 0)),
        ({"SLURM_JOB_ID": "55", "SLURM_CLUSTER_NAME": "c", "SLURM_RESTART_COUNT": "2"}, ("c/55", 2, None, 0)),
        ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, (None, 0, None, 1)),
        (
            {"TORCHELASTIC_RUN_ID": "a", "MASTER_ADDR": "n1", "MASTER_PORT": "9", "TORCHELASTIC_RESTART_COUNT": "1"},
            (None, 0, "a@n1:9", 1),
        ),
    ],
)
def test_the_environment_tells_which_start_of_which_job_this_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[Any, ...]
):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    me = identity()
    assert (me.slurm_job, me.slurm_restarts, me.torchrun, me.torchrun_restarts) == expected


def test_a_process_runs_until_it_has_ended_and_no_other_of_its_number_counts():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = replace(identity(), pid=process.pid, pid_started=_ticks(process.pid))
    assert is_running(who)
    assert not is_running(replace(who, pid_started=(who.pid_started or 0) - 1))
    process.kill()
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert not is_running(who)  # nobody has waited for it yet
    process.communicate()
    assert not is_running(who)


def _ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def say_nothing(words: str) -> None:
    pass


def test_a_living_holder_here_is_named_at_once(tmp_path: Path):
    Attempt.take(tmp_path, 1, replace(identity(), slurm_job="c/55"))
    started = time.monotonic()
    with pytest.raises(HeldError, match=rf"attempt 1 is that of pid {os.getpid()} on .* \(Slurm job c/55\), since 2"):
        next_number(tmp_path, identity(), 600.0, say_nothing)
    assert time.monotonic() - started < 60


def test_a_holder_elsewhere_keeps_the_run_by_signs_of_life(tmp_path: Path):
    attempt = Attempt.take(tmp_path, 1, replace(identity(), host="elsewhere"))
    code = (
        "import pathlib, sys, time\n"
        "for i in range(1000):\n"
        "    pathlib.Path(sys.argv[1]).write_text(str(i)); time.sleep(0.2)\n"
    )
    signs = subprocess.Popen([sys.executable, "-c", code, str(attempt.path / "alive")])
    said: list[str] = []
    try:
        with pytest.raises(HeldError, match="elsewhere"):
            next_number(tmp_path, identity(), 600.0, said.append)
    finally:
        signs.kill()
        signs.wait()
    assert "waiting up to 600 s (run.lease_seconds)" in said[0]
    assert next_number(tmp_path, identity(), 1.0, said.append) == 2
    assert said[-1] == "none came: attempt 1 is over"


def test_an_end_frees_the_run_at_once_wherever_its_holder_was(tmp_path: Path):
    attempt = Attempt.take(tmp_path, 1, replace(identity(), host="elsewhere"))
    attempt.end("stopped", 3)
    assert next_number(tmp_path, identity(), 600.0, say_nothing) == 2


def test_an_end_while_others_wait_frees_the_run_too(tmp_path: Path):
    attempt = Attempt.take(tmp_path, 1, replace(identity(), host="elsewhere"))

    def end_it(words: str) -> None:
        if "waiting" in words:
            attempt.end("finished", 3)

    assert next_number(tmp_path, identity(), 600.0, end_it) == 2


def test_an_attempt_without_a_holder_json_is_waited_for(tmp_path: Path):
    """Killed between two files; or not yet there."""
    (tmp_path / "0001").mkdir()
    assert next_number(tmp_path, identity(), 0.5, say_nothing) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": "x"},
        {"pid": 10**12},
        {"pid": 1e30},
        {"slurm_restarts": "many"},
        {"reached_before": "many"},
        {"started": "x"},
        {"started": float("nan")},
        {"from_step": "x"},
        {"from_step": -5},
        {"world_size": "two"},
        {"hosts": [["n1", "x"]]},
        {"layout": 3},
        {"saved_step": [4]},
    ],
    ids=str,
)
def test_a_holder_json_with_a_fact_of_another_type_is_no_word(tmp_path: Path, wrong: dict[str, Any]):
    attempt = Attempt.take(tmp_path, 1, identity(), world_size=2, reached_before=7, hosts=[["n1", 2]])
    holder = json.loads((attempt.path / "holder.json").read_text())
    (attempt.path / "holder.json").write_text(json.dumps(holder | wrong))
    assert next_number(tmp_path, replace(identity(), slurm_job="c/55"), 0.3, say_nothing) == 2
    assert reached_before(tmp_path) in (0, 7)
    assert not has_saved(tmp_path)
    refuse_idle(tmp_path, 7, 2)
    assert first_failure(attempt.path, 0.0) is None
    if wrong != {"pid": 10**12}:  # which a holder might have, and no process has
        assert reached_before(tmp_path) == 0
        Attempt.take(tmp_path, 2, ME)
        with pytest.raises(FencedError, match="attempt 2"):
            attempt.insist()


def _race(words: tuple[Path, float]) -> bool:
    folder, when = words
    while time.time() < when:
        pass
    try:
        Attempt.take(folder, 1, identity())
    except HeldError:
        return False
    return True


def test_of_many_starts_at_once_one_takes_the_run(tmp_path: Path):
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        list(pool.map(len, [()] * 8))  # so that all processes are there
        for i in range(20):
            folder = tmp_path / str(i)
            folder.mkdir()
            assert sum(pool.map(_race, [(folder, time.time() + 0.05)] * 4)) == 1


def test_a_later_attempt_fences_off_the_one_before(tmp_path: Path):
    attempts = tmp_path / "attempts"
    assert next_number(attempts, ME, 1.0, say_nothing) == 1
    first = Attempt.take(attempts, 1, ME)
    first.insist()
    second = Attempt.take(attempts, 2, replace(ME, host="n2"))
    assert (first.is_current(), second.is_current(), open_attempt(attempts, 1).is_current()) == (False, True, False)
    with pytest.raises(FencedError, match="attempt 2 is that of pid 17 on n2"):
        first.insist()


def test_holder_json_tells_who_and_what(tmp_path: Path):
    attempt = Attempt.take(tmp_path, 1, ME, world_size=2, reached_before=7)
    attempt.describe(from_step=5)
    held = json.loads((attempt.path / "holder.json").read_text())
    assert {**asdict(ME), "attempt": 1, "world_size": 2, "reached_before": 7, "from_step": 5}.items() <= held.items()
    assert abs(held["started"] - time.time()) < 600


# --- no progress


def start(attempts: Path, reached_before: int, how: str | None) -> None:
    """An attempt of the past; how it ended, None if it was killed."""
    number = len(list(attempts.glob("*"))) + 1
    attempt = Attempt.take(attempts, number, ME, reached_before=reached_before, world_size=1)
    if how:
        how, _, why = how.partition(": ")
        attempt.end(how, reached_before, why or None)


@pytest.mark.parametrize(
    ("before", "reached", "is_refused"),
    [
        ([], 0, False),
        ([(0, "failed"), (0, None)], 0, False),
        ([(0, "failed"), (0, None), (0, None)], 0, True),
        ([(0, "failed"), (0, None), (0, None)], 1, False),
        ([(0, None), (0, "failed"), (10, None), (10, None)], 10, False),
        ([(0, None), (10, "failed"), (10, None), (10, None)], 10, True),
        ([(10, "stopped"), (10, None), (10, "stopped"), (10, None)], 10, False),
        ([(10, None), (10, "stopped"), (10, None), (10, "stopped"), (10, None)], 10, True),
        ([(10, "stopped: SIGTERM"), (10, "stopped: time limit"), (10, None)], 10, True),
        ([(10, "stopped: SIGINT"), (10, "stopped: time limit"), (10, None)], 10, False),
    ],
)
def test_three_starts_in_vain_are_enough(tmp_path: Path, before: list[Any], reached: int, is_refused: bool):
    (tmp_path / "attempts").mkdir()
    for reached_then, how in before:
        start(tmp_path / "attempts", reached_then, how)
    if not is_refused:
        refuse_idle(tmp_path / "attempts", reached, 3)
        return
    with pytest.raises(NoProgressError, match=rf"the last 3 starts of .* reached no step after {reached}") as refusal:
        refuse_idle(tmp_path / "attempts", reached, 3)
    assert "run.max_idle_starts=4" in str(refusal.value)
    assert "attempt 3: left no word" in str(refusal.value)


def test_starts_that_went_on_from_ever_later_checkpoints_are_not_in_vain(tmp_path: Path):
    """After a rollback from step 90: none of their steps is new, but all of them are kept."""
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    for from_step in (20, 30, 40, 40):
        start(attempts, 90, None)
        open_attempt(attempts, len(list(attempts.iterdir()))).describe(from_step=from_step)
    refuse_idle(attempts, 90, 3)
    start(attempts, 90, None)
    open_attempt(attempts, 5).describe(from_step=40)
    with pytest.raises(NoProgressError):
        refuse_idle(attempts, 90, 3)


def test_ten_thousand_attempts_slow_no_start_down(tmp_path: Path):
    """In the worst case: all of them were stopped before a step, so that each has to be looked at."""
    for number in range(1, 10_001):
        folder = tmp_path / f"{number:04d}"
        folder.mkdir()
        (folder / "holder.json").write_text(json.dumps({**asdict(ME), "reached_before": 5}))
        (folder / "ended.json").write_text('{"how": "stopped"}')
    started = time.process_time()
    number = next_number(tmp_path, ME, 600.0, say_nothing)
    refuse_idle(tmp_path, 5, 5)
    attempt = Attempt.take(tmp_path, number, ME, reached_before=5)
    assert number == 10_001
    assert time.process_time() - started < 5  # about half a second on a quiet machine
    started = time.process_time()
    for _ in range(1000):
        attempt.insist()
    assert time.process_time() - started < 0.5
    publish_json(attempt.path / "ended.json", {"how": "finished"})
    assert next_number(tmp_path, ME, 600.0, say_nothing) == 10_002

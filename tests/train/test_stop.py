"""What asks a run to stop, and how much time it still needs then. The run that is stopped: tests/faults."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import train.stop
from train.stop import (
    LEAVING_SECONDS,
    SAFETY,
    SIGNALS,
    TIME_LIMIT,
    Pace,
    StopSignals,
    TimeLimit,
    install,
    reason,
    slurm_seconds,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(train.stop, "_installed", None)
    yield install()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_is_a_flag(stop: StopSignals, name: str):
    assert (stop.code, stop.name) == (0, None)
    os.kill(os.getpid(), signal.Signals[name])
    assert (stop.code, stop.name) == (signal.Signals[name], name)


def test_the_first_one_is_the_reason_and_another_changes_nothing(stop: StopSignals):
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    stop.ask(TIME_LIMIT)
    assert stop.name == "SIGUSR1"
    assert [reason(code) for code in (0, signal.SIGUSR2, TIME_LIMIT)] == [None, "SIGUSR2", "time limit"]


ENDS_SLOWLY = """
import os, sys, time
import train.__main__
class Late:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"late")
        sleep(1)
late = Late()
train.__main__.entry = lambda *words: sys.exit(3)
train.__main__.main()
"""


def test_a_signal_at_the_very_end_changes_nothing_of_how_a_rank_ended():
    """Python clears its modules away, as with torch takes a second, after it has taken back its handlers."""
    process = subprocess.Popen([sys.executable, "-c", ENDS_SLOWLY], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(4) == b"late"
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        process.send_signal(number)
    assert process.wait(120) == 3


def test_the_second_ctrl_c_leaves_at_once_whatever_came_before(stop: StopSignals):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_installing_again_gives_what_is_there(stop: StopSignals):
    assert install() is stop
    os.kill(os.getpid(), signal.SIGUSR1)
    assert install().code == signal.SIGUSR1


def test_a_signal_amid_what_the_process_prints_is_survived():
    """A handler that prints would find the buffer of the stream in use: RuntimeError, and the end of the run. (-E:
    buffers are what is tested, whatever PYTHONUNBUFFERED says.)"""
    code = (
        "import sys; from train.stop import install; stop = install(); print('ready', flush=True)\n"
        "sys.stderr.buffer.write(b'x' * 1_000_000); sys.stderr.buffer.flush(); print(stop.name)"
    )
    with subprocess.Popen(
        [sys.executable, "-E", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # until the pipe is full, and the process waits in its print
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed.strip()) == (0, "SIGUSR1"), said[-500:]


def test_a_signal_before_anything_is_imported_is_no_end():
    """F9: from the first line of `python -m train` on; what would kill Python itself is over in a few hundredths."""
    code = (
        "import os, signal, sys; import train.__main__ as program; from train import stop; install = stop.install\n"
        "def told():\n    found = install()\n    os.kill(os.getpid(), signal.SIGTERM)\n    return found\n"
        "program.install = told; sys.argv[1:] = ['run.name=../x']; program.main()"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "SIGTERM: saving" in done.stderr) == (2, True), done.stderr


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "step", "save", "stops"),
    [
        (math.inf, 1e6, 1e6, False),
        (100.0, 10.0, 20.0, False),
        (SAFETY * 30 + LEAVING_SECONDS + 1, 10.0, 20.0, False),
        (SAFETY * 30 + LEAVING_SECONDS - 1, 10.0, 20.0, True),
        (60.0, 0.5, 40.0, True),  # a save as long as most of what is left
        (LEAVING_SECONDS + 1, 0.0, 0.0, False),
        (LEAVING_SECONDS - 1, 0.0, 0.0, True),
        (-5.0, 0.1, 0.1, True),
    ],
)
def test_a_run_stops_while_there_is_time_for_one_more_step_and_its_save(
    left: float, step: float, save: float, stops: bool
):
    assert TimeLimit(time.monotonic() + left, "a limit").must_stop(step, save) == stops


def test_the_limit_is_counted_from_the_start_of_the_process():
    limit = TimeLimit.find(100.0, time.monotonic() - 40)
    assert limit.seconds_left() == pytest.approx(60, abs=5)
    assert limit.source == "run.time_limit_seconds=100"


def test_the_earlier_of_two_limits_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 600))
    of_job = TimeLimit.find(None, time.monotonic())
    assert (of_job.source, of_job.seconds_left()) == ("the time limit of Slurm job 17", pytest.approx(600, abs=30))
    assert TimeLimit.find(10_000.0, time.monotonic()).source == of_job.source
    assert TimeLimit.find(60.0, time.monotonic()).source == "run.time_limit_seconds=60"


def test_without_any_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    limit = TimeLimit.find(None, time.monotonic())
    assert (limit.ends, limit.problem) == (math.inf, None)


@pytest.mark.parametrize(("answer", "left"), [("echo 1-00:10:00", 87_000), ("echo UNLIMITED", math.inf)])
def test_squeue_is_asked_where_the_environment_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, left: float
):
    _squeue(tmp_path, monkeypatch, answer)
    limit = TimeLimit.find(None, time.monotonic())
    assert (limit.seconds_left(), limit.problem) == (pytest.approx(left, abs=30), None)


def test_an_element_of_an_array_asks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The last one has the array's number, by which squeue would tell of all elements."""
    _squeue(tmp_path, monkeypatch, 'case "$*" in *--jobs=17_3\\ *) echo 10:00 ;; *) echo 10:00; echo 5:00 ;; esac')
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    limit = TimeLimit.find(None, time.monotonic())
    assert (limit.seconds_left(), limit.problem) == (pytest.approx(600, abs=30), None)
    assert limit.source == "the time limit of Slurm job 17_3"


@pytest.mark.parametrize("answer", ["exit 1", "echo INVALID", "echo slurm_load_jobs error"])
def test_a_limit_that_cannot_be_found_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str):
    _squeue(tmp_path, monkeypatch, answer)
    limit = TimeLimit.find(None, time.monotonic())
    assert limit.ends == math.inf
    assert "the time limit of Slurm job 17 could not be found out" in str(limit.problem)
    asked = TimeLimit.find(60.0, time.monotonic())
    assert asked.seconds_left() < 60  # what was asked for holds all the same


def _squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    (folder / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93_784), ("02:03:04", 7384), ("2:30", 150), ("0:45", 45), ("-1:30", -90), ("UNLIMITED", math.inf)],
)
def test_slurms_durations(text: str, seconds: float):
    assert slurm_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "INVALID", "NOT_SET", "1:2:3:4"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(ValueError, match="duration was expected"):
        slurm_seconds(text)


def test_a_limit_with_room_for_nothing_is_complained_of_with_what_would_do():
    limit = TimeLimit(time.monotonic() + 12, "run.time_limit_seconds=30")
    said = limit.complaint(1, 8.0, 4.0)
    assert "run.time_limit_seconds=30 leaves 1" in str(said)
    assert f"need {SAFETY * 12 + LEAVING_SECONDS:.0f} s" in str(said)
    assert limit.complaint(2, 8.0, 4.0) is None


def test_the_first_step_counts_only_until_there_is_another(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 300.0, 302.0, 303.0, 313.0, 314.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = Pace()
    seen = []
    for _ in range(5):
        pace.tick()
        seen.append(pace.longest)
    assert seen == [300, 2, 2, 10, 10]

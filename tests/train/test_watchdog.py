"""The watchdog of a rank, with real processes: each rank is a small program that is hurt, or hurts itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train.engine.exchange import exchange
from train.evidence import frames_of, waits_for_others
from train.parallel import flight_recorder
from train.watch import suspect
from train.watchdog import FlightRecorder

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from train.watchdog import FlightRecorder, Limits, Watchdog

rank, world_size, stuck_seconds = (float(word) for word in sys.argv[2:])
flight = FlightRecorder(Path("crisol-flight-1/wish.pipe"), Path("crisol-flight-1/record"))
limits = Limits(stuck_seconds, start_seconds=60)
watchdog = Watchdog(Path(sys.argv[1]), int(rank), int(world_size), limits, flight if flight.pipe.exists() else None)
watchdog.working("train", 12)

def say(*words):
    print(*words, flush=True)
"""


_started: list["Rank"] = []


class Rank:
    """A program that is watched; `text` follows HEAD. It says "ready" when it is."""

    def __init__(
        self,
        attempt: Path,
        text: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        stuck_seconds: float = 1.0,
        errors: Any = subprocess.PIPE,
    ):
        attempt.mkdir(parents=True, exist_ok=True)
        self.attempt, self._name = attempt, f"rank-{rank:05d}"
        _started.append(self)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + text, *map(str, (attempt, rank, world_size, stuck_seconds))],
            cwd=attempt.parents[1],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def watchdogs(self) -> list[int]:
        return watchdogs_of(self.attempt)

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """(exit code, what was printed to stderr since)"""
        try:
            _, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"the rank lives: {self.process.communicate()}")
        return self.process.returncode, errors

    @property
    def record(self) -> dict[str, Any]:
        """What the watchdog wrote; a rank that is gone may be some tenths of a second ahead of it."""
        path = self.attempt / f"{self._name}.failure.json"
        wait_until(path.exists)
        return json.loads(path.read_text())

    @property
    def stacks(self) -> str:
        return (self.attempt / f"{self._name}.stacks.txt").read_text()


def watchdogs_of(folder: Path) -> list[int]:
    """Process ids of watchdogs of attempts in this folder."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if b"train.watch\0" in words and str(folder).encode() in words:
                found.append(int(path.parent.name))
    return found


def wait_until(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.02)


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Path]:
    """The folder of a first attempt. After each test, no rank and no watchdog of it is left."""
    yield tmp_path / "attempts" / "0001"
    while _started:
        _started.pop().process.kill()
    wait_until(lambda: not watchdogs_of(tmp_path))


SLEEPS = """
def stuck_loader():
    say("ready")
    time.sleep(1000)

stuck_loader()
"""
HOLDS_THE_GIL = """
def other_thread():
    threading.Event().wait()

def holds_it():
    say("ready")
    while True:
        ctypes.PyDLL(None).sleep(1000)

threading.Thread(target=other_thread, daemon=True).start()
holds_it()
"""
ALL_REDUCE = """
import fcntl, os

def all_reduce():
    fcntl.flock(open({lock!r}), fcntl.LOCK_EX)  # until the other rank is dead
    os._exit(1)
"""


FAILURE = json.dumps(
    {"rank": 2, "host": "n", "step": 3, "phase": "train", "kind": "X", "message": "", "is_echo": False, "time": 1.0}
)


def test_stuck_ranks_are_ended_and_their_stacks_written(attempt: Path):
    """A sleep in Python, a call in C that holds the GIL (all threads are shown), and a process that was stopped."""
    folders = [attempt.parents[1] / name / "attempts" / "0001" for name in ("sleeps", "gil", "stopped")]
    sleeps, gil, stopped = (
        Rank(folder, text) for folder, text in zip(folders, (SLEEPS, HOLDS_THE_GIL, SLEEPS), strict=True)
    )
    os.kill(stopped.process.pid, signal.SIGSTOP)
    for rank in (sleeps, gil, stopped):
        code, printed = rank.end()
        assert code == -signal.SIGKILL
        record = rank.record
        assert (record["kind"], record["rank"], record["step"], record["phase"]) == ("stuck", 0, 12, "train")
        assert record["host"] == os.uname().nodename
        assert not record["is_echo"]
        assert "health.stuck_seconds=1" in record["message"]
        assert record["message"] in printed
    assert "in stuck_loader" in sleeps.stacks
    assert "in stuck_loader" in sleeps.record["trace"].splitlines()[0]
    assert "in holds_it" in gil.record["message"]
    assert "in holds_it" in gil.stacks
    assert "in other_thread" in gil.stacks
    assert "stopped" in stopped.record["message"]
    assert "T (stopped)" in stopped.stacks


def test_what_is_said_stays_in_a_log_that_others_write_on(attempt: Path, tmp_path: Path):
    """As in `torchrun ... > log`: torchrun writes its summary after the ranks are dead, from where it stands itself."""
    log = tmp_path / "log"
    with log.open("w", buffering=1) as stream:
        stream.write("begun\n")
        rank = Rank(attempt, SLEEPS, errors=stream)
        rank.end()
        stream.write("ChildFailedError: a long summary\n" * 100)
    lines = log.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("begun", "ChildFailedError: a long summary")
    assert any("no sign of progress" in line and line.startswith("watchdog: the first failure") for line in lines)


def test_ranks_that_end_well_leave_no_failure(attempt: Path):
    """Slow phases have a limit of their own; `alive` is renewed meanwhile."""
    text = """
watchdog.working("first step", 1)
say("ready")
time.sleep(3)
while not Path("enough").exists():
    time.sleep(0.01)
watchdog.working("train", 2)
watchdog.close()
"""
    rank = Rank(attempt, text)
    alive = attempt / "alive"
    wait_until(alive.exists)
    before = alive.read_text()
    wait_until(lambda: alive.read_text() != before)
    (attempt.parents[1] / "enough").touch()
    assert rank.end() == (0, "")
    assert [path.name for path in attempt.iterdir()] == ["alive"]


def test_ranks_that_die_without_a_word_get_one(attempt: Path):
    """Killed, and crashed in C: the latter with the stacks of the crash. An end that was not told is none."""
    killed = Rank(attempt, SLEEPS, stuck_seconds=60)
    crashed = Rank(
        attempt,
        "def crash():\n    ctypes.string_at(0)\n\nsay('ready')\ncrash()",
        rank=1,
        stuck_seconds=60,
        world_size=2,
    )
    killed.process.kill()
    assert killed.end()[0] == -signal.SIGKILL
    assert crashed.end()[0] == -signal.SIGSEGV
    assert killed.record["kind"] == crashed.record["kind"] == "died"
    assert killed.record["step"] == 12
    assert "Segmentation fault" in crashed.record["message"]
    assert "in crash" in crashed.record["trace"]
    assert "in crash" in crashed.stacks


def test_ranks_of_an_older_attempt_are_ended(attempt: Path):
    rank = Rank(attempt, SLEEPS, stuck_seconds=60)
    attempt.with_name("0002").mkdir()
    assert rank.end()[0] == -signal.SIGKILL
    assert rank.record["kind"] == "fenced"
    assert "attempt 2 has taken the run" in rank.record["message"]


def test_a_job_that_was_suspended_as_a_whole_goes_on(attempt: Path):
    """As by Ctrl-Z, or by a scheduler that lets another job run meanwhile."""
    rank = Rank(attempt, SLEEPS, stuck_seconds=3)
    wait_until((attempt / "alive").exists)  # the watchdog is at work
    everybody = [rank.process.pid, *rank.watchdogs()]
    assert len(everybody) == 2
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    continued = time.time()
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    assert rank.end()[0] == -signal.SIGKILL, "it gives no sign of progress afterwards either"
    assert rank.record["time"] - continued > 2.5, "the count began anew"


def test_others_of_a_stuck_rank_are_shown_and_ended_too(attempt: Path):
    """Rank 1 is stuck, rank 0 waits in a collective; the suspect is rank 1. Both stacks are there before any rank dies,
    and rank 0 says who was first."""
    lock = attempt.parents[1] / "lock"
    collective = attempt.parents[1] / "torch" / "distributed" / "distributed_c10d.py"
    collective.parent.mkdir(parents=True)
    collective.write_text(ALL_REDUCE.format(lock=str(lock)))
    held = f"import fcntl\nlock = open({str(lock)!r}, 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
    path = f"sys.path.insert(0, {str(collective.parent)!r})\nimport distributed_c10d\nsay('ready')\n"
    stuck = Rank(attempt, held + SLEEPS, rank=1, world_size=2, stuck_seconds=2)
    waits = Rank(attempt, path + "distributed_c10d.all_reduce()", rank=0, world_size=2, stuck_seconds=60)
    _, printed = waits.end()
    stuck.end()
    assert "in stuck_loader" in stuck.stacks
    assert "in all_reduce" in waits.stacks
    assert (stuck.record["is_echo"], waits.record["is_echo"]) == (False, True)
    assert suspect([waits.record, stuck.record])["rank"] == 1
    assert "the first failure: rank 1 on" in printed


def test_others_of_a_failed_rank_are_ended_when_they_do_not_end_themselves(attempt: Path):
    """One that has written why it fails has more time for it: its exit code is to be its own. A record that is not one
    is passed over."""
    attempt.mkdir(parents=True)
    (attempt / "rank-00003.failure.json").write_text('{"rank": 3}')
    text = f"say('ready')\nPath({str(attempt)!r}, 'rank-00002.failure.json').write_text('{FAILURE}')\n"
    waits = Rank(attempt, SLEEPS, rank=0, world_size=3, stuck_seconds=60)
    ends = Rank(attempt, text + "time.sleep(9)\nos._exit(5)", rank=2, world_size=3, stuck_seconds=60)
    dies = Rank(attempt, "say('ready')\nos._exit(1)", rank=1, world_size=3, stuck_seconds=60)
    died = time.monotonic()
    assert dies.end()[0] == 1
    assert waits.end()[0] == -signal.SIGKILL
    assert time.monotonic() - died > 3, "it had time to end by itself"
    assert waits.record["kind"] == "ended"
    assert waits.record["is_echo"]
    assert dies.record["kind"] == "died"
    assert "in stuck_loader" in waits.stacks
    assert ends.end()[0] == 5
    assert ends.record == json.loads(FAILURE)


def test_the_watchdog_outlives_signals_to_the_group_and_is_replaced_when_killed(attempt: Path):
    text = """
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
say("ready")
while not Path("enough").exists():
    watchdog.working("train", 13)
    time.sleep(0.01)
time.sleep(1000)
"""
    rank = Rank(attempt, text)
    before = rank.watchdogs()
    assert len(before) == 1
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        os.killpg(rank.process.pid, getattr(signal, name))
    time.sleep(0.5)
    assert rank.watchdogs() == before
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: rank.watchdogs() not in ([], before))
    (attempt.parents[1] / "enough").touch()
    code, printed = rank.end()
    assert code == -signal.SIGKILL
    assert printed.count("the watchdog of rank 0 ended (code -9); a new one is started") == 1
    assert rank.record["step"] == 13


def held_by(pid: int) -> set[str]:
    """What the descriptors of a process stand for."""
    found: set[str] = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(path.readlink()).split(" ")[0])
    return found


def test_the_watchdog_holds_nothing_of_its_rank(attempt: Path):
    """No output, no socket, no file: who waits for the end of a pipe, or for a port, waits for the rank alone."""
    text = """
import socket
server = socket.create_server(("127.0.0.1", 0))
server.set_inheritable(True)
say("ready")
time.sleep(1000)
"""
    rank = Rank(attempt, text, stuck_seconds=60)
    [watchdog] = rank.watchdogs()
    expected = {"/dev/null", "/memfd:signs", "/memfd:stacks", "/memfd:errors"}
    wait_until(lambda: held_by(watchdog) <= expected)  # while it starts, Python has its own files open
    rank.process.kill()
    rank.end()


def test_a_hanging_file_system_does_not_save_a_stuck_rank(attempt: Path):
    """Here: pipes that nobody opens at the other end, in the places that the watchdog reads and writes."""
    attempt.mkdir(parents=True)
    for name in ("rank-00001.failure.json", ".rank-00000.stacks.txt.tmp"):
        os.mkfifo(attempt / name)
    rank = Rank(attempt, SLEEPS)
    code, printed = rank.end()
    assert code == -signal.SIGKILL
    assert "no sign of progress" in printed


def test_the_flight_record_of_collectives_is_kept(attempt: Path):
    """What NCCL's thread does is done by a thread here: it listens at the pipe, and writes when somebody wishes."""
    folder = attempt.parents[1] / "crisol-flight-1"
    folder.mkdir()
    os.mkfifo(folder / "wish.pipe")
    text = """
def listen():
    with flight.pipe.open("rb") as wishes:
        wishes.read(1)
    flight.record.write_bytes(b"collectives")

threading.Thread(target=listen, daemon=True).start()
say("ready")
time.sleep(1000)
"""
    Rank(attempt, text).end()
    assert (attempt / "nccl_rank_0").read_bytes() == b"collectives"
    wait_until(lambda: not folder.exists())


def test_the_flight_recorder_is_where_torch_puts_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert flight_recorder(3) is None
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "/x/wish_of_rank_")
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "/x/nccl_rank_")
    assert flight_recorder(3) == FlightRecorder(pipe=Path("/x/wish_of_rank_3.pipe"), record=Path("/x/nccl_rank_3"))


def test_the_suspect_is_who_does_not_wait_and_got_least_far():
    def record(rank: int, kind: str, is_echo: bool, signs: int, moment: float) -> dict[str, Any]:
        return {"rank": rank, "kind": kind, "is_echo": is_echo, "signs": signs, "time": moment}

    echo, behind, ahead = (
        record(*facts) for facts in ((0, "stuck", True, 5, 1), (1, "stuck", False, 6, 3), (2, "stuck", False, 7, 2))
    )
    died = record(3, "died", False, 9, 4)
    assert suspect([echo, ahead, behind])["rank"] == 1
    assert suspect([echo, behind, died])["rank"] == 3
    assert suspect([echo])["rank"] == 0


def test_waiting_for_others_is_told_from_being_stuck():
    stacks = """Thread 0x00007f0000000001 (most recent call first):
  File "/x/python3.11/threading.py", line 320 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 2 in all_reduce
  File "/x/train/loop.py", line 3 in train
"""
    other, main = frames_of(stacks, 0x7F0000000001), frames_of(stacks, 0x7F0000000002)
    assert main[1] == 'File "/x/train/loop.py", line 3 in train'
    assert waits_for_others(main)
    assert not waits_for_others(other)
    assert waits_for_others(['File "/x/deepspeed/runtime/zero/partition_parameters.py", line 9 in wait'])
    reports = [f'File "{exchange.__code__.co_filename}", line 50 in exchange', *other]
    assert waits_for_others(reports)  # on a GPU: the collective has returned, its numbers are not there
    assert not waits_for_others([])
    assert not waits_for_others(main[1:])

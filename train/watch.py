"""The process that watches one rank from outside: it goes on when the rank's threads cannot, and ends with its rank.

In: the rank's signs of progress in shared memory, the rank's state in /proc, and the folder of the attempt, where the
watchdogs of the other ranks write too. Out, in that folder: `alive` (rank 0's), and, when the rank is stuck, dies
without a word or has to end, `rank-00001.failure.json`, `rank-00001.stacks.txt` and NCCL's flight record.

    python -m train.watch JSON          # started by train/watchdog.py, never by hand; standard library only

Time is counted by the watchdog's own clock, tick by tick. After a tick that took long, the machine or the whole job was
suspended, and the count begins anew. Nothing here waits for a file: what touches the attempt's folder does so in
threads of its own, so that a rank is ended in time while its file system is away.
"""

import json
import mmap
import os
import re
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from train.evidence import describe, frames_of, oom_kills, process_state, system_threads, waits_for_others

DUMP_SIGNAL = signal.SIGRTMIN + 6
"""Lets a rank write its stacks. A real-time signal, since the others are taken: torchrun ends ranks by SIGTERM,
SIGINT, SIGHUP and SIGQUIT, Slurm and people warn by SIGUSR1 and SIGUSR2, virtual machines of Java use SIGUSR2 and
SIGQUIT, profilers SIGPROF, debuggers SIGTRAP; 32 and 33 are glibc's own."""
SIGN = struct.Struct("<Qq16s")
CLOSED = "closed"
"""the phase of a rank that needs no watchdog any more"""
FLIGHT_FOLDER = "crisol-flight-"
"""how names of folders begin that were made for pipe and record of NCCL's flight recorder"""

TICK_SECONDS = 0.2
LONG_TICK_SECONDS = 2.0
LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 5.0
"""for a rank to end by itself after another has failed"""
GRACE_SECONDS = 4.0
"""for the stacks of all ranks to be written, before the first is killed"""
DUMP_SECONDS = 3.0
_NAMES = {"rank", "host", "step", "phase", "kind", "message", "is_echo", "time"}
"""what a failure record has at least; train/failure.py reads them"""


class Sign(NamedTuple):
    """A sign of progress."""

    number: int
    """of signs since the start; ranks in step with each other have given the same number"""
    step: int
    """optimizer steps completed"""
    phase: str


def write_sign(memory: mmap.mmap, sign: Sign) -> None:
    SIGN.pack_into(memory, 0, sign.number, sign.step, sign.phase.encode())


def read_sign(memory: mmap.mmap) -> Sign:
    """The newest one; read twice, in case it is being written."""
    content, again = memory[: SIGN.size], memory[: SIGN.size]
    while content != again:
        content, again = again, memory[: SIGN.size]
    number, step, phase = SIGN.unpack(content)
    return Sign(number, step, phase.rstrip(b"\0").decode())


def suspect(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the failure records of an attempt, that of the rank where it began: one that does not itself wait for others;
    of several, one that failed before one that is stuck, the stuck one that got least far, and the earliest."""

    def order(record: dict[str, Any]) -> tuple[bool, int, float]:
        return record["is_echo"], record.get("signs", 0) if record["kind"] == "stuck" else 0, record["time"]

    return min(records, key=order)


class Watch:
    """task: what `Watchdog` was made with, and the rank's process id, thread id and descriptors."""

    def __init__(self, task: dict[str, Any]):
        self._task, self._pid, self._rank = task, int(task["pid"]), int(task["rank"])
        self._memory = mmap.mmap(task["signs"], SIGN.size, prot=mmap.PROT_READ)
        self._folder = _Folder(Path(task["attempt"]), self._rank)
        self._oom_kills = oom_kills()
        self._sign = read_sign(self._memory)
        self._silent_since = self._peer_failed_at = time.monotonic()

    def run(self) -> None:
        """Returns when the rank needs no watchdog any more."""
        ticked = time.monotonic()
        self._folder.start()
        while (sign := read_sign(self._memory)).phase != CLOSED and self._rank_lives():
            now = time.monotonic()
            was_suspended, ticked = now - ticked > LONG_TICK_SECONDS, now
            if sign != self._sign or was_suspended:
                self._sign, self._silent_since = sign, now
            if not self._folder.peers() or was_suspended:
                self._peer_failed_at = now
            if verdict := self._judge(now):
                try:
                    self._tell(*verdict)
                finally:
                    self._kill()
                return
            time.sleep(TICK_SECONDS)
        self._sign = read_sign(self._memory)  # the last one, which may have come since the look before
        if self._sign.phase != CLOSED:
            self._died()

    def _judge(self, now: float) -> tuple[str, str] | None:
        """(kind, reason) if the rank must be ended."""
        peers = self._folder.peers()
        silence, waited = now - self._silent_since, now - self._peer_failed_at
        key, limit = self._limit()
        if self._folder.later is not None:
            return "fenced", f"attempt {self._folder.later} has taken the run, {self._folder.number} may not go on"
        if silence > limit:
            return "stuck", f"no sign of progress for {silence:.0f} s ({key}={limit:g})"
        if stuck := [peer["rank"] for peer in peers if peer["kind"] == "stuck"]:
            return "stuck", f"{_ranks(stuck)} stuck, and no sign of progress here for {silence:.0f} s"
        if peers and waited > (self._task["stuck_seconds"] if self._folder.has_own else PATIENCE_SECONDS):
            failed = _ranks([peer["rank"] for peer in peers])
            return "ended", f"{failed} failed {waited:.0f} s ago, and this rank did not end by itself"
        return None

    def _limit(self) -> tuple[str, float]:
        key = "stuck_seconds" if self._sign.phase in ("train", "evaluate") else "start_seconds"
        return f"health.{key}", self._task[key]

    def _rank_lives(self) -> bool:
        return os.getppid() == self._pid

    # --- how it ends -------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, reason: str) -> None:
        """Writes what there is to know about a rank that has to end, and gives the watchdogs of the other ranks time
        for the same."""
        state = process_state(self._pid)
        stacks = "" if kind == "fenced" else self._dump(state)
        frames = frames_of(stacks, self._task["thread"])
        message = f"{reason}; {describe(state, frames)}" if kind != "fenced" else reason
        record = self._record(kind, message, frames)
        _within(DUMP_SECONDS, lambda: self._folder.write(record, self._report(record, stacks)))
        if self._task["flight"] and kind != "fenced":
            _within(2 * DUMP_SECONDS, self._save_flight_record)
        if not record["is_echo"] or self._rank == 0:
            self._say(_line(record))
        if kind == "stuck":
            self._wait_for_the_others()
        if self._rank == 0 and kind != "fenced":
            self._say_first([*self._folder.peers(), record])

    def _died(self) -> None:
        """The rank is gone, and did not say so before. A crash in C has left stacks too."""
        stacks = self._read_stacks(0)
        fatal = re.search(r"^Fatal Python error: (.*)$", stacks, re.MULTILINE)
        message = f"it ended without a word: {fatal[1] if fatal else 'killed, or ended by code outside Python'}"
        if killed := oom_kills() - self._oom_kills:
            message += f"; perhaps out of memory: the kernel killed {killed} processes of this machine since the start"
        record = self._record("died", message, frames_of(stacks, self._task["thread"]))
        _within(DUMP_SECONDS, lambda: self._folder.write(record, stacks and self._report(record, stacks)))

    def _wait_for_the_others(self) -> None:
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and len(self._folder.peers()) < self._task["world_size"] - 1:
            time.sleep(TICK_SECONDS)

    def _kill(self) -> None:
        """A stopped process dies at once; one in uninterruptible sleep when it wakes."""
        until = time.monotonic() + PATIENCE_SECONDS
        if self._rank_lives() and read_sign(self._memory).phase != CLOSED:
            os.kill(self._pid, signal.SIGKILL)
        while self._rank_lives() and time.monotonic() < until:
            time.sleep(TICK_SECONDS / 4)

    # --- what is known -----------------------------------------------------------------------------------------------

    def _dump(self, state: str) -> str:
        """The stacks of all threads of Python, which the rank writes from a signal handler in C, whoever holds the GIL;
        "" if it cannot."""
        if state.startswith(("T", "t")):
            return ""
        start = os.fstat(self._task["stacks"]).st_size
        os.kill(self._pid, DUMP_SIGNAL)
        _wait_while_it_grows(lambda: os.fstat(self._task["stacks"]).st_size, start)
        return self._read_stacks(start)

    def _read_stacks(self, start: int) -> str:
        size = os.fstat(self._task["stacks"]).st_size
        return os.pread(self._task["stacks"], size - start, start).decode(errors="replace")

    def _save_flight_record(self) -> None:
        """Any byte in its pipe lets a thread of NCCL's process group write which collectives ran, and which still do.
        The record is a pickle, for torch's own reader of such records; nothing of ours opens it."""
        record = Path(self._task["flight"]["record"])
        pipe = os.open(self._task["flight"]["pipe"], os.O_WRONLY | os.O_NONBLOCK)  # OSError: no group of NCCL listens
        os.write(pipe, b"1\n")
        os.close(pipe)
        _wait_while_it_grows(lambda: record.stat().st_size, 0)
        self._folder.write_flight_record(record.read_bytes())

    def _record(self, kind: str, message: str, frames: list[str]) -> dict[str, Any]:
        """An echo is what would not have happened without another failure: this rank waits for others, or one of them
        has a cause of its own."""
        is_echo = waits_for_others(frames) or any(not peer["is_echo"] for peer in self._folder.peers())
        return {
            "rank": self._rank,
            "host": os.uname().nodename,
            "step": self._sign.step,
            "phase": self._sign.phase,
            "time": time.time(),
            "kind": kind,
            "message": message,
            "trace": "\n".join(frames),
            "is_echo": is_echo,
            "signs": self._sign.number,
            "seconds_since_progress": round(time.monotonic() - self._silent_since, 1),
        }

    def _report(self, record: dict[str, Any], stacks: str) -> str:
        """The content of rank-N.stacks.txt."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record["time"]))
        head = f"rank {self._rank} on {record['host']}, process {self._pid}, {when}: {record['message']}"
        return "\n\n".join(["\n".join([head, *system_threads(self._pid)]), stacks])

    def _say(self, text: str) -> None:
        """To where the rank writes its errors."""
        _within(DUMP_SECONDS, lambda: self._write_line(f"watchdog: {text}\n".encode()))

    def _write_line(self, line: bytes) -> None:
        """A pipe or a terminal is opened for this line only: who reads it waits for its end, and it must not outlive
        the rank."""
        if self._task["log"] is not None:
            os.write(self._task["log"], line)
            return
        stream = os.open(f"/proc/{self._pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
        os.write(stream, line)
        os.close(stream)

    def _say_first(self, records: list[dict[str, Any]]) -> None:
        first = suspect(records)
        silent = sorted({*range(self._task["world_size"])} - {record["rank"] for record in records})
        self._say(
            f"the first failure: {_line(first)}"
            + (f"; {_ranks(silent)} left no record" if silent else "")
            + f"; records and stacks of all ranks are in {self._task['attempt']}"
        )


class _Folder:
    """An attempt's folder, which is looked at and written to by threads that may hang with its file system."""

    later: int | None = None
    """the number of a later attempt"""
    has_own = False
    """this rank has written why it fails"""

    def __init__(self, path: Path, rank: int):
        self._path, self._rank, self.number = path, rank, int(path.name)
        self._peers: dict[str, dict[str, Any]] = {}
        self._name = f"rank-{rank:05d}"

    def start(self) -> None:
        threading.Thread(target=self._go_on_looking, daemon=True).start()

    def peers(self) -> list[dict[str, Any]]:
        """Failure records of the other ranks."""
        return list(self._peers.values())

    def write(self, record: dict[str, Any], report: str) -> None:
        """The stacks, then the record; the rank's own record, if it could write one, is left as it is."""
        try:
            if report:
                _publish(self._path / f"{self._name}.stacks.txt", report.encode())
        finally:
            path = self._path / f"{self._name}.failure.json"
            if not path.exists():
                _publish(path, json.dumps(record, indent=2).encode())

    def write_flight_record(self, content: bytes) -> None:
        """Under the name that torch's reader of a folder of such records looks for."""
        _publish(self._path / f"nccl_rank_{self._rank}", content)

    def _go_on_looking(self) -> None:
        counter = 0
        while True:
            with suppress(OSError, ValueError):  # away, full or damaged: the next look may find it otherwise
                self._look()
                if self._rank == 0 and self.later is None:
                    counter += 1
                    _publish(self._path / "alive", f"{counter} {time.time():.0f}\n".encode())
            time.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        numbers = [int(path.name) for path in self._path.parent.iterdir() if path.name.isdigit()]
        self.later = max((number for number in numbers if number > self.number), default=None)
        for path in self._path.glob("rank-*.failure.json"):
            if path.name == f"{self._name}.failure.json":
                self.has_own = True
            elif path.name not in self._peers and (record := json.loads(path.read_bytes())).keys() >= _NAMES:
                self._peers[path.name] = record


def _publish(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Does it in a thread that is left behind when it takes longer, or fails for the file system."""

    def attempt() -> None:
        with suppress(OSError):
            action()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def _wait_while_it_grows(size: Callable[[], int], start: int) -> None:
    until, before, now = time.monotonic() + DUMP_SECONDS, start, start
    while time.monotonic() < until and (now == start or now != before):
        time.sleep(TICK_SECONDS)
        with suppress(FileNotFoundError):
            before, now = now, size()


def _line(record: dict[str, Any]) -> str:
    place = f"rank {record['rank']} on {record['host']} after step {record['step']} ({record['phase']})"
    return f"{place}: {record['kind']}: {record['message'].partition(chr(10))[0]}"


def _ranks(ranks: list[int]) -> str:
    ranks = sorted(ranks)
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _remove(folder: Path) -> None:
    """The folder of the flight recorder, if it was made for this rank (`train/parallel.py`)."""
    if folder.name.startswith(FLIGHT_FOLDER):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def main() -> None:
    os.chdir("/")
    task = json.loads(sys.argv[1])
    Watch(task).run()
    if task["flight"]:
        _within(DUMP_SECONDS, lambda: _remove(Path(task["flight"]["pipe"]).parent))
    os._exit(0)  # past threads that hang with a file system


if __name__ == "__main__":
    main()

"""A rank's side of its watchdog: starts the process that watches it (`train/watch.py`), and tells it of progress.

What the rank writes is a few bytes of memory that both share: a sign of progress costs microseconds, waits for nobody,
and the newest is always the one that is read. Stacks go to another such piece of memory, by a signal handler in C: that
works while a call in C holds the GIL, and while the disk is full or away.
"""

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.watch import CLOSED, DUMP_SIGNAL, SIGN, Sign, write_sign

Phase = Literal["start", "first step", "train", "evaluate", "save", "end"]
_ROOT = Path(__file__).resolve().parents[1]
_NOT_FOR_IT = {
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGXCPU, signal.SIGTTIN, signal.SIGTTOU, DUMP_SIGNAL),
}
"""Signals to the process group of the rank that its watchdog outlives. SIGTSTP is not among them: Ctrl-Z stops both."""


@dataclass(frozen=True)
class Limits:
    """How long a rank may go without a sign of progress."""

    stuck_seconds: float
    """in the phases train and evaluate"""
    start_seconds: float
    """in all others"""


@dataclass(frozen=True)
class FlightRecorder:
    """Where NCCL's process group listens for a wish to write down its collectives, and where it writes them."""

    pipe: Path
    record: Path


class Watchdog:
    """attempt: folder of the attempt, whose name is its number. flight_recorder: None without NCCL."""

    def __init__(
        self,
        attempt: Path,
        rank: int,
        world_size: int,
        limits: Limits,
        flight_recorder: FlightRecorder | None = None,
    ):
        self._signs, self._stacks = os.memfd_create("signs"), os.memfd_create("stacks")
        self._errors, self._log = os.memfd_create("errors"), _log()
        os.ftruncate(self._signs, SIGN.size)
        self._memory = mmap.mmap(self._signs, SIGN.size)
        self._count = 0
        self._restarted = -float("inf")
        self._listen()
        self._task = {
            "attempt": str(attempt.resolve()),
            "rank": rank,
            "world_size": world_size,
            "stuck_seconds": limits.stuck_seconds,
            "start_seconds": limits.start_seconds,
            "flight": flight_recorder and {name: str(path.absolute()) for name, path in vars(flight_recorder).items()},
            "pid": os.getpid(),
            "thread": threading.get_ident(),
            "signs": self._signs,
            "stacks": self._stacks,
            "log": self._log,
        }
        self._say_sign("start", 0)
        self._process = self._start()

    def working(self, phase: Phase, step: int) -> None:
        """A sign of progress: from here on, the limit of this phase counts anew. step: optimizer steps completed."""
        self._say_sign(phase, step)
        if self._process.poll() is not None:
            self._start_again()

    def close(self) -> None:
        """The rank ends well, or says itself why it fails; nothing watches it any more."""
        self._say_sign(CLOSED, 0)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        faulthandler.unregister(DUMP_SIGNAL)
        if self._enabled:
            faulthandler.disable()
        self._memory.close()
        for descriptor in (self._signs, self._stacks, self._errors, self._log):
            if descriptor is not None:
                os.close(descriptor)

    def _listen(self) -> None:
        """Stacks on demand, and those of a crash in C too if nobody else has asked for them."""
        faulthandler.register(DUMP_SIGNAL, file=self._stacks, all_threads=True)
        self._enabled = not faulthandler.is_enabled()
        if self._enabled:
            faulthandler.enable(file=self._stacks, all_threads=True)

    def _say_sign(self, phase: str, step: int) -> None:
        self._count += 1
        write_sign(self._memory, Sign(self._count, step, phase))

    def _start(self) -> "subprocess.Popen[bytes]":
        """It inherits three pieces of memory, the log if that is a file, and nothing else; and a mask of signals before
        it could be hit by one."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_IT)
        try:
            return subprocess.Popen(
                [sys.executable, "-EsS", "-m", "train.watch", json.dumps(self._task)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(self._signs, self._stacks, *([] if self._log is None else [self._log])),
                cwd=_ROOT,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start_again(self) -> None:
        """Somebody killed it, or it failed. Not more often than every ten seconds, and never in silence."""
        if time.monotonic() - self._restarted < 10:
            return
        self._restarted = time.monotonic()
        errors = os.pread(self._errors, 1 << 16, 0).decode(errors="replace").strip()
        print(
            f"warning: the watchdog of rank {self._task['rank']} ended (code {self._process.returncode}); a new one is "
            f"started{': ' + errors.splitlines()[-1] if errors else ''}",
            file=sys.stderr,
            flush=True,
        )
        self._process = self._start()


def _log() -> int | None:
    """Where this process writes its errors, if that is a file, as after `> log`: whoever opened it writes on from where
    he stood himself, over all that was appended by another opening. A pipe must not be held: see `Watch._say`."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(2).st_mode):
            return os.dup(2)
    return None

"""When a run is asked to stop before its end: by a signal, or because its time is nearly up.

In: SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C, from the first moment of the process; the end of its Slurm job, or
run.time_limit_seconds. Out: a flag that the ranks exchange at every step (`StopSignals.code`); nothing is cut short,
and a signal that comes again changes nothing. Only the second Ctrl-C leaves at once. Imports no torch.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from types import FrameType

from train.parallel import slurm_job

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
TIME_LIMIT = 1000
"""the code of a stop that no signal asked for: above all signal numbers"""
SAFETY = 1.5
"""the next step and its save may take so many times what the longest of them took"""
LEAVING_SECONDS = 15.0
"""from the end of the save to the end of the job's step: summary, curve, the others' farewell, and what the scheduler
needs to take note. A job that is still there at its limit is killed, and nothing of it is left to requeue it."""
ASK_SECONDS = 20.0
"""squeue may take"""


class StopSignals:
    """Takes note of what asks for a stop. `code` is 0 until then, and afterwards that of what asked first."""

    def __init__(self) -> None:
        self.code = 0
        self.since = time.monotonic()
        """when it was installed, which is when the process began but for the start of Python itself"""
        self._interrupts = 0
        for number in SIGNALS:
            signal.signal(number, self._note)

    @property
    def name(self) -> str | None:
        return reason(self.code)

    def ask(self, code: int) -> None:
        """Asks for a stop, unless something has asked before."""
        self.code = self.code or code

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_interrupt = number == signal.SIGINT
        self._interrupts += is_interrupt
        if self._interrupts > 1 and is_interrupt:
            raise KeyboardInterrupt
        is_news = is_interrupt or not self.code
        self.ask(number)
        if is_news:
            again = " (Ctrl-C again: leave at once)" if is_interrupt else ""
            # not print: the signal may have come in the middle of one, whose buffer is locked
            with contextlib.suppress(OSError):
                os.write(2, f"\n{reason(number)}: saving after this step{again}\n".encode())


_installed: StopSignals | None = None


def install() -> StopSignals:
    """Handles the signals from here on; called again, gives what is there. For the main thread only."""
    global _installed
    if _installed is None:
        _installed = StopSignals()
    return _installed


def no_longer() -> None:
    """To be called when all is done. When Python ends it gives signals back their own meaning, which is death; one that
    comes then would make a failure of an end that is not. A signal that is ignored stays so, and Ctrl-C works."""
    for number in SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


def reason(code: int) -> str | None:
    """In words: of the largest code among the ranks."""
    match code:
        case 0:
            return None
        case number if number == TIME_LIMIT:
            return "time limit"
        case _:
            return signal.Signals(code).name


# --- time ------------------------------------------------------------------------------------------------------------


def seconds_needed(longest_step_seconds: float, save_seconds: float) -> float:
    """To do one more step, save it and leave."""
    return SAFETY * (longest_step_seconds + save_seconds) + LEAVING_SECONDS


@dataclass(frozen=True)
class TimeLimit:
    """Asked on rank 0 only: clocks of ranks differ, so one of them decides for all."""

    ends: float
    """of time.monotonic(), which no change of the date moves; infinite where there is no limit"""
    source: str
    """what sets it, in words"""
    problem: str | None = None
    """why it could not be found out"""

    @staticmethod
    def none() -> "TimeLimit":
        return TimeLimit(math.inf, "no time limit")

    @staticmethod
    def find(time_limit_seconds: float | None, since: float) -> "TimeLimit":
        """The earlier one of run.time_limit_seconds, counted from `since` (time.monotonic()), and the end of the Slurm
        job that this process is part of. May ask Slurm, once; what it answers holds from now on."""
        asked = TimeLimit.none()
        if time_limit_seconds is not None:
            asked = TimeLimit(since + time_limit_seconds, f"run.time_limit_seconds={time_limit_seconds:g}")
        job = _end_of_job()
        if job.problem and time_limit_seconds is not None:
            return asked
        return min(asked, job, key=lambda limit: (limit.ends, limit.problem is None))

    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def must_stop(self, longest_step_seconds: float, save_seconds: float) -> bool:
        """True if there may be no time for one more step and its save.

        longest_step_seconds: the longest time between two questions, an evaluation or the like included; the first step
        of a process only until there is another. save_seconds: a save, with the wait for it.
        """
        return self.seconds_left() < seconds_needed(longest_step_seconds, save_seconds)

    def complaint(self, steps: int, longest_step_seconds: float, save_seconds: float) -> str | None:
        """What to warn of when `must_stop` is true after so many steps of this process: the next start would come no
        further."""
        if steps > 1:
            return None
        needed = seconds_needed(longest_step_seconds, save_seconds)
        return (
            f"{self.source} leaves {max(0.0, self.seconds_left()):.0f} s after the start and {steps} steps; one more "
            f"step and its save need {needed:.0f} s ({SAFETY} x ({longest_step_seconds:.1f} + {save_seconds:.1f}) + "
            f"{LEAVING_SECONDS:.0f}). Every start will come no further than this: allow more time "
            "(run.time_limit_seconds, or --time of the job)"
        )


class Pace:
    """The longest time between two questions whether to stop, in seconds: a step, with the evaluation or the beginning
    of a save that may follow it. The first step, which compiles, counts only until there is another."""

    def __init__(self) -> None:
        self.steps = 0
        self.longest = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        """A step is done, and what followed it."""
        now = time.monotonic()
        self.steps += 1
        self.longest = now - self._last if self.steps <= 2 else max(self.longest, now - self._last)
        self._last = now


class Deadline:
    """Whether there is time for one more step and its save, by a limit and by how long they took so far."""

    def __init__(self, limit: TimeLimit):
        self._limit, self._pace = limit, Pace()
        self._save_seconds = self._save_began = 0.0

    def step_done(self) -> None:
        self._pace.tick()

    def save_began(self) -> None:
        self._save_began = time.monotonic()

    def save_ended(self) -> None:
        self._save_seconds = max(self._save_seconds, time.monotonic() - self._save_began)

    @property
    def step_seconds(self) -> float:
        """What a step may take, with what follows it."""
        return self._pace.longest

    def is_near(self, seconds: float) -> bool:
        """seconds: until the next question."""
        return self._limit.must_stop(seconds, self._save_seconds)

    def complaint(self, seconds: float) -> str | None:
        """What to warn of when it is near already after the first steps."""
        return self._limit.complaint(self._pace.steps, seconds, self._save_seconds)


def _end_of_job() -> TimeLimit:
    job = slurm_job()
    if job is None:
        return TimeLimit.none()
    name = f"the time limit of Slurm job {job.number}"
    if job.ends is not None:
        return TimeLimit(time.monotonic() + job.ends - time.time(), name)
    try:
        words = ("squeue", "--noheader", f"--jobs={job.number}", "--format=%L")
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=ASK_SECONDS)
        left = slurm_seconds(done.stdout.strip())
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        problem = f"{name} could not be found out ({error}): only Slurm's own signal can stop this run in time"
        return TimeLimit(math.inf, name, problem)
    return TimeLimit(time.monotonic() + left, name)


def slurm_seconds(text: str) -> float:
    """Of a duration as Slurm writes it, [days-][[hours:]minutes:]seconds with perhaps a minus; infinite for UNLIMITED.
    Raises ValueError for anything else."""
    if text == "UNLIMITED":
        return math.inf
    match = re.fullmatch(r"(-?)(?:(\d+)-)?(?:(\d+):)??(?:(\d+):)?(\d+)", text)
    if match is None:
        raise ValueError(f"Slurm says {text!r} where a duration was expected")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[1:])
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return float(-total if match[1] else total)

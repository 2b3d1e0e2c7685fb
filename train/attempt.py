"""Who may write a run's folder: every start takes an attempt, the next number in `attempts/`; the highest one owns it.

In: the folder of attempts, and who asks. Out: an `Attempt`, or a HeldError that names the holder. An attempt is made
by `mkdir`, which succeeds for one of any number of processes on every POSIX file system, and it is fenced off as soon
as a folder of a later number exists: one `stat` tells. Each folder holds

    holder.json   who took it, when, and how far the run had come (written at the claim)
    alive         rewritten every 2 s by the watchdog of rank 0; all that is looked at is whether it changes
    ended.json    how it ended, if it did so by itself: finished, stopped or failed
    rank-*.json   failures (train/failure.py)

Clocks of two machines are never compared. No torch.
"""

import contextlib
import datetime
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from data_prep.files import DataError, HeldError, publish_json, write_error
from train.errors import FencedError, NoProgressError, RunFailedError
from train.failure import first_failure, record, told
from train.holder import read_ended, read_holder

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Identity:
    """A process, so that another one, perhaps elsewhere, can tell whether it still runs or what has replaced it."""

    host: str
    boot_id: str
    pid_namespace: str
    """numbers of processes mean something inside one of these only: each container has its own"""
    pid: int
    pid_started: int | None
    """clock ticks after boot; tells a process from an earlier one of the same number"""
    slurm_job: str | None = None
    """cluster and id of the job; commands of one job share it"""
    slurm_restarts: int = 0
    """how often the job was put back into the queue and started again"""
    torchrun: str | None = None
    """run id and store address of a torchrun that has an id of its own"""
    torchrun_restarts: int = 0

    def replaces(self, other: "Identity") -> bool:
        """True if both are starts of one job, and this is the later. Equal counts tell nothing: two commands of one
        interactive job have them."""
        same_job = self.slurm_job is not None and self.slurm_job == other.slurm_job
        same_torchrun = self.torchrun is not None and self.torchrun == other.torchrun
        return (same_job and self.slurm_restarts > other.slurm_restarts) or (
            same_torchrun and self.torchrun_restarts > other.torchrun_restarts
        )

    def sees(self, other: "Identity") -> bool:
        """True if the other's pid means the same here."""
        mine, theirs = ((who.host, who.boot_id, who.pid_namespace) for who in (self, other))
        return mine == theirs


class Standing(StrEnum):
    free = "free"
    held = "held"
    unknown = "unknown"
    """only a sign of life, or its absence for the length of the lease, will tell"""


def standing(holder: Identity | None, has_ended: bool, me: Identity, runs: Callable[[Identity], bool]) -> Standing:
    """Whether `me` may follow the last attempt. holder: None if its holder.json is missing, damaged or of
    another version; `runs` is asked only about a process that `me` can see."""
    if has_ended:
        return Standing.free
    if holder is None:
        return Standing.unknown
    if me.replaces(holder):
        return Standing.free
    if me.sees(holder):
        return Standing.held if runs(holder) else Standing.free
    return Standing.unknown


def next_number(attempts: Path, me: Identity, lease_seconds: float, say: Callable[[str], None]) -> int:
    """The number that `me` may take. Waits, if need be, up to `lease_seconds` for a sign of life of the last holder.

    Raises HeldError if that lives; DataError if the folder cannot be made.
    """
    try:
        attempts.mkdir(parents=True, exist_ok=True)
        last = max(_numbers(attempts), default=0)
    except OSError as error:
        raise write_error(error, attempts) from error
    if last == 0:
        return 1
    path = _path(attempts, last)
    match standing(_identity(path), _has_ended(path), me, is_running):
        case Standing.held:
            raise HeldError(_held(path))
        case Standing.unknown:
            say(f"{_holder_words(path)}; waiting up to {lease_seconds:g} s (run.lease_seconds) for a sign of life")
            if _shows_life(path, lease_seconds):
                raise HeldError(_held(path))
            say(f"none came: attempt {last} is over")
        case Standing.free:
            pass
    return last + 1


def refuse_idle(attempts: Path, reached: int, max_idle_starts: int) -> None:
    """Raises NoProgressError if the last `max_idle_starts` attempts all began where the run still is. reached: the
    largest step that the run ever had. Those that stopped where they were to, or by a person's Ctrl-C, do not count;
    those that a signal or the time limit stopped do: a limit that leaves no time for a step is met again and again."""
    idle = list(itertools.islice(_idle(attempts, reached), max_idle_starts))
    if len(idle) < max_idle_starts:
        return
    causes = [_cause(path) for path in reversed(idle)]
    raise NoProgressError(
        f"the last {len(idle)} starts of {attempts.parent} reached no step after {reached}, so this one does not try:"
        + "".join(f"\n  {cause}" for cause in causes)
        + f"\nRemove the cause, then allow one more start with run.max_idle_starts={max_idle_starts + 1} "
        f"(now {max_idle_starts}; it may change in a run), or use another run.name. After a new step the count is 0."
    )


def reached_before(attempts: Path) -> int:
    """What the newest attempt with a holder.json noted as the largest step before it; 0 if none did."""
    for number in sorted(_numbers(attempts), reverse=True):
        if holder := read_holder(_path(attempts, number)):
            return holder.get("reached_before", 0)
    return 0


def has_saved(attempts: Path) -> bool:
    """True if an attempt made a checkpoint, or went on from one."""
    holders = (read_holder(_path(attempts, number)) for number in _numbers(attempts))
    return any(holder.get("saved_step") or holder.get("from_step") for holder in holders)


@dataclass(frozen=True)
class Attempt:
    number: int
    path: Path

    @staticmethod
    def take(attempts: Path, number: int, me: Identity, **facts: Any) -> "Attempt":
        """On rank 0, with what `next_number` gave. Raises HeldError if another start was faster."""
        attempt = Attempt(number, _path(attempts, number))
        try:
            attempt.path.mkdir()
        except FileExistsError:
            raise HeldError(_held(attempt.path)) from None
        except OSError as error:
            raise write_error(error, attempt.path) from error
        publish_json(attempt.path / "holder.json", {"attempt": number, **asdict(me), "started": time.time(), **facts})
        return attempt

    def describe(self, **facts: Any) -> None:
        """Adds to holder.json."""
        publish_json(self.path / "holder.json", {**read_holder(self.path), **facts})

    def saved(self, step: int) -> None:
        """Notes that there is a checkpoint of this step. Never raises: events.jsonl tells it, too."""
        with contextlib.suppress(OSError, DataError):
            self.describe(saved_step=step)

    def is_current(self) -> bool:
        """False from the moment on at which a later attempt has taken the run. One `stat`."""
        try:
            _path(self.path.parent, self.number + 1).stat()
        except OSError:  # not there; or the file system is away, and with it every file that could be written
            return True
        return False

    def insist(self) -> None:
        """To be called before anything is written into the run's folder. Raises FencedError if it is another's now."""
        if not self.is_current():
            later = _path(self.path.parent, self.number + 1)
            raise FencedError(
                f"attempt {self.number} at {self.path.parents[1]} is over: {_holder_words(later)}. This process writes "
                "nothing more."
            )

    @contextlib.contextmanager
    def naming_failures(self, rank: int, host: str, where: Callable[[], tuple[int, str]]) -> Iterator[None]:
        """Ends the attempt with what is raised inside: recorded, and raised again so that all ranks say it once (see
        `told`). where: (steps completed, phase)."""
        try:
            yield
        except BaseException as error:
            self._fail(rank, host, *where(), error)
            raise

    def _fail(self, rank: int, host: str, step: int, phase: str, error: BaseException) -> None:
        """Raises what is to be raised instead, if it is another error."""
        try:
            if isinstance(error, Exception) and not isinstance(error, RunFailedError):  # else rank 0 has recorded it
                words = told(self.path, record(self.path, rank, host, step, phase, error), error)
                if words is not error:
                    raise words from error
        finally:
            if rank == 0:
                self.end("failed", step)

    def end(self, how: str, step: int, why: str | None = None) -> None:
        """how: finished, stopped or failed. why: what told it to stop before it was where it was to stop. Never raises:
        without it the next start may have to wait for the lease."""
        with contextlib.suppress(OSError, DataError):
            publish_json(self.path / "ended.json", {"how": how, "step": step, "ended": time.time(), "why": why})


def open_attempt(attempts: Path, number: int) -> Attempt:
    """For the other ranks."""
    return Attempt(number, _path(attempts, number))


def is_running(process: Identity) -> bool:
    """Of a process in this pid namespace; one that has ended and was not waited for does not run."""
    try:
        return started_at(process.pid) == process.pid_started is not None
    except PermissionError:
        return True  # /proc is closed to us, but somebody has that number


def started_at(pid: int) -> int | None:
    """Clock ticks after boot; None if there is no such process. Raises PermissionError if that cannot be seen."""
    try:
        # proc(5): the name may hold blanks and brackets; after it come the state and, as 20th from there, the start
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        with contextlib.suppress(ProcessLookupError, OverflowError):
            os.kill(pid, 0)  # under hidepid, other people's processes have no folder in /proc
        return None
    return None if words[0] in ("Z", "X") else int(words[19])


# --- what the folders say --------------------------------------------------------------------------------------------


def _path(attempts: Path, number: int) -> Path:
    return attempts / f"{number:04d}"


def _numbers(attempts: Path) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(path.name) for path in attempts.iterdir() if path.name.isascii() and path.name.isdigit()]
    return []


def _identity(path: Path) -> Identity | None:
    holder = read_holder(path)
    try:
        return Identity(**{field.name: holder[field.name] for field in fields(Identity)})
    except KeyError:
        return None


def _has_ended(path: Path) -> bool:
    return (path / "ended.json").exists()


def _shows_life(path: Path, seconds: float) -> bool:
    """True as soon as something of the attempt changes; False if it ends meanwhile, or nothing does for so long."""

    def signs() -> list[bytes | None]:
        return [_bytes(path / name) for name in ("holder.json", "alive")]

    before, until = signs(), time.monotonic() + seconds
    while time.monotonic() < until and not _has_ended(path):
        time.sleep(_POLL_SECONDS)
        if signs() != before:
            return not _has_ended(path)
    return False


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _idle(attempts: Path, reached: int) -> Iterator[Path]:
    """Attempts, newest first, back to the last one that reached a new step, or saved one from which the next went on
    (as after a rollback, where the steps are not new)."""
    later: int | None = None
    for number in sorted(_numbers(attempts), reverse=True):
        path = _path(attempts, number)
        holder = read_holder(path)
        if holder and holder.get("reached_before", 0) < reached:
            return
        if (began := holder.get("from_step")) is not None:
            if later is not None and began < later:
                return
            later = began
        ended = read_ended(path)
        if ended.get("how") != "stopped" or ended.get("why") not in (None, "SIGINT"):
            yield path


def _cause(path: Path) -> str:
    failure, stop = first_failure(path, 0.0), read_ended(path).get("why")
    words = "left no word: killed from outside, or its machine was lost"
    if failure:
        words = failure.describe()
    elif stop:
        words = f"was stopped before a new step ({stop})"
    return f"attempt {int(path.name)}: {words}"


def _held(path: Path) -> str:
    return (
        f"{_holder_words(path)}: another process is writing to {path.parents[1]}; wait for its end, or choose another "
        "run.name"
    )


def _holder_words(path: Path) -> str:
    """As "attempt 3 is that of pid 17 on n1 (Slurm job c/55), since 2026-11-21 20:10:05"."""
    number, holder, who = int(path.name), read_holder(path), _identity(path)
    if who is None:
        return f"attempt {number} does not say whose it is ({path})"
    job = f" (Slurm job {who.slurm_job})" if who.slurm_job else ""
    since = datetime.datetime.fromtimestamp(holder.get("started", 0)).isoformat(sep=" ", timespec="seconds")
    return f"attempt {number} is that of pid {who.pid} on {who.host}{job}, since {since}"

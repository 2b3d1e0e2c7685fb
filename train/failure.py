"""Why an attempt failed: what each rank raised goes into the attempt's folder, and the cause is told from its echoes.

In: an exception on one rank. Out: `rank-00001.failure.json`, and for the console the first failure of all ranks, said
once. When a rank dies, the others lose their connection to it: those errors are echoes, and so is a rank's own refusal
to write once it is fenced off. The first failure is the earliest that is no echo; if all are, the ranks that left no
word are the cause. No torch, nothing but the standard library and files, so that a watchdog can use it too.
"""

import contextlib
import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

from data_prep.files import DataError, publish_json
from train.errors import FencedError, RunFailedError
from train.holder import read_facts, read_holder

WAIT_SECONDS = 2.0
"""for the other ranks' words, before one that has heard an echo ends"""

_POLL_SECONDS = 0.05
_ECHO_KINDS = {"FencedError", "DistNetworkError", "DistBackendError", "DistStoreError"}
_ECHO_WORDS = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "socket closed",
    "timed out waiting",
    "timeout caused pair closure",
    "wait timeout after",
    "read timeout",
    "nccl communicator was aborted",
    "caught collective operation timeout",
)
"""what gloo, NCCL and torch's store say on a rank whose peer has gone"""


@dataclass(frozen=True)
class Failure:
    rank: int
    host: str
    step: int
    """optimizer steps completed before"""
    phase: str
    kind: str
    """name of the exception's class, or one word for what was seen from outside"""
    message: str
    is_echo: bool
    time: float
    """seconds since 1970 on the clock of its host"""
    exit_code: int = 1
    is_spoken: bool = False
    """True if the rank itself raised it, so that its console has it"""
    trace: str = ""

    def describe(self) -> str:
        """One line."""
        first_line = self.message.strip().partition("\n")[0][:500]
        return f"rank {self.rank} on {self.host} after step {self.step} ({self.phase}): {self.kind}: {first_line}"


_TYPES = {name: (int, float) if kind is float else (kind,) for name, kind in get_type_hints(Failure).items()}


def record(attempt: Path, rank: int, host: str, step: int, phase: str, error: BaseException) -> Failure:
    """Writes what this rank raised, unless it has a failure there already. Never raises."""
    failure = Failure(
        *(rank, host, step, phase, type(error).__name__, str(error)),
        is_echo=is_echo(error),
        time=time.time(),
        exit_code=getattr(error, "exit_code", 1),
        is_spoken=True,
        trace="".join(traceback.format_exception(error))[-20_000:],
    )
    write(attempt, failure)
    return failure


def write(attempt: Path, failure: Failure) -> None:
    """Keeps what is there: of one rank's failures the first counts. Never raises."""
    path = attempt / f"rank-{failure.rank:05d}.failure.json"
    with contextlib.suppress(OSError, DataError):
        if not path.exists():
            publish_json(path, asdict(failure))


def is_echo(error: BaseException) -> bool:
    """True for what a rank raises because of another one."""
    if type(error).__name__ in _ECHO_KINDS:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ECHO_WORDS)


def first_failure(attempt: Path, wait_seconds: float) -> Failure | None:
    """The cause, not its echo; None if no rank has a failure. Waits so long for a cause while there are only echoes.

    Times of different hosts decide only between failures that are no echoes.
    """
    until = time.monotonic() + wait_seconds
    while True:
        found = _recorded(attempt)
        world_size, hosts = _ranks(attempt)
        causes = [failure for failure in found if not failure.is_echo]
        if causes or time.monotonic() >= until or len(found) >= world_size:
            break
        time.sleep(_POLL_SECONDS)
    if causes:
        return min(causes, key=lambda failure: failure.time)
    silent = sorted(set(range(world_size)) - {failure.rank for failure in found})
    if found and silent:
        return _silence(silent, hosts, found)
    return min(found, key=lambda failure: failure.time, default=None)


def told(attempt: Path, mine: Failure, error: Exception) -> Exception:
    """What this rank should raise in place of `error`, which it has recorded as `mine`, so that all ranks together say
    each failure once.

    An echo becomes a RunFailedError that names the first failure and has its exit code; an error with an exit code of
    its own becomes one with the same text; any other stays as it is.
    """
    if mine.is_echo and not isinstance(error, FencedError) and (first := first_failure(attempt, WAIT_SECONDS)):
        is_said = mine.rank != _speaker(attempt, first)
        return RunFailedError(str(error) if first == mine else first.describe(), first.exit_code, is_said=is_said)
    if not hasattr(error, "exit_code"):
        return error
    is_said = mine.rank != 0 and _first_rank_says(attempt, mine.message)
    return RunFailedError(mine.message if mine.rank == 0 else mine.describe(), mine.exit_code, is_said=is_said)


def tell_torchrun(error_file: Path | None, error: Exception) -> None:
    """Writes the error where torchrun's summary takes it from: what torch.distributed.elastic's `record` would write,
    with the text alone where that says it better than a trace. Never raises."""
    if error_file is None:
        return
    worded = f"error: {error}" if hasattr(error, "exit_code") else "".join(traceback.format_exception(error))
    extra = {"py_callstack": worded, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        error_file.write_text(
            json.dumps({"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}})
        )


def _speaker(attempt: Path, first: Failure) -> int:
    """The rank that names the first failure: rank 0, or the lowest that is left if it is rank 0 that died."""
    if first.rank != 0 or first.is_spoken:
        return 0
    return min((failure.rank for failure in _recorded(attempt) if failure.is_spoken), default=0)


def _first_rank_says(attempt: Path, message: str) -> bool:
    """True if rank 0 raises the same: what is found by all ranks together is said once."""
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        if any(failure.rank == 0 and failure.message == message for failure in _recorded(attempt)):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _silence(silent: list[int], hosts: list[str], found: list[Failure]) -> Failure:
    """Of ranks that left no word while all others lost their connections."""
    places = [hosts[rank] if rank < len(hosts) else "an unknown host" for rank in silent]
    others = f" (and {len(silent) - 1} more: {', '.join(map(str, silent[1:6]))} …)" if silent[1:] else ""
    latest = max(found, key=lambda failure: failure.step)
    return Failure(
        *(silent[0], places[0], latest.step, latest.phase, "silence"),
        message=f"left no word{others}: killed from outside (memory?), crashed, or its machine was lost; "
        f"rank {latest.rank} noticed: {latest.message.strip().partition(chr(10))[0]}",
        is_echo=False,
        time=min(failure.time for failure in found),
    )


def _recorded(attempt: Path) -> list[Failure]:
    found: list[Failure] = []
    for path in sorted(attempt.glob("rank-*.failure.json")):
        tree = read_facts(path, _TYPES)
        with contextlib.suppress(TypeError):  # of another version
            found.append(Failure(**{key: value for key, value in tree.items() if key in _TYPES}))
    return found


def _ranks(attempt: Path) -> tuple[int, list[str]]:
    """(world size, host of each rank) as holder.json tells: hosts are [name, number of ranks] in the order of ranks."""
    holder = read_holder(attempt)
    hosts = [name for name, count in holder.get("hosts", []) for _ in range(count)]
    return holder.get("world_size", 0), hosts

"""`launch logs`: what a run printed.

In: a run's folder. Out: if it failed, the first failure and where its stacks are; then the end of the newest log of
its Slurm jobs (`slurm/JOBID.log`, to which each start of a job appends), or the part that belongs to one attempt. A run
that no Slurm started printed to somebody's terminal: then its events are shown, which it wrote itself.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.files import DataError
from data_prep.harmless import plain
from launch.event_words import words as event_words
from launch.look_config import LogsConfig
from launch.run_view import RunView, State
from launch.runs import Runs
from launch.status import newest_failure
from train.failure import Failure, first_failure
from train.history import read_events
from train.holder import read_holder

_TAIL_BYTES = 1 << 20
_POLL_SECONDS, _JUDGED_SECONDS = 0.5, 2.0
_START = re.compile(r"^\S+ job (?P<job>\d+) on .*, attempt (?P<start>\d+)$")
"""what each start of a job says first (launch/batch_script.py)"""


def logs(config: LogsConfig) -> int:
    runs = Runs(Path(config.folder))
    view = runs.one(config.run)
    if config.attempt is not None:
        return _attempt(view, config.attempt, config.lines)
    if (failure := newest_failure(view.path)) is not None and view.state in (State.failed, State.diverged, State.lost):
        _print([*_stacks(*failure), ""])
    log = newest_log(view.path)
    shown = 0
    if log is None:
        events = read_events(view.path)
        shown = len(events)
        _print([*_no_log(view), *map(_event, events[-config.lines :])])
    else:
        shown, lines, rest = _tail(log, config.lines)
        _print([f"--- {log}", *lines, *([] if config.follow or not rest else [rest])])
    if config.follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(runs, view, log, shown)
    return 0


def newest_log(run: Path) -> Path | None:
    return max((run / "slurm").glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)


# --- one attempt -----------------------------------------------------------------------------------------------------


def _attempt(view: RunView, number: int, n_lines: int) -> int:
    folder = view.path / "attempts" / f"{number:04d}"
    if not folder.is_dir():
        found = sorted(int(path.name) for path in (view.path / "attempts").glob("[0-9]*") if path.name.isdigit())
        held = f"{found[0]} to {found[-1]}" if found else "none"
        raise DataError(f"{view.path} has no attempt {number}; there are: {held}")
    if (failure := first_failure(folder, 0.0)) is not None:
        _print([*_stacks(folder, failure), ""])
    holder = read_holder(folder)
    job = str(holder.get("slurm_job") or "").rpartition("/")[2]
    log = view.path / "slurm" / f"{job}.log"
    if not job or not log.is_file():
        where = f"its log {log} is gone" if job else "no Slurm job made it, so nobody kept what it printed"
        events = [event for event in read_events(view.path) if event["attempt"] == number]
        _print([f"attempt {number}: {where}; its events:", *map(_event, events[-n_lines:])])
        return 0
    start = holder.get("slurm_restarts", 0) + 1
    lines = list(_part(_lines(log), start))
    _print([f"--- {log}, start {start} of the job", *lines[-n_lines:]])
    return 0


def _part(lines: Iterator[str], start: int) -> Iterator[str]:
    """From the line with which this start of the job begins to that of the next."""
    current = 1
    for line in lines:
        if found := _START.match(line):
            current = int(found["start"])
        if current == start:
            yield line


# --- the newest ------------------------------------------------------------------------------------------------------


def _stacks(folder: Path, failure: Failure) -> list[str]:
    files = [*sorted(folder.glob("rank-*.failure.json")), *sorted(folder.glob("rank-*.stacks.txt"))]
    more = [f"  … and {len(files) - 8} more"] if files[8:] else []
    return [f"first failure: {plain(failure.describe())}", *(f"  {path}" for path in files[:8]), *more]


def _no_log(view: RunView) -> list[str]:
    if (view.path / "slurm" / "job.sh").exists():
        waiting = next((job for job in view.jobs if job.waits), None)
        why = "its job was not sent, or has not begun" if waiting is None else f"job {waiting.number} waits"
        return [f"{view.name} has no log yet: {why}"]
    return [
        f"{view.name} was not started by Slurm: what it printed went to its terminal, and there is no log. Its events "
        f"({view.path / 'events.jsonl'}):"
    ]


def _event(event: dict[str, object]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(str(event["time"]))))
    return f"{when}  attempt {event['attempt']}  {event_words(event)}"


def _follow(runs: Runs, view: RunView, log: Path | None, shown: int) -> None:
    """Until the run has finished. shown: so many bytes of the log, or events where there is none, were shown already;
    a later job's log is gone on with from its beginning."""
    looked = time.monotonic()
    while True:
        newest = newest_log(view.path)
        if newest is not None and newest != log:
            if log is not None:
                _copy(log, shown)
            log, shown = newest, 0
            _print([f"--- {log}"])
        if log is not None:
            shown = _copy(log, shown)
        else:
            events = read_events(view.path)
            _print([_event(event) for event in events[shown:]])
            shown = len(events)
        if time.monotonic() - looked > _JUDGED_SECONDS:
            looked = time.monotonic()
            if runs.one(view.name).state == State.finished:
                if log is not None:
                    _copy(log, shown)
                _print([f"--- {view.name} has finished"])
                return
        time.sleep(_POLL_SECONDS)


def _copy(log: Path, offset: int) -> int:
    """Shows the whole lines after the offset; a log that became shorter is shown anew. The offset of their end."""
    with contextlib.suppress(OSError), log.open("rb") as stream:
        begin = offset if os.fstat(stream.fileno()).st_size >= offset else 0
        stream.seek(begin)
        content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        _print(whole.decode(errors="replace").splitlines())
        return begin + len(whole)
    return offset


def _tail(log: Path, n_lines: int) -> tuple[int, Sequence[str], str]:
    """(where the whole lines end, the last of them, half a line after them)"""
    with log.open("rb") as stream:
        begin = max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES)
        stream.seek(begin)
        content = stream.read()
    n_whole = content.rfind(b"\n") + 1
    whole, rest = (part.decode(errors="replace") for part in (content[:n_whole], content[n_whole:]))
    return begin + n_whole, whole.splitlines()[-n_lines:], rest


def _lines(log: Path) -> Iterator[str]:
    with log.open(errors="replace") as stream:
        for line in stream:
            yield line.rstrip("\n")


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(plain(line), flush=True)

"""What happened to a run: its attempts, how each began and ended, and what was noted on the way. No torch.

In: `attempts/NNNN/` (`train/attempt.py`), events.jsonl and metrics.jsonl of the run's folder, whole or damaged. Out: a
`History`. A run older than `attempts/` is told from events.jsonl alone, and what nobody noted is None.
"""

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from train.failure import first_failure
from train.holder import read_ended, read_holder
from train.metrics_file import is_step, last_step, read_rows

USUAL = ("started", "branched", "first_step", "saved", "stopped", "finished", "failed")
"""events of every attempt, which the table of attempts tells of"""
_COUNTS = ("attempt", "step", "world_size", "repeated_steps")


@dataclass(frozen=True)
class Story:
    """One attempt. Times are seconds since 1970 on the clock of its host."""

    number: int
    host: str | None
    job: str | None
    world_size: int | None
    started: float
    from_step: int | None
    """the checkpoint that it went on from; None if it did not come so far"""
    to_step: int | None
    """the last step that it completed"""
    ending: str
    last_sign: float
    """of life"""
    repeated_steps: int | None
    """steps of earlier attempts that it had to do again; None if it did not come so far"""
    first_step_at: float | None
    """when its first step was done"""
    is_failure: bool
    """it ended neither by itself nor as asked, and is not the one that may still be running"""

    @property
    def seconds(self) -> float:
        return self.last_sign - self.started


@dataclass(frozen=True)
class History:
    attempts: list[Story]
    notes: list[dict[str, Any]]
    """events that are not usual"""
    n_saved: int
    step_seconds: float
    """of the steps of the curve that the run made itself, each once"""
    n_steps: int
    """so many of them were learnt from"""

    @property
    def first_start(self) -> float | None:
        return self.attempts[0].started if self.attempts else None

    @property
    def until(self) -> float:
        """The last sign of life."""
        return max((story.last_sign for story in self.attempts), default=0.0)

    def waits(self) -> list[float | None]:
        """Of each attempt: seconds from the last sign of life of the one before to its first step. None for the first
        one and where it made none. Not below 0, whatever clocks say."""
        found: list[float | None] = [None]
        for before, story in itertools.pairwise(self.attempts):
            at = story.first_step_at
            found.append(None if at is None else max(0.0, at - before.last_sign))
        return found[: len(self.attempts)]

    @property
    def seconds_between_attempts(self) -> float:
        pairs = itertools.pairwise(self.attempts)
        return sum(max(0.0, story.started - before.last_sign) for before, story in pairs)

    @property
    def n_failures(self) -> int:
        return sum(story.is_failure for story in self.attempts)


def first_start(run: Path) -> float | None:
    """When the run was first started; None if nothing tells. Reads little: it is asked for at every checkpoint."""
    holder = read_holder(run / "attempts" / "0001")
    if "started" in holder:
        return float(holder["started"])
    with contextlib.suppress(OSError), (run / "events.jsonl").open(errors="replace") as stream:
        for line in stream:
            if event := _event(line):
                return event["time"]
    return None


def device_seconds_before(run: Path, attempt: int) -> float:
    """What all ranks of the attempts before this one have lived, start-up and last save and all: from the start of each
    to its last sign of life. A checkpoint cannot know it."""
    earlier = [story for story in read_stories(run) if story.number < attempt]
    return sum(story.seconds * (story.world_size or 1) for story in earlier)


def read_stories(run: Path) -> list[Story]:
    """The attempts alone: reads no more than the end of metrics.jsonl."""
    return _stories(run, read_events(run))


def read_history(run: Path) -> History:
    events = read_events(run)
    rows = read_rows(run / "metrics.jsonl")
    stories = _stories(run, events)
    begun = (stories[0].from_step or 0) if stories else 0  # what comes before is another run's work
    steps = [row for row in rows if is_step(row) and row["step"] > begun]
    return History(
        attempts=stories,
        notes=[event for event in events if event["event"] not in USUAL],
        n_saved=sum(event["event"] == "saved" for event in events),
        step_seconds=sum(row.get("seconds", 0.0) for row in steps),
        n_steps=sum("seconds" in row for row in steps),
    )


def read_events(run: Path) -> list[dict[str, Any]]:
    """Of events.jsonl, `time` in seconds since 1970; each has the `attempt` that noted it, 0 before the first."""
    try:
        lines = (run / "events.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return []
    events = [event for line in lines if (event := _event(line))]
    number = 0
    for event in events:
        number = event.get("attempt", number + (event["event"] == "started"))
        event["attempt"] = number
    return events


def _event(line: str) -> dict[str, Any]:
    """Empty if the line is torn, or a count in it is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        event = json.loads(line)
        if any(type(event.get(name, 0)) is not int for name in _COUNTS):
            return {}
        return event | {"time": datetime.fromisoformat(event["time"]).timestamp(), "event": str(event["event"])}
    return {}


def _stories(run: Path, events: Sequence[dict[str, Any]]) -> list[Story]:
    numbers = {int(path.name) for path in (run / "attempts").glob("[0-9]*") if path.name.isdigit()}
    numbers |= {event["attempt"] for event in events if event["event"] == "started"}
    stories = [_story(run, number, [e for e in events if e["attempt"] == number]) for number in sorted(numbers)]
    reached: int | None = None
    for i, story in reversed(list(enumerate(stories))):
        if story.to_step is None and story.repeated_steps is not None:
            stories[i] = dataclasses.replace(story, to_step=reached)
        if story.from_step is not None and story.repeated_steps is not None:
            reached = story.from_step + story.repeated_steps  # the log held what the one before it had done
    if stories:
        stories[-1] = _newest(stories[-1], run)
    return stories


def _story(run: Path, number: int, events: Sequence[dict[str, Any]]) -> Story:
    folder = run / "attempts" / f"{number:04d}"
    holder, ended = read_holder(folder), read_ended(folder)
    by_name = {event["event"]: event for event in events}
    times = [event["time"] for event in events]
    started = float(holder.get("started", min(times, default=0.0)))
    begun, first = by_name.get("started", {}), by_name.get("first_step", {})
    over = next((by_name[name] for name in ("finished", "stopped", "failed") if name in by_name), {})
    is_failure, ending = _ending(folder, ended, over)
    return Story(
        number=number,
        host=holder.get("host"),
        job=_job(holder),
        world_size=holder.get("world_size", begun.get("world_size")),
        started=started,
        from_step=holder.get("from_step", begun.get("step")),
        to_step=ended.get("step", over.get("step")),
        ending=ending,
        last_sign=max([started, *times, *([ended["ended"]] if "ended" in ended else _alive(folder))]),
        repeated_steps=begun.get("repeated_steps"),
        first_step_at=first.get("time"),
        is_failure=is_failure,
    )


def _newest(story: Story, run: Path) -> Story:
    """The last attempt may be running; what it has done is what the log ends with."""
    if story.to_step is None and story.from_step is not None:
        story = dataclasses.replace(story, to_step=max(story.from_step, last_step(run / "metrics.jsonl")))
    if story.ending == NO_WORD:
        story = dataclasses.replace(story, ending="no end noted: it runs, or died without a word", is_failure=False)
    return story


NO_WORD = "died without a word"


def _ending(folder: Path, ended: dict[str, Any], over: dict[str, Any]) -> tuple[bool, str]:
    """(whether it is a failure, how the attempt ended in words)."""
    how = ended.get("how", over.get("event"))
    match how:
        case "finished":
            return False, "finished"
        case "stopped":
            return False, f"stopped by {over['reason']}" if over.get("reason") else "stopped as asked"
        case _:
            if words := _first_failure(folder):
                return True, f"failed: {words}"
            return True, f"failed: {over.get('error', 'nobody noted why')}" if how == "failed" else NO_WORD


def _first_failure(folder: Path) -> str | None:
    """The cause, in one line, if a rank left word."""
    failure = first_failure(folder, 0.0)
    return None if failure is None else failure.describe()


def _job(holder: dict[str, Any]) -> str | None:
    """As schedulers call it."""
    if holder.get("slurm_job"):
        return f"Slurm {holder['slurm_job']}" + (f", start {n + 1}" if (n := holder.get("slurm_restarts", 0)) else "")
    if holder.get("torchrun"):
        return f"torchrun, start {holder.get('torchrun_restarts', 0) + 1}"
    return f"pid {holder['pid']}" if "pid" in holder else None


def _alive(folder: Path) -> list[float]:
    """The times in an attempt's sign of life."""
    with contextlib.suppress(OSError):
        return [float(word) for word in re.findall(r"\b\d{9,11}(?:\.\d+)?\b", (folder / "alive").read_text())]
    return []

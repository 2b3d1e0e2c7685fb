"""`launch status`: how the runs of a folder stand, once and in plain text.

In: a folder of runs. Out: a table of all, what needs a person first; or all that is known of one, down to the command
that goes on with it; or either as JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.files import DataError
from data_prep.harmless import plain
from launch import words
from launch.again import command
from launch.event_words import words as event_words
from launch.look_config import StatusConfig
from launch.run_view import ALIVE, STEPPING, RunView, State, finite
from launch.runs import Runs
from train.checkpoint.folders import folder_name, steps_found
from train.failure import Failure, first_failure
from train.history import NO_WORD, Story, read_events, read_stories

_SHOWN_EVENTS = 10


def status(config: StatusConfig) -> int:
    runs = Runs(Path(config.folder))
    if config.run is not None:
        view = runs.one(config.run)
        print(_json(_tree(view)) if config.json else "\n".join(_one(view)))
        return 0
    views = runs.refresh(wait=True)
    if config.json:
        print(_json({"schema_version": 1, "folder": config.folder, "runs": [view.to_tree() for view in views]}))
        return 0
    print("\n".join(overview(views)) if views else f"no runs in {config.folder}")
    if runs.problem:
        print(f"\n{runs.problem}", file=sys.stderr)
    return 0


def overview(views: list[RunView], now: float | None = None) -> list[str]:
    """The table, and below it what needs a person."""
    now = time.time() if now is None else now
    heads = ["run", "state", "step", "done", "loss", "bits/byte", "tokens/s", "MFU", "ETA", "cost", "try", "last event"]
    rows = [heads, *([*_cells(view), _event(view, now)] for view in views)]
    lines = words.table(rows, left=(0, 1, 11))
    concerns = [f"! {view.name}: {words.cut(view.concern, 400)}" for view in views if view.concern]
    return [*lines, *([""] if concerns else []), *concerns]


def _cells(view: RunView) -> list[str]:
    if view.state == State.foreign:
        return [view.name, "no run", *["-"] * 9]
    of_now = view.state in STEPPING
    return [
        view.name,
        view.state,
        f"{'-' if view.step is None else view.step}/{view.total_steps or '?'}",
        words.share(view.done),
        words.fixed(view.loss),
        words.fixed(view.bits_per_byte),
        words.number(view.tokens_per_second) if of_now else "-",
        words.share(view.mfu) if of_now else "-",
        words.duration(view.eta_seconds),
        words.usd(view.cost_usd),
        "-" if view.attempt is None else str(view.attempt),
    ]


def _event(view: RunView, now: float) -> str:
    if view.event is None:
        return "-"
    age = "" if view.event_time is None else f", {words.duration(now - view.event_time)} ago"
    return f"{words.cut(view.event, 70)}{age}"


# --- one run -------------------------------------------------------------------------------------------------------


def _one(view: RunView) -> Iterator[str]:
    now = time.time()
    done = "" if view.done is None else f", step {view.step} of {view.total_steps} ({view.done:.1%})"
    yield f"{view.name}: {'no run is in this folder' if view.state == State.foreign else view.state}{done}"
    if view.concern:
        yield f"! {view.concern}"
    if view.state == State.foreign:
        return
    yield ""
    yield from (f"  {name:<12} {text}" for name, text in _facts(view, now))
    for title, lines in (
        ("attempts", _attempts(view)),
        ("first failure of the newest attempt", _failure(view)),
        ("checkpoints", _checkpoints(view.path)),
        (f"the last {_SHOWN_EVENTS} events", _events(view.path, now)),
    ):
        if found := list(lines):
            yield from ("", f"{title}:", *(f"  {line}" for line in found))
    yield from ("", *(f"  {name:<12} {text}" for name, text in _next(view)))


def _facts(view: RunView, now: float) -> Iterator[tuple[str, str]]:
    if view.event:
        yield "last event", _event(view, now)
    if view.loss is not None:
        yield "loss", f"{words.fixed(view.loss, 4)}  {words.spark(view.recent_losses, 40).rstrip()}"
    if view.val_loss is not None:
        yield "validation", f"{words.fixed(view.val_loss, 4)} = {words.fixed(view.bits_per_byte, 4)} bits/byte"
    if view.tokens is not None:
        yield "tokens", f"{view.tokens:,}" + (f" of {view.total_tokens:,}" if view.total_tokens else "")
    if view.tokens_per_second is not None:
        yield "speed", f"{words.number(view.tokens_per_second)} tokens/s, MFU {words.share(view.mfu)}"
    if view.memory_gib is not None:
        yield "memory", f"{view.memory_gib:.2f} GiB at most, on the rank that used most"
    if view.eta_seconds is not None:
        yield "ends in", words.duration(view.eta_seconds)
    if view.device_hours is not None:
        cost = "no price given" if view.cost_usd is None else words.usd(view.cost_usd)
        yield "spent", f"{view.device_hours:.4g} device-hours so far: {cost}"
    if view.attempt is not None:
        yield "attempt", f"{view.attempt} on {view.host or '?'}, {_ranks(view.world_size)}"
    for job in view.jobs:
        where = f" on {job.nodes}" if job.nodes else f": {plain(job.why())}" if job.waits else ""
        yield "Slurm job", f"{job.number} {job.state}{where}, {job.elapsed} of {job.limit}"
    for problem in view.problems:
        yield "problem", problem


def _attempts(view: RunView) -> list[str]:
    stories = stories_of(view)
    if not stories:
        return []
    head = ["no.", "started (UTC)", "lasted", "host", "job", "ranks", "from", "to", "again", "how it ended"]
    rows = [
        [
            *(str(story.number), _clock(story.started), words.duration(story.seconds), story.host, story.job),
            *(story.world_size, story.from_step, story.to_step, story.repeated_steps, story.ending),
        ]
        for story in stories
    ]
    return words.table([head, *([_cell(fact) for fact in row] for row in rows)], left=(1, 3, 4, 9))


def stories_of(view: RunView) -> list[Story]:
    """Its attempts; of the newest, whether it runs is known by now."""
    stories = read_stories(view.path)
    match view.state:
        case State.starting | State.running | State.saving if stories:
            stories[-1] = dataclasses.replace(stories[-1], ending="it runs")
        case State.lost if stories:
            stories[-1] = dataclasses.replace(stories[-1], ending=NO_WORD)
        case _:
            pass
    return stories


def newest_failure(run: Path) -> tuple[Path, Failure] | None:
    """Of the newest attempt: its folder, and why it failed."""
    stories = read_stories(run)
    if not stories:
        return None
    folder = run / "attempts" / f"{stories[-1].number:04d}"
    failure = first_failure(folder, 0.0)
    return None if failure is None else (folder, failure)


def _failure(view: RunView) -> Iterator[str]:
    found = newest_failure(view.path)
    if found is None:
        return
    folder, failure = found
    yield f"rank {failure.rank} on {plain(failure.host)}, after step {failure.step}, in phase `{plain(failure.phase)}`"
    yield from (f"{line}" for line in plain(f"{failure.kind}: {failure.message.strip()}").splitlines()[:12])
    for path in (*sorted(folder.glob("rank-*.failure.json"))[:4], *sorted(folder.glob("*.stacks.txt"))[:4]):
        yield str(path)


def _checkpoints(run: Path) -> list[str]:
    folder = run / "checkpoints"
    saved = {
        event["step"]: event["time"] for event in read_events(run) if event["event"] == "saved" and "step" in event
    }
    rows: list[list[str]] = []
    for step in sorted(steps_found(folder)):
        path = folder / folder_name(step)
        when = _clock(saved[step]) if step in saved else "-"
        rows.append([str(step), words.size(_bytes_in(path)), when, path.name])
    if not rows:
        return []
    rows[-1][-1] += "  (newest)"
    damaged = [f"{path.name}: set aside, it did not verify" for path in sorted(folder.glob("damaged-*"))]
    return [*words.table([["step", "size", "saved (UTC)", "folder"], *rows], left=(2, 3)), *damaged]


def _bytes_in(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0


def _events(run: Path, now: float) -> list[str]:
    newest = read_events(run)[-_SHOWN_EVENTS:]
    ages = [[f"{words.duration(now - event['time'])} ago", event_words(event)] for event in newest]
    return words.table(ages, left=(1,)) if ages else []


def _next(view: RunView) -> Iterator[tuple[str, str]]:
    yield "folder", str(view.path)
    if logs := sorted((view.path / "slurm").glob("*.log"), key=lambda path: path.stat().st_mtime):
        yield "log", f"{logs[-1]}  (python -m launch logs run={view.name})"
    if view.state in (State.finished, *ALIVE) or any(not job.is_over for job in view.jobs):
        return
    found = command(view.path, view.world_size or 1)
    yield "to go on", found or "type the command again with which it was begun"


# --- for programs --------------------------------------------------------------------------------------------------


def _tree(view: RunView) -> dict[str, Any]:
    """All that `_one` tells."""
    failure = newest_failure(view.path)
    return {
        "schema_version": 1,
        **view.to_tree(),
        "attempts": [vars(story) for story in stories_of(view)],
        "failure": None if failure is None else vars(failure[1]),
        "checkpoints": sorted(steps_found(view.path / "checkpoints")),
        "events": read_events(view.path),
    }


def _json(tree: dict[str, Any]) -> str:
    try:
        return json.dumps(finite(tree), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"this cannot be said in JSON: {error}") from None


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _ranks(count: int | None) -> str:
    return "1 rank" if count == 1 else f"{count or '?'} ranks"


def _cell(fact: object) -> str:
    return "-" if fact is None else " ".join(plain(str(fact)).split())

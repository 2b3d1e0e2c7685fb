"""Events of a run (events.jsonl) in plain words."""

from typing import Any

from data_prep.harmless import plain

Event = dict[str, Any]
_LONGEST = 300


def words(event: Event) -> str:
    """In one line, without its time; no value of it can do harm on a terminal."""
    match event.get("event"):
        case "started":
            again = f", {n} steps to do again" if (n := event.get("repeated_steps")) else ""
            text = f"started from step {_of(event, 'step')} on {_ranks(event.get('world_size'))}{again}"
        case "first_step":
            text = f"first step done ({_of(event, 'step')})"
        case "saved":
            text = f"saved step {_of(event, 'step')}"
        case "stopped":
            reason = event.get("reason")
            text = f"stopped at step {_of(event, 'step')} " + (f"by {reason}" if reason else "as asked")
        case "finished":
            text = f"finished at step {_of(event, 'step')}"
        case "failed":
            text = f"failed after step {_of(event, 'step')}: {_of(event, 'error')}"
        case "flagged":
            text = f"step {_of(event, 'step')} flagged: {_of(event, 'detail')}: {_of(event, 'outcome')}"
        case "rolled_back":
            text = f"went back from step {_of(event, 'at_step')} to {_of(event, 'to_step')}"
        case "slow_rank":
            text = f"rank {_of(event, 'rank')} is slow: {_of(event, 'ratio')} times the others' work"
        case "save_failed":
            text = f"step {_of(event, 'step')} could not be saved: {_of(event, 'problem')}"
        case other:
            text = f"{str(other).replace('_', ' ')}: {facts(event)}".removesuffix(": ")
    line = " ".join(plain(text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def facts(event: Event) -> str:
    """What it has besides its name, time and attempt."""
    return ", ".join(f"{key} {event[key]}" for key in event if key not in ("time", "attempt", "event"))


def _of(event: Event, key: str) -> str:
    return str(event.get(key, "?"))


def _ranks(count: object) -> str:
    return "1 rank" if count == 1 else f"{'?' if count is None else count} ranks"

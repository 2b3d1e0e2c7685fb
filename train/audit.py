"""What happened to a run, in one place, and whether it was fed what it should have been: nothing lost, nothing twice.

    python -m train.audit run=runs/hello               # its attempts, incidents and time; then the ledger
    python -m train.audit run=runs/hello json=true     # the same for programs
    python -m train.audit run=runs/hello ledger=false  # only what happened: reads no data

The ledger is computed from the datasets and the phases in the newest checkpoint, without a model, and compared with
metrics.jsonl step by step. Exit code 0 if it balances, 3 if not, with the first step that differs.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conf.compose import App, entry
from data_prep.files import DataError
from train.effective import best_interval, device_time_ratio, effective_time_ratio, time_lost
from train.history import History, read_history
from train.ledger import Ledger, balance
from train.metrics_file import read_lines
from train.rows import Packs, open_rows
from train.run_folder import RunFolder, config_of
from train.trace import open_trace, print_table

SHOWN_PROBLEMS = 20


@dataclass
class AuditCommand:
    run: str
    """the run's folder"""
    ledger: bool = True
    """compute what every step was fed, and compare: reads all data of the run, a few thousand rows a second"""
    json: bool = False
    """print one JSON object"""

    def problems(self) -> list[str]:
        return []


def ledger_of(run: Path) -> Ledger:
    """Raises DataError if the run has no checkpoint yet, or a dataset of it is gone or was changed."""
    trace, config, corpora = open_trace(run)
    packs = Packs(config.data.pack_folder, verify=False)
    opened = [open_rows(phase, corpora, config.run.seed, packs) for phase in trace.phases]
    newest = RunFolder(config).newest_state()
    saved_step = newest[0] if newest else 0
    rows, n_damaged = read_lines(run / "metrics.jsonl")
    ledger = balance(rows, saved_step, trace.phases, opened, config.run.seed)
    ledger.damaged_lines = n_damaged
    return ledger


@dataclass(frozen=True)
class Time:
    """Where the time of a run went, in seconds by the clock."""

    total: float
    """from the first start to the last sign of life"""
    steps: float
    """that count, each once"""
    between_attempts: float
    other: float
    """inside attempts: start-up, evaluations, saves, steps done again"""
    effective_time_ratio: float | None
    device_time_ratio: float | None
    """of the time of all devices, as of the last summary"""
    save: float | None
    """for which training stood still, for one checkpoint"""
    between_failures: float | None
    """None if there was none"""
    between_saves: float | None
    """of training, as configured"""
    best_between_saves: float | None
    """sqrt(2 x save x between_failures)"""


def time_of(history: History, summary: dict[str, Any], save_every_steps: int) -> Time:
    total = max(history.step_seconds, history.until - (history.first_start or 0.0))
    between, n_failures = min(history.seconds_between_attempts, total - history.step_seconds), history.n_failures
    hours = summary.get("device_hours", {})
    n_devices = summary.get("n_devices", 1)
    save = hours["checkpoint"] * 3600 / n_devices / history.n_saved if hours and history.n_saved else None
    failing = sum(story.seconds for story in history.attempts) / n_failures if n_failures else None
    step = history.step_seconds / history.n_steps if history.n_steps else None
    return Time(
        total=total,
        steps=history.step_seconds,
        between_attempts=between,
        other=total - history.step_seconds - between,
        effective_time_ratio=effective_time_ratio(history.step_seconds, 0.0, total),
        device_time_ratio=device_time_ratio(hours.get("train", 0.0), sum(hours.values())),
        save=save,
        between_failures=failing,
        between_saves=None if step is None else save_every_steps * step,
        best_between_saves=best_interval(save, failing) if save and failing else None,
    )


def _run(command: AuditCommand) -> int:
    run = Path(command.run)
    config = config_of(run)
    history = read_history(run)
    time = time_of(history, _summary(run), config.checkpoint.every_steps)
    ledger, refused = None, None
    if command.ledger:
        try:
            ledger = ledger_of(run)
        except DataError as error:
            refused = str(error)
    if command.json:
        print(json.dumps(_tree(history, time, ledger, refused), indent=2))
    else:
        _print(history, time, ledger, refused)
    return DataError.exit_code if refused or (ledger is not None and not ledger.balances) else 0


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


# --- for programs


def _tree(history: History, time: Time, ledger: Ledger | None, refused: str | None) -> dict[str, Any]:
    attempts = [
        asdict(story) | {"wait_seconds": wait} for story, wait in zip(history.attempts, history.waits(), strict=True)
    ]
    found = None if ledger is None else asdict(ledger) | {"balances": ledger.balances}
    return {
        "schema_version": 1,
        "attempts": attempts,
        "incidents": history.notes,
        "time": asdict(time),
        "ledger": found,
        "refused": refused,
    }


# --- for people


def _print(history: History, time: Time, ledger: Ledger | None, refused: str | None) -> None:
    columns = ["attempt", "started (UTC)", "host", "job", "ranks", "from", "to", "again", "wait", "how it ended"]
    print_table(columns, list(_lines(history)))
    print(
        "\n'again': steps done a second time; 'wait': from the last sign of life before to the first step, in seconds"
    )
    if history.notes:
        print("\nin between:")
        for event in history.notes:
            print(f"  {_clock(event['time'])}  attempt {event['attempt']}: {event['event']}: {_facts(event)}")
    print("\ntime:")
    for line in _time_lines(time):
        print(f"  {line}")
    if refused is not None:
        print(f"\nno ledger: {refused}")
    if ledger is not None:
        print("\nledger:")
        for line in _ledger_lines(ledger):
            print(f"  {line}")


def _facts(event: dict[str, Any]) -> str:
    """In a line; of a flagged step what matters first, the rest is in events.jsonl."""
    if event["event"] == "flagged":
        where = ", ".join(f"rank {place['rank']} on {place['host']}" for place in event.get("ranks", []))
        return f"step {event['step']}: {event['detail']}" + (f" ({where})" if where else "") + f": {event['outcome']}"
    return ", ".join(f"{key} {_short(event[key])}" for key in event if key not in ("time", "attempt", "event"))


def _lines(history: History) -> Iterator[list[str]]:
    for story, wait in zip(history.attempts, history.waits(), strict=True):
        facts = (story.number, _clock(story.started), story.host, story.job, story.world_size)
        steps = (story.from_step, story.to_step, story.repeated_steps)
        yield [_cell(fact) for fact in (*facts, *steps, None if wait is None else round(wait, 1), story.ending)]


def _time_lines(time: Time) -> Iterator[str]:
    def share(seconds: float) -> str:
        return f"{seconds:.1f} s ({seconds / time.total:.1%})" if time.total else f"{seconds:.1f} s"

    ratio, devices = time.effective_time_ratio, time.device_time_ratio
    yield f"{time.total:.1f} s from the first start to the last sign of life"
    yield f"{share(time.steps)} in steps that count; this is the effective-time ratio, {_ratio(ratio)}"
    yield f"{share(time.other)} in start-up, evaluations, saves and steps done again"
    yield f"{share(time.between_attempts)} between attempts, with nothing running"
    yield f"of the time of all devices, {_ratio(devices)} went into steps that count"
    if time.save and time.between_failures and time.best_between_saves and time.between_saves:
        best, configured = time.best_between_saves, time.between_saves
        yield (
            f"a failure every {time.between_failures:.0f} s, a save stops training for {time.save:.3f} s: best is a "
            f"checkpoint every {best:.1f} s of training, {time_lost(best, time.save, time.between_failures):.1%} lost; "
            f"configured (checkpoint.every_steps): every {configured:.1f} s, "
            f"{time_lost(configured, time.save, time.between_failures):.1%} lost"
        )


def _ledger_lines(ledger: Ledger) -> Iterator[str]:
    yield f"{ledger.steps} steps, {ledger.tokens:,} tokens"
    yield (
        f"tokens lost {ledger.tokens_lost:,}, repeated {ledger.tokens_repeated:,}, other than they should be "
        f"{ledger.tokens_other:,}"
    )
    if ledger.damaged_lines:
        yield f"{ledger.damaged_lines} lines of metrics.jsonl are no rows of a run"
    yield f"{len(ledger.skipped)} steps were left out on purpose"
    for step, reason in ledger.skipped[:SHOWN_PROBLEMS]:
        yield f"  step {step}: {reason}"
    if ledger.balances:
        yield "it balances: every step once, in order, fed exactly what it should have been"
        return
    yield f"IT DOES NOT BALANCE, first at step {ledger.problems[0][0]}:"
    for step, problem in ledger.problems[:SHOWN_PROBLEMS]:
        yield f"  step {step} {problem}"
    if len(ledger.problems) > SHOWN_PROBLEMS:
        yield f"  ... {len(ledger.problems)} such lines in all"


def _cell(fact: object) -> str:
    return "-" if fact is None else str(fact)


def _ratio(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"{ratio:.3f}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


def main() -> None:
    entry(App("audit", AuditCommand, {}), _run)


if __name__ == "__main__":
    main()

"""What to say of a run first: sentences with a judgement, and its plan beside what came. Pure functions."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launch import words
from launch.expected import Expected
from launch.rows import Row, figure
from launch.run_view import RunView, State
from train.history import Story

Judgement = Literal["good", "bad", "neutral"]
_CLOSE = 1.25
"""a plan is met within this factor"""


@dataclass(frozen=True)
class Verdict:
    judgement: Judgement
    text: str


@dataclass(frozen=True)
class Compared:
    """A quantity of the plan, and what came."""

    name: str
    planned: str
    came: str
    ratio: float | None
    """came over planned"""


def verdicts(
    view: RunView,
    stories: Sequence[Story],
    rows: Sequence[Row],
    plan: Expected,
    summary: Mapping[str, Any],
    n_incidents: int,
) -> list[Verdict]:
    found = [_where_it_stands(view), *_quality(rows, summary), *_against_plan(view, rows, plan)]
    return [*found, *_attempts(view, stories), *_steadiness(rows, n_incidents)]


def _where_it_stands(view: RunView) -> Verdict:
    done = "" if view.done is None else f" at step {view.step:,} of {view.total_steps:,} ({view.done:.1%})"
    match view.state:
        case State.finished:
            return Verdict("good", f"finished: all {view.total_steps or view.step or 0:,} steps")
        case State.failed | State.diverged | State.lost | State.damaged:
            return Verdict("bad", f"{view.state}{done}: {view.concern or 'nobody noted why'}")
        case State.stopped:
            return Verdict("neutral", f"stopped{done}; it saved, and the same command goes on")
        case _:
            eta = "" if view.eta_seconds is None else f"; {words.duration(view.eta_seconds)} to go at this pace"
            return Verdict("neutral", f"{view.state}{done}{eta}")


def _quality(rows: Sequence[Row], summary: Mapping[str, Any]) -> Iterator[Verdict]:
    evaluations = [row for row in rows if "val_loss" in row]
    if not evaluations:
        yield Verdict("neutral", "no validation yet")
        return
    bits = figure(evaluations[-1], "bits_per_byte")
    if bits is None or not math.isfinite(bits):
        yield Verdict("bad", "the last validation loss is no number")
        return
    baselines = _baselines(summary)
    beaten = [f"{name} ({value:.3f})" for name, value in baselines if bits < value]
    unbeaten = [f"{name} ({value:.3f})" for name, value in baselines if bits >= value]
    text = f"{bits:.4f} bits per byte on the validation text"
    text += f": better than {', '.join(beaten)}" if beaten else ""
    text += f"{', but' if beaten else ':'} not better than {', '.join(unbeaten)}" if unbeaten else ""
    yield Verdict("good" if beaten and not unbeaten else "neutral" if beaten else "bad", text)
    best = min(evaluations, key=lambda row: figure(row, "val_loss") or math.inf)
    if best is not evaluations[-1] and figure(best, "val_loss"):
        yield Verdict(
            "neutral", f"its best validation was at step {best['step']:,}: {figure(best, 'val_loss'):.4f} nats"
        )


def _baselines(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Hardest last."""
    held = summary.get("baselines")
    held = held if isinstance(held, dict) else {}
    named = {"uniform_bits_per_byte": "guessing", "gzip_bits_per_byte": "gzip -9", "xz_bits_per_byte": "xz"}
    return [(name, value) for key, name in named.items() if (value := figure(held, key)) is not None]


def _against_plan(view: RunView, rows: Sequence[Row], plan: Expected) -> Iterator[Verdict]:
    steps = [one for one in compared(view, rows, plan) if one.name == "time of a step" and one.ratio]
    how = plan.how
    late: Judgement = "bad" if how == "predicted" else "neutral"
    for one in steps:
        ratio = one.ratio or 1.0
        if ratio > _CLOSE:
            yield Verdict(late, f"a step takes {one.came}, {ratio:.1f} times what the plan {how} ({one.planned})")
        elif ratio < 1 / _CLOSE:
            yield Verdict(
                "good", f"a step takes {one.came}, {1 / ratio:.1f} times less than the plan {how} ({one.planned})"
            )
        else:
            yield Verdict("good", f"a step takes {one.came}, as the plan {how} ({one.planned})")


def _attempts(view: RunView, stories: Sequence[Story]) -> Iterator[Verdict]:
    if len(stories) < 2:
        return
    again = sum(story.repeated_steps or 0 for story in stories)
    failures = sum(story.is_failure for story in stories)
    yield Verdict(
        "neutral",
        f"{len(stories)} attempts, {failures} of which failed; {again} steps were done again, none is counted twice",
    )


def _steadiness(rows: Sequence[Row], n_incidents: int) -> Iterator[Verdict]:
    steps = [row for row in rows if "loss" in row]
    broken = sum(not math.isfinite(figure(row, "loss") or 0.0) for row in steps)
    skipped = sum("skipped" in row for row in rows)
    if broken:
        yield Verdict("bad", f"{broken} steps have a loss that is no number")
    if skipped:
        yield Verdict("neutral", f"{skipped} steps were left out on purpose")
    if n_incidents:
        yield Verdict("neutral", f"{n_incidents} incident{'s' * (n_incidents > 1)}, told of in a table below")


def compared(view: RunView, rows: Sequence[Row], plan: Expected) -> list[Compared]:
    """Only of what both sides know."""
    steps = [row for row in rows if "loss" in row]
    done = view.done or 0.0
    hours, usd = _times(plan.device_hours, done), _times(plan.cost_usd, done)
    found = [
        _one("time of a step", plan.step_seconds, _median(steps, "seconds"), lambda value: f"{value:.3g} s"),
        _one("tokens per second", plan.tokens_per_second, _median(steps, "tokens_per_second"), words.number),
        _one("MFU", plan.mfu, _median(steps, "mfu"), words.share),
        _one("most memory in tensors", plan.tensor_bytes, _gib(steps), words.size),
        _one("device-hours so far", hours, view.device_hours, lambda value: f"{value:.4g}"),
        _one("cost so far", usd, view.cost_usd, words.usd),
    ]
    return [one for one in found if one is not None]


def _one(name: str, planned: float | None, came: float | None, show: Any) -> Compared | None:
    if planned is None or came is None:
        return None
    ratio = came / planned if planned > 0 and math.isfinite(came) else None
    return Compared(name, show(planned), show(came), ratio)


def _times(value: float | None, share: float) -> float | None:
    return None if value is None else value * share


def _median(rows: Sequence[Row], key: str) -> float | None:
    values = [value for row in rows if (value := figure(row, key)) is not None and math.isfinite(value)]
    return statistics.median(values) if values else None


def _gib(rows: Sequence[Row]) -> float | None:
    """The most that any step used, in bytes."""
    values = [value for row in rows if (value := figure(row, "memory_gib")) is not None and math.isfinite(value)]
    return max(values) * 2**30 if values else None

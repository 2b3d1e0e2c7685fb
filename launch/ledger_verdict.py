"""Which runs are what they were meant to be: ok, diverged, partial; and of those that were tuned, edge.

In: a run's summary and the losses of its steps, or all rows of a ledger. Out: verdicts with their reason. Whether a
run lies far above its neighbours is for the fits to judge (`launch/scaling/rows.py`), by the rows that they use.

A run has diverged if it says so, if it finished without a finite validation loss, or if its losses end high: the
median of the last W step losses (W a fiftieth of what is looked at, at least 5) lies above the lowest median of any
W before by more than a tenth, and by more than six times the noise of such a median. Tuned are rows of one cell
and length (but for a step, as batches of several sizes cannot all end there) that differ in peak_lr or
global_batch_size: where the best of at least three values is the smallest or the largest tried, the optimum may lie
beyond, and its rows are edge. A value at which a run diverged was tried; one that is still partial was not.
"""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch.ledger_row import LedgerRow
from launch.rows import GrowingRows, Row, figure
from launch.scaling.rows import Verdict

RISE = 0.1
NOISES = 6.0
LEAST_VALUES = 3
_LEAST_WINDOW, _SHARE = 5, 50
_MEDIAN_NOISE = 1.2533
"""standard deviation of a median against that of a mean, of normal numbers"""
_SIGMA = 1.4826
"""standard deviation over the median of absolute deviations, of normal numbers"""


def judge(summary: dict[str, Any], losses: str, ending: str) -> tuple[Verdict, str]:
    """(verdict, why). losses: what is wrong with how they ended; ending: of the last attempt, in words."""
    status, where = summary["status"], f"at step {summary.get('step')} of {summary.get('total_steps')}"
    ended = f": {ending.removeprefix('failed: ')}" if ending else ""
    match status:
        case "finished":
            pass
        case "diverged":
            return Verdict.diverged, f"stopped as diverged {where}{ended}"
        case "running":  # so says a process that could not say more, too
            return Verdict.partial, f"not finished {where}{ended}"
        case _:
            return Verdict.partial, f"{status} {where}{ended}"
    if not summary["schedule_finished"]:
        return Verdict.partial, f"its schedule does not end {where}"
    loss = figure(summary, "val_loss")
    if loss is None or not math.isfinite(loss):
        return Verdict.diverged, f"it finished with a validation loss of {'none' if loss is None else loss}"
    return (Verdict.diverged, losses) if losses else (Verdict.ok, "")


# --- how the losses ended --------------------------------------------------------------------------------------------


def ending_of_losses(file: Path, is_of_one_text: bool) -> tuple[str, str]:
    """(what is wrong with the last losses, why that cannot be told)."""
    rows = GrowingRows(file)
    rows.refresh()
    last, curve = _losses(rows.recent), _losses(rows.curve)
    if not last:
        return "", "no steps in metrics.jsonl: a spike at the end would not be seen"
    if not is_of_one_text:
        return "", "its text changes on the way: a spike at the end is not looked for"
    return spike(curve, last), ""


def spike(curve: Sequence[float], last: Sequence[float]) -> str:
    """What is wrong with losses that end so; nothing if they end well. curve: evenly over the run."""
    window = max(_LEAST_WINDOW, len(curve) // _SHARE)
    if not all(map(math.isfinite, last[-window:])):
        return f"its last {window} losses are not all finite"
    finite = [loss for loss in curve if math.isfinite(loss)]
    if len(finite) < 2 * window:
        return ""
    medians = [statistics.median(finite[i : i + window]) for i in range(len(finite) - window + 1)]
    best, final = min(medians), statistics.median(last[-window:])
    noise = _MEDIAN_NOISE * _noise(finite) / math.sqrt(window)
    if final - best <= max(RISE * best, NOISES * noise):
        return ""
    return f"its losses end at {final:.4g}, {final / best - 1:.0%} above the {best:.4g} that it had reached"


def _losses(rows: Sequence[Row]) -> list[float]:
    """NaN too; steps that were left out have none."""
    return [float(row["loss"]) for row in rows if isinstance(row.get("loss"), int | float)]


def _noise(losses: Sequence[float]) -> float:
    """Of one loss: from the differences of neighbours, so that neither the descent nor a jump counts."""
    return _SIGMA * statistics.median(abs(b - a) for a, b in pairwise(losses)) / math.sqrt(2)


# --- edges of what was tried -----------------------------------------------------------------------------------------


def with_edges(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """The same rows, with `edge` for the best of a cell where it is at the end of what was tried, and only there."""
    rows = [_unflagged(row) for row in rows]
    cells: dict[tuple[str | None, ...], list[LedgerRow]] = defaultdict(list)
    for row in rows:
        if row.cell_sha256 and row.verdict != Verdict.partial:
            key = (row.cell_sha256, row.family, row.manifest_sha256, row.tokenizer_sha256, row.validation_sha256)
            cells[key].append(row)
    edges = {id(row): why for cell in cells.values() for one in _by_length(cell) for row, why in _edges(one)}
    return [_flagged(row, edges[id(row)]) if id(row) in edges else row for row in rows]


def _by_length(cell: Sequence[LedgerRow]) -> list[list[LedgerRow]]:
    """Runs of other batches end up to a step later or earlier."""
    found: list[list[LedgerRow]] = []
    for row in sorted(cell, key=_length):
        if found and _length(row) - _length(found[-1][0]) < max(row.tokens_per_step or 0, 1):
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _length(row: LedgerRow) -> int:
    """As it was meant to be."""
    if row.total_steps is None or row.tokens_per_step is None:
        return row.tokens_seen
    return row.total_steps * row.tokens_per_step


def _unflagged(row: LedgerRow) -> LedgerRow:
    return dataclasses.replace(row, verdict=Verdict.ok, why="") if row.verdict == Verdict.edge else row


def _flagged(row: LedgerRow, why: str) -> LedgerRow:
    why = f"{why}; {row.why}" if row.why else why
    return dataclasses.replace(row, verdict=Verdict.edge, why=why)


Point = tuple[float, int]
"""learning rate and batch"""


def _edges(cell: Sequence[LedgerRow]) -> list[tuple[LedgerRow, str]]:
    losses: dict[Point, list[float]] = defaultdict(list)
    for row in cell:
        losses[_point(row)].append(math.inf if row.verdict == Verdict.diverged else row.val_loss or math.inf)
    means = {point: statistics.fmean(found) for point, found in losses.items()}
    best = min(means, key=lambda point: means[point])
    if not math.isfinite(means[best]):
        return []
    rates = _words("peak_lr", best[0], {lr for lr, batch in means if batch == best[1]}, lambda lr: f"{lr:.3g}")
    batches = _words("global_batch_size", best[1], {batch for _, batch in means}, lambda batch: f"{batch:.0f}")
    why = "; ".join(part for part in (rates, batches) if part)
    return [(row, why) for row in cell if why and _point(row) == best]


def _point(row: LedgerRow) -> Point:
    return row.peak_lr or 0.0, row.global_batch_size or 0


def _words(name: str, best: float, tried: set[float] | set[int], word: Callable[[float], str]) -> str:
    if len(tried) < LEAST_VALUES or best not in (min(tried), max(tried)):
        return ""
    beyond = "below" if best == min(tried) else "above"
    return f"try {name} {beyond} {word(best)}: the best of {len(tried)} tried, {word(min(tried))} to {word(max(tried))}"

"""What a cell will cost, before it runs: from the cells of the sweep that have ended, else from the plan.

In: cells, and the summaries of runs that are there. Out: seconds and device-hours of each cell's own steps. A plan
predicts a described GPU; of a CPU it knows a peak and assumes a share of it, which for small models is far off. Cells
that ended tell better: time per step = a + b x FLOPs per step, the two numbers that come closest (relative, both at
least 0). What a cell takes before its first step and after its last comes from them too.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.machine import find_machine
from launch.predict import predict
from launch.sweep.cells import Cell
from train.plan import Machine

START_SECONDS = 20.0
"""of a process, where no cell has told: Python and its libraries, and the reports at the end"""


@dataclass(frozen=True)
class Rates:
    """Of one step on the devices of a cell."""

    seconds: float
    seconds_per_flop: float
    """of one device"""
    aside_seconds: float
    """of a cell, for what is no step: start, evaluations, saves, end"""
    n_cells: int
    """that told"""


@dataclass(frozen=True)
class Cost:
    seconds: float
    """of the cell's own steps, and what goes with them"""
    device_hours: float
    usd: float | None
    source: str
    """what tells so"""


def costs(cells: Sequence[Cell], summaries: dict[str, dict[str, Any]]) -> dict[str, Cost]:
    """By the name of the cell. Raises ConfigError where a cell cannot be on so many devices."""
    rates = measured(cells, summaries)
    if rates is not None:
        return {cell.name: _as_others(cell, rates) for cell in cells}
    first = cells[0].config
    machine = find_machine(first.cluster, first.parallel.precision)
    return {cell.name: _as_planned(cell, machine) for cell in cells}


def measured(cells: Sequence[Cell], summaries: dict[str, dict[str, Any]]) -> Rates | None:
    """From cells that have ended; None if there is none."""
    ended = [(cell, summaries[cell.name]) for cell in cells if is_finished(cell, summaries.get(cell.name))]
    told = [(cell, _spent(summary)) for cell, summary in ended]
    told = [(cell, spent) for cell, spent in told if spent["train"] > 0]
    if not told:
        return None
    points = [(cell.flops_causal / cell.steps / cell.ranks, spent["train"] / cell.own_steps) for cell, spent in told]
    fixed, slope = _line(points)
    aside = sorted(sum(spent.values()) - spent["train"] for _, spent in told)
    return Rates(fixed, slope, aside[len(aside) // 2], len(told))


def is_finished(cell: Cell, summary: dict[str, Any] | None) -> bool:
    """Of this very configuration."""
    return (
        summary is not None
        and summary.get("status") == "finished"
        and summary.get("step") == cell.steps
        and summary.get("config_sha256") == cell.sha256
    )


def summary_of(folder: Path) -> dict[str, Any] | None:
    """None if there is none, or it is no summary."""
    try:
        found = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def own_device_hours(summary: dict[str, Any]) -> float:
    """Really spent by this run: what it shares with another one was spent there."""
    shared = (summary.get("branch") or {}).get("device_hours") or {}
    return sum((summary.get("device_hours") or {}).values()) - sum(shared.values())


def left_share(cell: Cell, summary: dict[str, Any] | None) -> float:
    """Of the cell's own steps, those that are not saved yet."""
    step = max(cell.shared_steps, int((summary or {}).get("step") or 0))
    return max(0, cell.steps - step) / cell.own_steps


def whole_device_hours(cell: Cell, cost: Cost, summary: dict[str, Any] | None, is_over: bool) -> float:
    """What was spent on the cell, and unless it is over, what is still to come."""
    spent = own_device_hours(summary) if summary else 0.0
    return spent if is_over else spent + cost.device_hours * left_share(cell, summary)


def _spent(summary: dict[str, Any]) -> dict[str, float]:
    """Own seconds of wall clock by purpose."""
    shared = (summary.get("branch") or {}).get("device_hours") or {}
    hours = {purpose: value - shared.get(purpose, 0.0) for purpose, value in summary["device_hours"].items()}
    return {purpose: max(0.0, value) * 3600 / summary["n_devices"] for purpose, value in hours.items()}


def _as_planned(cell: Cell, machine: Machine) -> Cost:
    plan = predict(cell.config, dataclasses.replace(machine, n_devices=cell.ranks)).plan
    seconds = plan.seconds * cell.own_steps / cell.steps + START_SECONDS
    source = "as planned" if plan.mfu_is == "predicted" else f"at an assumed MFU of {plan.expected_mfu:.0%}"
    return _cost(cell, seconds, source)


def _as_others(cell: Cell, rates: Rates) -> Cost:
    per_step = rates.seconds + rates.seconds_per_flop * cell.flops_causal / cell.steps / cell.ranks
    source = f"as {rates.n_cells} finished cell{'s' if rates.n_cells > 1 else ''}"
    return _cost(cell, cell.own_steps * per_step + rates.aside_seconds, source)


def _cost(cell: Cell, seconds: float, source: str) -> Cost:
    price, hours = cell.config.cluster.usd_per_device_hour, seconds * cell.ranks / 3600
    return Cost(seconds, hours, None if price is None else price * hours, source)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b), both at least 0, of the line whose relative errors have the least sum of squares."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    if spread > 1e-9 * total * mean_x**2:
        slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / spread
        if slope >= 0 and mean_y - slope * mean_x >= 0:
            return mean_y - slope * mean_x, slope
        if slope < 0:
            return mean_y, 0.0
    through_zero = sum(w * x * y for w, (x, y) in zip(weights, points, strict=True))
    return 0.0, through_zero / sum(w * x * x for w, (x, _) in zip(weights, points, strict=True))

"""What a sweep's folder holds at this moment: its plan, what came of each cell, loss curves.

In: `plan.json`, the run folders below `runs/`, rows of `ledger.jsonl` whose run folders are gone. Out: a `Sweep`, at
any time: cells that have not begun, go on, failed or were left out are there with the reason, and files that are
missing or damaged are named, never raised.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from conf.check import build
from conf.errors import ConfigError
from launch.charts import Point, smoothed
from launch.fit_config import FitChoice
from launch.ledger_files import read_known
from launch.ledger_row import LedgerRow, facts_of
from launch.rows import GrowingRows, figure
from launch.runs import RunReader
from launch.scaling.read_rows import row_of, row_of_ledger
from launch.scaling.rows import Row, Verdict
from train.parallel import identity

HOURS = ("train", "eval", "checkpoint", "idle")
_ENOUGH_EVALUATIONS = 3
_MOST_POINTS, _LEAST_POINTS = 16_000, 40
"""of all curves together, and of one"""


@dataclass(frozen=True)
class Cell:
    """One of the plan's, or a run that the plan has not."""

    run: str
    planned: Mapping[str, Any]
    summary: Mapping[str, Any]
    """of its run folder, or its row of the ledger; empty where there is none"""
    row: Row | None
    state: str
    """finished, running, failed, diverged, not started, left out …"""
    why: str
    """what there is to say of a state other than finished"""

    @property
    def held_out(self) -> bool:
        return self.planned.get("held_out") is True

    def number(self, key: str) -> float | None:
        """What the plan says, or else the run: None where neither has a finite number."""
        for facts in (self.planned, self.summary):
            value = figure(dict(facts), key)
            if value is not None and math.isfinite(value):
                return value
        return None

    @property
    def hours(self) -> dict[str, float]:
        """Device-hours by kind, as if it had run alone."""
        held = self.summary.get("device_hours")
        facts = held if isinstance(held, dict) else {k: self.summary.get(f"device_hours_{k}") for k in HOURS}
        return {k: v for k in HOURS if (v := figure(facts, k)) is not None and math.isfinite(v)}

    @property
    def own_hours(self) -> float | None:
        """Less what was the run's from which it branched: what was really spent."""
        if not self.hours:
            return None
        own = figure(dict(self.summary), "device_hours_own")
        branch = self.summary.get("branch")
        shared = branch.get("device_hours") if isinstance(branch, dict) else None
        shared_hours = sum(figure(shared, k) or 0.0 for k in HOURS) if isinstance(shared, dict) else 0.0
        return own if own is not None else max(0.0, sum(self.hours.values()) - shared_hours)

    @property
    def own_usd(self) -> float | None:
        """The same share of what it cost."""
        own, whole = figure(dict(self.summary), "cost_usd_own"), figure(dict(self.summary), "cost_usd")
        total = sum(self.hours.values())
        if own is not None or whole is None or not total > 0 or self.own_hours is None:
            return own
        return whole * self.own_hours / total


@dataclass(frozen=True)
class Curve:
    run: str
    n: float
    """parameters, as the fit counts them"""
    points: list[Point]
    """(FLOPs up to there, loss)"""
    measured: str
    """validation or training"""


@dataclass(frozen=True)
class Sweep:
    path: Path
    name: str
    written: str
    choice: FitChoice | None
    """how rows become a law; None where the plan says it in words that cannot be read"""
    caps: Mapping[str, Any]
    cells: list[Cell]
    odd: list[tuple[str, str]]
    """(run, why it is no row)"""
    damage: list[str]
    """files that are missing or cannot be read"""

    @property
    def measured(self) -> list[Cell]:
        """Those that have a place in a picture of losses."""
        return [cell for cell in self.cells if cell.row is not None and _has_a_place(cell.row)]

    def fit_rows(self) -> list[Row]:
        return [cell.row for cell in self.cells if cell.row is not None and not cell.held_out]

    def held_out(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.held_out]


def read_sweep(folder: Path) -> Sweep:
    damage: list[str] = []
    plan = json_of(folder / "plan.json", damage)
    choice = _choice(plan, damage)
    loss = choice.loss if choice else "val_loss"
    planned = _planned(plan, damage)
    ledger = _ledger(folder / "ledger.jsonl", damage)
    summaries = _summaries(folder, ledger, damage)
    odd: list[tuple[str, str]] = []
    cells = [
        _cell(folder, run, planned.get(run, {}), summaries.get(run, {}), ledger.get(run), loss, odd)
        for run in [*planned, *(run for run in summaries if run not in planned)]
    ]
    caps = plan.get("caps")
    return Sweep(
        path=folder,
        name=str(plan.get("name") or folder.resolve().name),
        written=str(plan.get("written") or ""),
        choice=choice,
        caps=caps if isinstance(caps, dict) else {},
        cells=cells,
        odd=odd,
        damage=damage,
    )


def curves(sweep: Sweep) -> list[Curve]:
    """One a run: of its evaluations, or of training where there are hardly any. Of a large file an even selection is
    read."""
    choice = sweep.choice or FitChoice()
    most = max(_LEAST_POINTS, _MOST_POINTS // max(1, len(sweep.cells)))
    found = [_curve(sweep.path, cell, choice, most) for cell in sweep.cells]
    return [curve for curve in found if curve is not None]


def json_of(file: Path, damage: list[str]) -> dict[str, Any]:
    """{} where there is none that can be read, which is then told among the damage."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        damage.append(f"{file.name if file.name == 'plan.json' else '/'.join(file.parts[-2:])} {reason}")
        return {}
    if not isinstance(found, dict):
        damage.append(f"{'/'.join(file.parts[-2:])} is no JSON object")
    return found if isinstance(found, dict) else {}


def _has_a_place(row: Row) -> bool:
    sizes = row.n_params, row.n_params_matmul, row.n_params_non_embedding, row.tokens, row.flops_causal, row.flops_full
    return all(0 < value < math.inf for value in (*sizes, row.loss))


# --- the plan --------------------------------------------------------------------------------------------------------


def _choice(plan: Mapping[str, Any], damage: list[str]) -> FitChoice | None:
    tree = plan.get("fit")
    if tree is None:
        damage.append("no choice of rows and counting in plan.json: the defaults of `launch fit` are shown")
        return FitChoice()
    try:
        return build(FitChoice, tree if isinstance(tree, dict) else {"": tree})
    except ConfigError as error:
        damage.append(f"plan.json: how rows become a law cannot be read: {'; '.join(error.problems)}")
        return None


def _planned(plan: Mapping[str, Any], damage: list[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    cells = plan.get("cells")
    for i, cell in enumerate(cells if isinstance(cells, list) else []):
        if isinstance(cell, dict) and _is_name(cell.get("run")):
            found[cell["run"]] = cell
        else:
            damage.append(f"plan.json: cell {i + 1} names no run")
    return found


def _is_name(run: Any) -> TypeGuard[str]:
    return isinstance(run, str) and run not in ("", ".", "..") and "/" not in run and "\0" not in run


# --- what came of a cell ---------------------------------------------------------------------------------------------


def _summaries(folder: Path, ledger: Mapping[str, LedgerRow], damage: list[str]) -> dict[str, dict[str, Any]]:
    """By run folder; a ledger's rows stand in for folders that are gone."""
    runs = folder / "runs"
    folders = sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    found: dict[str, dict[str, Any]] = {}
    for path in folders:
        if not path.name.startswith("."):
            file = path / "summary.json"
            found[path.name] = json_of(file, damage) if file.exists() else {}
    for run, row in ledger.items():
        if _is_name(run) and run not in found:
            found[run] = facts_of(row)
    return found


def _ledger(file: Path, damage: list[str]) -> dict[str, LedgerRow]:
    """By run; {} where there is no ledger yet."""
    if not file.exists():
        return {}
    try:
        rows, odd = read_known(file)
    except ConfigError as error:
        damage.extend(error.problems)
        return {}
    damage.extend(f"{where}: {why}" for where, why in odd)
    return {row.run_name: row for row in rows}


def _cell(
    folder: Path,
    run: str,
    planned: Mapping[str, Any],
    summary: dict[str, Any],
    ledgered: LedgerRow | None,
    loss: str,
    odd: list[tuple[str, str]],
) -> Cell:
    state, why = _state(folder / "runs" / run, planned, summary)
    row = None
    if summary:
        try:
            row = _row(summary, ledgered, loss)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            lacks = f"its summary lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
            odd.append((run, lacks))
            state, why = ("damaged", lacks) if state == "finished" else (state, why)
    elif state not in ("left out", "not started"):
        odd.append((run, f"{state}: there is no summary yet"))
    return Cell(run, planned, summary, row, state, why)


def _row(summary: dict[str, Any], ledgered: LedgerRow | None, loss: str) -> Row:
    """The ledger's, which knows edges and ends of losses, where it is of this state of the run."""
    same = ("config_sha256", "status", "step")
    if ledgered is not None and all(getattr(ledgered, name) == summary.get(name) for name in same):
        return row_of_ledger(ledgered, loss)
    return row_of(summary, loss)


def _state(path: Path, planned: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, str]:
    if planned.get("left_out"):
        return "left out", str(planned["left_out"])
    if summary.get("status") == "finished":
        return ("finished", "") if summary.get("schedule_finished") else ("stopped", "its schedule does not end there")
    if summary.get("status") in ("diverged", "failed"):
        return str(summary["status"]), _how_far(summary)
    if not path.is_dir():
        if summary:
            return str(summary.get("status") or summary.get("verdict") or Verdict.partial), str(
                summary.get("why") or ""
            )
        return "not started", ""
    view = RunReader(path, identity()).view()
    done = "" if view.done is None else f"{view.done:.0%} done"
    return str(view.state), view.concern or done


def _how_far(summary: Mapping[str, Any]) -> str:
    step, total = summary.get("step"), summary.get("total_steps")
    return f"at step {step:,} of {total:,}" if isinstance(step, int) and isinstance(total, int) else ""


def _curve(folder: Path, cell: Cell, choice: FitChoice, most: int) -> Curve | None:
    file = folder / "runs" / cell.run / "metrics.jsonl"
    if not file.exists():
        return None
    rows = GrowingRows(file)
    rows.refresh()
    x = f"flops_{choice.flops}"
    evaluated = _points(rows.evaluations, x, choice.loss)
    trained = _points([*rows.curve, *list(rows.recent)[-1:]], x, "loss") if choice.loss == "val_loss" else []
    is_validation = len(evaluated) >= _ENOUGH_EVALUATIONS or not trained
    points = evaluated if is_validation else smoothed(trained)
    n = cell.row.size(choice.counting, choice.flops) if cell.row else cell.number("n_params_matmul")
    if not points or not n or not 0 < n < math.inf:
        return None
    return Curve(cell.run, n, _thinned(points, most), "validation" if is_validation else "training")


def _points(rows: list[dict[str, Any]], x: str, y: str) -> list[Point]:
    pairs = ((figure(row, x), figure(row, y)) for row in sorted(rows, key=lambda row: row["step"]))
    return [(a, b) for a, b in pairs if a and b and math.isfinite(a) and math.isfinite(b)]


def _thinned(points: list[Point], most: int) -> list[Point]:
    stride = -(-len(points) // most)
    return points if stride == 1 else [*points[:-1:stride], points[-1]]

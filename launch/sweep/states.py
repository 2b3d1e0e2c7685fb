"""What has become of each cell, read from its folder.

In: cells, and the run folders that there are. Out: a state for each. What a folder holds of another configuration is
refused, never taken for the cell and never touched.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from launch.sweep.cells import Cell, alone, branch
from launch.sweep.costs import is_finished, summary_of
from train.branch import steps_with_equal_rates
from train.checkpoint.folders import steps_found
from train.metrics_file import last_step
from train.run_folder import RunFolder


class Become(StrEnum):
    new = "new"
    partial = "partial"
    finished = "finished"
    diverged = "diverged"
    failed = "failed"


@dataclass(frozen=True)
class State:
    become: Become
    step: int
    """the last that is saved and summed up"""
    summary: dict[str, Any] | None

    @property
    def is_over(self) -> bool:
        """Another start would change nothing."""
        return self.become in (Become.finished, Become.diverged)

    def words(self, cell: Cell) -> str:
        match self.become:
            case Become.new:
                return ""
            case Become.partial:
                return f"{self.step / cell.steps:.0%} done"
            case Become.finished:
                loss = (self.summary or {}).get("val_loss")
                return "finished" if loss is None else f"loss {loss:.4f}"
            case Become.diverged | Become.failed:
                return f"{self.become} at step {self.step}"


def state_of(cell: Cell) -> State:
    summary = summary_of(cell.folder)
    if summary is None:
        return State(Become.new if not cell.folder.exists() else Become.partial, 0, None)
    step = int(summary.get("step") or 0)
    if is_finished(cell, summary):
        return State(Become.finished, step, summary)
    status = summary.get("status")
    become = {"diverged": Become.diverged, "failed": Become.failed}.get(str(status), Become.partial)
    return State(become, step, summary)


def refuse_strangers(cells: Sequence[Cell]) -> None:
    """Raises ConfigError for folders that hold other runs than these cells."""
    problems = [problem for cell in cells for problem in RunFolder(cell.config).differences(cell.config)]
    if problems:
        raise ConfigError([*problems, "this sweep has cells of another configuration: choose another sweep.name"])


def may_begin(cell: Cell) -> bool:
    """Whether the checkpoint that it goes on from is there, if it goes on from one and has not begun."""
    return cell.parent is None or bool(_saved(cell.folder)) or cell.shared_steps in _saved(_parent_of(cell))


def with_beginnings(cells: Sequence[Cell], states: Mapping[str, State]) -> tuple[list[Cell], list[str]]:
    """(the cells with the beginnings that they have, or can still have; what differs from the plan of a sweep that
    begins now). A run that was trained without a longer one in the plan kept no checkpoint for it: the longer one
    begins from the best that there is in its chain, or by itself."""
    found, notes = list[Cell](), list[str]()
    for cell in cells:
        made = _as_begun(cell, states[cell.name])
        if made is None and not _will_have(cell, states):
            made = _next_best(cell, cells)
            begins = f"begins from step {made.shared_steps} of {made.parent}" if made.parent else "begins by itself"
            notes.append(f"{cell.name} {begins}: {cell.parent} has no checkpoint of step {cell.shared_steps}")
        found.append(made or cell)
    roots = dict[str, str]()
    for cell in sorted(found, key=lambda cell: cell.steps):
        roots[cell.name] = roots.get(cell.parent or "", cell.root)
    return [dataclasses.replace(cell, root=roots[cell.name]) for cell in found], notes


def lost(cells: Sequence[Cell], states: Mapping[str, State]) -> dict[str, str]:
    """Cell → why it will never begin: its first steps are those of a run that diverged in them."""
    found: dict[str, str] = {}
    for cell in sorted(cells, key=lambda cell: cell.steps):
        parent = states.get(cell.parent or "")
        if parent is None or may_begin(cell) or states[cell.name].is_over:
            continue
        if cell.parent in found:
            found[cell.name] = found[cell.parent]
        elif parent.become == Become.diverged:
            found[cell.name] = (
                f"its first {cell.shared_steps} steps are those of {cell.parent}, which diverged at step {parent.step}"
            )
    return found


def _as_begun(cell: Cell, state: State) -> Cell | None:
    """None if it has not begun."""
    if state.summary is None or not (_saved(cell.folder) or state.is_over):
        return None
    held = state.summary.get("branch")
    if held is None:
        return cell if cell.parent is None else alone(cell)
    same = (cell.parent, cell.shared_steps, cell.root) == (held["run"], held["step"], held["root"])
    return cell if same else branch(cell, held["run"], held["step"], held["root"])


def _will_have(cell: Cell, states: Mapping[str, State]) -> bool:
    """Whether its beginning is there, or still to come, or to be given up."""
    if cell.parent is None or cell.parent not in states or may_begin(cell):
        return True
    parent, saved = states[cell.parent], _saved(_parent_of(cell))
    match parent.become:
        case Become.finished:
            return False
        case Become.diverged:
            return max(parent.step, last_step(_parent_of(cell) / "metrics.jsonl")) < cell.shared_steps
        case _:
            return not saved or saved[0] < cell.shared_steps


def _next_best(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """From the latest checkpoint of its chain until which it would have done the same."""
    chain = [other for other in cells if other.root == cell.root and other is not cell]
    places = [
        (step, other)
        for other in chain
        for equal in [steps_with_equal_rates(cell.config, other.config)]
        for step in _saved(other.folder)
        if 0 < step <= equal
    ]
    if not places:
        return alone(cell)
    step, other = max(places, key=lambda place: place[0])
    return branch(cell, other.name, step, other.root)


def _parent_of(cell: Cell) -> Path:
    return cell.folder.parent / str(cell.parent)


def _saved(run: Path) -> list[int]:
    """Newest first."""
    return steps_found(run / "checkpoints")

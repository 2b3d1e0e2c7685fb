"""What has become of each cell, read from its folder.

In: cells, and the run folders that there are. Out: a state for each. What a folder holds of another configuration is
refused, never taken for the cell and never touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from conf.errors import ConfigError
from launch.sweep.cells import Cell
from launch.sweep.costs import is_finished, summary_of
from train.checkpoint.folders import folder_name
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


def may_begin(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether the checkpoint that it goes on from is there, if it goes on from one and has not begun."""
    if cell.parent is None or any((cell.folder / "checkpoints").glob("step-*")):
        return True
    parent = next(other for other in cells if other.name == cell.parent)
    return (parent.folder / "checkpoints" / folder_name(cell.shared_steps)).is_dir()

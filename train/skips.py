"""Which steps a run leaves out: those that the configuration names, and those that rollbacks have left behind them.

A rollback is written to `rollbacks.json` in the run folder before anything follows from it, so a run that is killed on
the way goes back all the same. A checkpoint tells how many rollbacks it knows of; one that lies beyond the step to
which a later rollback went holds what was to be undone, and is not used.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from data_prep.files import publish_json
from train.errors import UnreadableError

FILE = "rollbacks.json"


@dataclass(frozen=True)
class Rollback:
    """The run went back from `at_step` to the checkpoint of `to_step`, and leaves out steps `first` to `last`; none if
    `first` is behind `last`."""

    at_step: int
    to_step: int
    first: int
    last: int
    reason: str

    @property
    def left_out(self) -> str:
        return f"steps {self.first} to {self.last} are left out" if self.first <= self.last else "no step is left out"


class Skips:
    """The left-out steps of one run, and its rollbacks."""

    def __init__(self, ranges: list[str], folder: Path):
        """ranges: FIRST-LAST each, from the configuration. folder: of the run; `read` looks there."""
        self.path = folder / FILE
        self._asked = [(int(first), int(last)) for first, _, last in (text.partition("-") for text in ranges)]
        self.rollbacks: list[Rollback] = []

    def read(self) -> Self:
        """What the run's folder holds. Raises UnreadableError for a rollbacks.json that is not what it was."""
        self.rollbacks = _read(self.path)
        return self

    def take_up(self, state: Mapping[str, Any]) -> int:
        """Takes the rollbacks that the file has lost from the state of a checkpoint. Returns how many."""
        known = [Rollback(**tree) for tree in state.get("rolled_back", ())]
        n_lost = max(0, len(known) - len(self.rollbacks))
        if n_lost:
            self.rollbacks = known
        return n_lost

    def to_tree(self) -> dict[str, Any]:
        """For the state of a checkpoint."""
        return {"rollbacks": len(self.rollbacks), "rolled_back": [asdict(each) for each in self.rollbacks]}

    def reason(self, step: int) -> str | None:
        """Why a step (counted from 1) is left out; None if it is not."""
        for first, last in self._asked:
            if first <= step <= last:
                return f"health.skip_steps={first}-{last}"
        for rollback in self.rollbacks:
            if rollback.first <= step <= rollback.last:
                return f"rollback from step {rollback.at_step} ({rollback.reason})"
        return None

    def add(self, at_step: int, to_step: int, margin: int, reason: str) -> Rollback:
        """Goes back from `at_step` to `to_step`, and leaves out `margin` steps to either side of it; none with 0."""
        first, last = (max(to_step + 1, at_step - margin), at_step + margin) if margin else (1, 0)
        self.rollbacks.append(Rollback(at_step, to_step, first, last, reason))
        return self.rollbacks[-1]

    def write(self) -> None:
        """Makes the rollbacks last. Raises DataError if that is not possible."""
        publish_json(self.path, [asdict(each) for each in self.rollbacks])

    def refused(self, state: Mapping[str, Any]) -> str | None:
        """Why the checkpoint with this state must not be used; None if it may."""
        for rollback in self.rollbacks[state.get("rollbacks", 0) :]:
            if state["step"] > rollback.to_step:
                return f"it was made before the run went back to step {rollback.to_step}"
        return None


def _read(path: Path) -> list[Rollback]:
    try:
        trees = json.loads(path.read_text())
        if not isinstance(trees, list):
            raise TypeError("it holds no list")
        return [_believed(Rollback(**tree)) for tree in trees]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UnreadableError(
            f"{path} cannot be read ({error}): it tells which steps the run leaves out. Restore it; or remove it, and "
            "what the newest checkpoint knows of them holds"
        ) from None


def _believed(rollback: Rollback) -> Rollback:
    for name, value in vars(rollback).items():
        if type(value) is not (str if name == "reason" else int):
            raise TypeError(f"{name} is {value!r}")
    return rollback

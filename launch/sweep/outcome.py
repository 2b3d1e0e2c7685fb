"""What a sweep leaves behind as it goes: its ledger, the forecasts of held-out runs and their scores, its report."""

from collections.abc import Callable, Sequence

from launch.scaling.read_rows import rows_of_runs
from launch.scaling.rows import Row
from launch.sweep.cells import Cell
from launch.sweep.config import SweepConfig
from launch.sweep.costs import Cost

Say = Callable[[str], None]


class Outcome:
    def __init__(self, config: SweepConfig, cells: Sequence[Cell]):
        from pathlib import Path

        self.folder = Path(config.sweep.folder) / config.sweep.name
        self._config, self._cells = config, cells

    def before(self, cell: Cell, cost: Cost, say: Say) -> None:
        """Seals what is expected of a held-out run: without that it may not start."""

    def ended(self, cell: Cell, cost: Cost, say: Say) -> None:
        """After every cell."""

    def close(self) -> None:
        """At the end."""

    def _rows(self) -> list[Row]:
        rows, _ = rows_of_runs(self.folder / "runs", self._config.fit.loss)
        return rows

"""What a sweep leaves behind as it goes: its ledger, the forecasts of held-out runs and their scores, its report.

In: the sweep's folder, and the cells that have ended. Out: ledger.jsonl, .csv and .parquet, written anew after each
cell; a sealed forecast before a held-out run may start, its score after; report.html at the end.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import ConfigError
from launch.sweep.cells import Cell
from launch.sweep.config import SweepConfig
from launch.sweep.costs import Cost
from launch.sweep.states import state_of

if TYPE_CHECKING:
    from launch.ledger_row import LedgerRow
    from launch.scaling.rows import Row

Say = Callable[[str], None]


class Outcome:
    def __init__(self, config: SweepConfig, cells: Sequence[Cell]):
        self.folder = Path(config.sweep.folder) / config.sweep.name
        self._choice, self._held_out = config.fit, [cell for cell in cells if cell.held_out]
        self._edges: list[tuple[str, str]] = []
        """(run, why) of the best that was tuned, where better may lie beyond what was tried"""

    def before(self, cell: Cell, cost: Cost, say: Say) -> None:
        """Seals what is expected of a held-out run: without that it may not start. Raises ConfigError where the rows
        carry no law, or a forecast was altered."""
        from launch.forecast import Target, history, require_sealed, seal
        from launch.forecast_text import forecast_text

        sealed = next((one for one, _ in history(self.folder) if one.run == cell.name), None)
        if sealed is not None:  # it stands, whatever has been trained since
            say(f"{cell.name} was foretold on {sealed.written}: {self.folder}/forecasts/{sealed.number:04d}.json")
        else:
            target = Target(
                run=cell.name,
                run_folder=cell.folder,
                n_params=cell.counts.n_params,
                n_params_matmul=cell.counts.n_params_matmul,
                n_params_non_embedding=cell.counts.n_params_non_embedding,
                tokens=cell.tokens,
                flops_full=float(cell.flops_full),
                flops_causal=float(cell.flops_causal),
                config_sha256=cell.sha256,
                predicted_device_hours=cost.device_hours,
            )
            rows = [row for row in self._rows() if row.run != cell.name]
            say(forecast_text(seal(self.folder, target, rows, self._choice)))
        require_sealed(self.folder, cell.name, cell.sha256)

    def record(self, say: Say) -> None:
        """After a cell has ended: the ledger anew, and the score of a held-out run that has none yet."""
        from launch.ledger import collect, write
        from launch.scaling.rows import Verdict

        try:
            rows, odd = collect(self.folder / "runs")
        except ConfigError as error:
            say(f"no ledger yet: {error}")
            return
        write(rows, self.folder / "ledger")
        self._edges = [(row.run_name, row.why) for row in rows if row.verdict == Verdict.edge]
        for folder, why in odd:
            say(f"no row of the ledger: {folder}: {why}")
        for cell in self._held_out:
            if state_of(cell).is_over:
                self._score(cell, say)

    def close(self, say: Say) -> None:
        """At the end: what was tuned and has its best at the edge of what was tried; the report."""
        from launch.sweep_report import write_sweep_report

        for run, why in self._edges:
            say(f"EDGE   {run}  {why}")
        for line in write_sweep_report(self.folder):
            say(line)

    def _score(self, cell: Cell, say: Say) -> None:
        from launch.forecast import history, score
        from launch.forecast_text import score_text

        rows = self._rows()
        own = next((row for row in rows if row.run == cell.name), None)
        try:
            if own is None or any(one.run == cell.name and found for one, found in history(self.folder)):
                return
            found = score(self.folder, cell.name, own, [row for row in rows if row is not own])
            say(score_text(next(one for one, _ in history(self.folder) if one.run == cell.name), found))
        except ConfigError as error:
            say(f"{cell.name} has no score: {'; '.join(error.problems)}")

    def _rows(self) -> "list[Row]":
        from launch.ledger import collect
        from launch.scaling.read_rows import row_of_ledger

        found: list[LedgerRow] = collect(self.folder / "runs")[0]
        return [row_of_ledger(row, self._choice.loss) for row in found]

"""Rows for the fits, from the folders of runs or from a ledger: the same rows either way.

In: a folder of runs, a ledger (JSON lines, CSV or Parquet), or one summary. Out: rows, and for each folder or line that
is none the reason. Runs are read as `launch ledger` reads them, so a verdict does not depend on the way.
"""

import math
from pathlib import Path
from typing import Any

from launch.ledger import collect
from launch.ledger_files import read_known
from launch.ledger_row import LedgerRow
from launch.ledger_run import row_of_summary
from launch.scaling.rows import Row


def rows_of_runs(folder: Path, loss: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """(rows, (folder, why it is no row)). Raises ConfigError if there is no run."""
    rows, odd = collect(folder)
    return [row_of_ledger(row, loss) for row in rows], odd


def rows_of_ledger(file: Path, loss: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """(rows, (line, why it is no row)). Raises ConfigError if the file cannot be read or is of another version."""
    rows, odd = read_known(file)
    return [row_of_ledger(row, loss) for row in rows], odd


def row_of(summary: dict[str, Any], loss: str = "val_loss") -> Row:
    """Of a summary alone: how its losses ended is not looked at. Raises ValueError for what is no summary of a run."""
    return row_of_ledger(row_of_summary(summary), loss)


def row_of_ledger(row: LedgerRow, loss: str = "val_loss") -> Row:
    """loss: val_loss or bits_per_byte; NaN where there is none."""
    value = getattr(row, loss)
    return Row(
        run=row.run_name,
        group=row.group,
        n_params=row.n_params,
        n_params_matmul=row.n_params_matmul,
        n_params_non_embedding=row.n_params_non_embedding,
        tokens=row.tokens_seen,
        unique_tokens=row.unique_tokens,
        flops_full=row.flops_full,
        flops_causal=row.flops_causal,
        loss=math.nan if value is None else value,
        stderr=row.val_loss_stderr if loss == "val_loss" else None,
        schedule_finished=row.schedule_finished,
        seed=row.seed,
        verdict=row.verdict,
        tokenizer=row.tokenizer_sha256,
        validation=row.validation_sha256 or row.manifest_sha256,
        family=row.family,
    )

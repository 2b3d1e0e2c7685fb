"""`launch fit`: laws of loss from the rows of many runs, or published tables refitted. No torch; seconds.

In: a folder of runs, a ledger, or published tables. Out: text. Rows that must not be fitted are named with the reason;
rows that cannot be compared with each other are refused.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from conf.errors import ConfigError
from launch.fit_config import FitConfig
from launch.scaling.analysis import analyse, compare_families, decay, fit_family, predict
from launch.scaling.read_rows import rows_of_ledger, rows_of_runs
from launch.scaling.report import analysis_text, decay_text, families_text, prediction_text, rows_text
from launch.scaling.reproduce import reproduce
from launch.scaling.rows import Row, RowRule, refuse_mixtures, split
from launch.sweep_plan import other_choice

MISSED = 1
"""exit code: a published number was not met"""
_LEAST_REPEATED = 3


def fit(config: FitConfig) -> int:
    """Prints what was asked for; the exit code. Raises ConfigError for rows that carry no law."""
    if config.reproduce is not None:
        met = reproduce(Path(config.tables if config.reproduce == "all" else config.reproduce))
        return 0 if met else MISSED
    rows, odd = _rows(config)
    if others := other_choice(Path(config.ledger or str(config.runs)), config):
        print(f"note: the sweep itself goes by {', '.join(others)}; its forecasts are of that law\n", file=sys.stderr)
    used, dropped = split(rows, config.rows)
    _show_rows(used, [*odd, *((row.run, reason) for row, reason in dropped)])
    refuse_mixtures(used)
    _analyse(config, used, repeating(rows, used, config.rows))
    return 0


def _rows(config: FitConfig) -> tuple[list[Row], list[tuple[str, str]]]:
    if config.runs is not None:
        return rows_of_runs(Path(config.runs), config.loss)
    assert config.ledger is not None
    return rows_of_ledger(Path(config.ledger), config.loss)


def _show_rows(used: list[Row], dropped: list[tuple[str, str]]) -> None:
    """Before anything is refused, so that the reasons are seen."""
    if not used:
        reasons = "; ".join(f"{run}: {reason}" for run, reason in dropped[:10])
        raise ConfigError([f"no row can be fitted ({len(dropped)} not used: {reasons})"])
    print(rows_text(used, dropped), end="\n\n", flush=True)


def repeating(rows: list[Row], used: list[Row], rule: RowRule) -> list[Row]:
    """Those that are left out only because they repeat their text."""
    names = {id(row) for row in used}
    return [row for row in split(rows, replace(rule, max_epochs=np.inf))[0] if id(row) not in names]


def _analyse(config: FitConfig, used: list[Row], repeats: list[Row]) -> None:
    families = {name: [row for row in used if row.family == name] for name in sorted({row.family for row in used})}
    if config.family not in families:
        raise ConfigError([f"family={config.family}: the rows are of {', '.join(families)}"])
    found = analyse(families[config.family], config, progress)
    print(analysis_text(found, config.counting))
    if config.at.asked:
        at = predict(found.family, config.at.flops, config.at.n_params, config.at.tokens)
        print(f"\n{prediction_text(at)}")
    repeated = [row for row in repeats if row.family == config.family]
    if len(repeated) >= _LEAST_REPEATED:
        print(f"\n{decay_text(decay(found.family, repeated, config), len(repeated))}")
    for name, rows in families.items():
        if name != config.family:
            other = fit_family(rows, config, progress)
            print(f"\n{families_text(config.family, name, compare_families(found.family, other))}")


def progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\rdraws {done} of {of} " + ("\n" if done == of else ""), end="", file=sys.stderr, flush=True)

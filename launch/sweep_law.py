"""What the rows of a sweep say at this moment, or why they say nothing yet.

In: a sweep. Out: the rows used, each of the others with the reason, and the analysis by the choice that the plan has
settled. Held-out runs are never among the rows: the forecast is of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from conf.errors import ConfigError
from launch.fit_config import FitChoice
from launch.scaling.analysis import (
    Analysis,
    Prediction,
    analyse,
    compare_families,
    decay,
    fit_family,
    predict,
)
from launch.scaling.families import Ratio
from launch.scaling.repeated import Decay
from launch.scaling.rows import Row, refuse_mixtures, split
from launch.sweep_folder import Sweep

LEAST_REPEATED = 3
HELD_OUT = "held out: the forecast is of it"


@dataclass(frozen=True)
class Findings:
    choice: FitChoice
    used: list[Row]
    dropped: list[tuple[str, str]]
    """(run, why it does not count)"""
    analysis: Analysis | None
    why: str
    """why there is no analysis"""
    held: list[tuple[Row, Prediction]]
    """held-out runs that have ended, each beside what the law of now says of it"""
    repeating: list[Row]
    """left out of the law only because they repeat their text"""
    decay: Decay | None
    families: dict[str, list[Ratio] | str]
    """of each other family: how many FLOPs it needs for the same loss, or why that is not known"""


def findings(sweep: Sweep) -> Findings:
    choice, dropped = sweep.choice, list(sweep.odd)
    held = [cell.row for cell in sweep.measured if cell.row is not None and cell.held_out]
    if choice is None:
        why = "how rows become a law (plan.json, fit) cannot be read, and no other choice is made in its place"
        return Findings(FitChoice(), [], dropped, None, why, [], [], None, {})
    used, left = split(sweep.fit_rows(), choice.rows)
    dropped += [(row.run, reason) for row, reason in left] + [(row.run, HELD_OUT) for row in held]
    names = {row.run for row in used}
    wider = split(sweep.fit_rows(), replace(choice.rows, max_epochs=np.inf))[0]
    repeating = [row for row in wider if row.run not in names and row.family == choice.family]
    found = Findings(choice, used, dropped, None, "", [], repeating, None, {})
    try:
        return _analysed(found, held)
    except ConfigError as error:
        return replace(found, why="; ".join(error.problems))
    except (np.linalg.LinAlgError, ArithmeticError, ValueError) as error:
        return replace(found, why=f"the fit itself failed: {error}")


def _analysed(found: Findings, held: Sequence[Row]) -> Findings:
    choice = found.choice
    refuse_mixtures(found.used)
    families = {name: [row for row in found.used if row.family == name] for name in {row.family for row in found.used}}
    if choice.family not in families:
        there = ", ".join(sorted(families)) or "none that can be used"
        raise ConfigError([f"no row is of family {choice.family}; there is {there}"])
    analysis = analyse(families[choice.family], choice)
    return replace(
        found,
        analysis=analysis,
        held=[(row, _predicted(analysis, row, choice)) for row in held if _has_ended(row)],
        decay=decay(analysis.family, found.repeating, choice) if len(found.repeating) >= LEAST_REPEATED else None,
        families={
            name: _compared(analysis, families[name], choice) for name in sorted(families) if name != choice.family
        },
    )


def _has_ended(row: Row) -> bool:
    return row.schedule_finished and 0 < row.loss < np.inf


def _predicted(analysis: Analysis, row: Row, choice: FitChoice) -> Prediction:
    return predict(analysis.family, None, row.size(choice.counting, choice.flops), float(row.tokens))


def _compared(analysis: Analysis, rows: list[Row], choice: FitChoice) -> list[Ratio] | str:
    try:
        return compare_families(analysis.family, fit_family(rows, choice))
    except ConfigError as error:
        return "; ".join(error.problems)

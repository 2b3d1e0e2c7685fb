"""What became of a forecast: the run that it spoke of is over, and its loss lies beside what was sealed.

In: the forecast, the run's row and its summary.json, the rows of now. Out: a `Score`. It passes if the run ended as
planned with |error| <= max(2 seed spreads, 1.5 %), inside the 95 % interval, nearer than all three naive baselines, and
if that interval is narrow enough to say something; the goal is <= 1 % and inside the 80 % interval. A run that diverged
or stopped early is scored as that: it does not pass. Rolling origin: the same choice with each size as the largest
says how often intervals held before.
"""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from launch.fit_config import FitChoice
from launch.forecast_numbers import numbers_at
from launch.forecast_record import SCHEMA_VERSION, Forecast, Origin, Score, Skill
from launch.scaling.analysis import Family, fit_family
from launch.scaling.rows import LEAST_VALUES, Row, Verdict, refuse_mixtures
from train.history import first_start

LIMIT = 0.015
SEED_SPREADS = 2.0
GOAL = 0.01
WIDEST = 0.15
"""of the 95 % interval, relative to the loss: a wider one says nothing"""
_ONE_SIZE = 1.01
_NOT_OVER = ("running", "preempted")
_CLOCKS_SECONDS = 60.0
"""by which clocks of two machines may differ"""


def scored(folder: Path, forecast: Forecast, row: Row, rows: Sequence[Row], written: str) -> Score:
    """Raises ConfigError if the run is not the one that was forecast, or may still go on."""
    run_folder = folder / forecast.target.run_folder
    summary = _summary(forecast, run_folder)
    _refuse_another_run(forecast, row, summary)
    measured = measured_of(row)
    numbers, interval = forecast.numbers, forecast.numbers.run_interval
    error = None if measured is None else numbers.loss / measured - 1
    limit = max(SEED_SPREADS * forecast.seed_spread.sd, LIMIT)
    skills = _skills(forecast, measured)
    inside_80, inside_95 = (None if measured is None else interval.holds(measured, p) for p in (80, 95))
    width_95 = (interval.high95 - interval.low95) / (measured or numbers.loss)
    failures = [
        *_how_it_ended(row, measured),
        *_too_early(forecast, run_folder),
        *([] if error is None or abs(error) <= limit else [f"error {error:+.2%}, more than {limit:.2%}"]),
        *([] if inside_95 is not False else ["outside the 95 % interval"]),
        *([] if width_95 <= WIDEST else [f"the 95 % interval is {width_95:.1%} of the loss wide: useless"]),
        *(_no_better(skill) for skill in skills if measured is not None and not (skill.skill or 0) > 0),
    ]
    origins, left_out = _origins(forecast)
    return Score(
        schema_version=SCHEMA_VERSION,
        written=written,
        run=forecast.run,
        forecast_sha256=forecast.sha256,
        verdict=str(row.verdict),
        measured=measured,
        stderr=row.stderr,
        relative_error=error,
        error_in_seed_spreads=None if error is None else math.log1p(error) / forecast.seed_spread.sd,
        inside_80=inside_80,
        inside_95=inside_95,
        width_80=(interval.high80 - interval.low80) / (measured or numbers.loss),
        width_95=width_95,
        e_identified=numbers.e_identified,
        skills=skills,
        limit=limit,
        passed=not failures,
        goal_met=not failures and error is not None and abs(error) <= GOAL and bool(inside_80),
        failures=failures,
        notes=_changed(forecast.rows, rows),
        origins=origins,
        origins_left_out=left_out,
        predicted_device_hours=forecast.target.predicted_device_hours,
        device_hours=_own_hours(summary),
        sha256="",
    )


def measured_of(row: Row) -> float | None:
    """The loss that a forecast may be compared with; None where the run did not end as planned."""
    ended = row.verdict in (Verdict.ok, Verdict.edge) and row.schedule_finished
    return row.loss if ended and math.isfinite(row.loss) else None


def _summary(forecast: Forecast, run_folder: Path) -> dict[str, Any]:
    file = run_folder / "summary.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{forecast.run} cannot be scored: {file} cannot be read ({error})"]) from None
    if found.get("status") in _NOT_OVER:
        raise ConfigError(
            [
                f"{forecast.run} is {found['status']} at step {found.get('step')} of {found.get('total_steps')}: it "
                "is scored once, when it is over. Let it go on to its end first"
            ]
        )
    return found


def _refuse_another_run(forecast: Forecast, row: Row, summary: dict[str, Any]) -> None:
    target, loss = forecast.target, summary.get(forecast.choice.loss)
    ended = row.verdict in (Verdict.ok, Verdict.edge)
    problems = [
        f"{forecast.run} has {what} {mine}, the sealed forecast is of {sealed}: another run than the one forecast"
        for what, mine, sealed in (
            ("the name", row.run, forecast.run),
            ("the configuration", summary.get("config_sha256"), target.config_sha256),
            ("matmul parameters", row.n_params_matmul, target.n_params_matmul),
            ("parameters", row.n_params, target.n_params),
            ("tokens", row.tokens if ended else target.tokens, target.tokens),
        )
        if mine != sealed
    ]
    if loss is not None and loss != row.loss:
        problems.append(f"{forecast.run}: the row's loss is {row.loss}, {forecast.choice.loss} of summary.json {loss}")
    if problems:
        raise ConfigError(problems)
    if ended:
        refuse_mixtures([*forecast.rows, row])


def _how_it_ended(row: Row, measured: float | None) -> list[str]:
    found = []
    if row.verdict == Verdict.diverged:
        found.append("the run diverged")
    elif row.verdict == Verdict.partial or not row.schedule_finished:
        found.append(f"the run's schedule did not finish ({row.tokens:,} tokens)")
    elif measured is None:
        found.append(f"its loss is {row.loss}")
    return found


def _too_early(forecast: Forecast, run_folder: Path) -> list[str]:
    """A seal that is younger than the run is none: somebody has moved files."""
    began, sealed = first_start(run_folder), datetime.fromisoformat(forecast.written).timestamp()
    if began is None or began > sealed - _CLOCKS_SECONDS:
        return []
    return [f"the run began {sealed - began:.0f} s before its forecast was sealed"]


def _skills(forecast: Forecast, measured: float | None) -> list[Skill]:
    found = []
    for one in forecast.baselines:
        error = None if one.loss is None or measured is None else one.loss / measured - 1
        mine = None if measured is None else abs(forecast.numbers.loss / measured - 1)
        skill = None if not error or mine is None else 1 - mine / abs(error)
        words = one.words + (" (it met the loss exactly)" if error == 0 else "")
        found.append(Skill(one.name, one.loss, error, skill, words))
    return found


def _no_better(skill: Skill) -> str:
    if skill.loss is None:
        return f"there is no {skill.baseline} to be compared with: {skill.words}"
    return f"no better than the {skill.baseline}"


def _origins(forecast: Forecast) -> tuple[list[Origin], list[str]]:
    """Each size forecast from all smaller ones, as the held-out run was from all; and why not where not."""
    sizes = _by_size(forecast.rows, forecast.choice)
    found: list[Origin] = []
    left_out: list[str] = []
    for count in range(LEAST_VALUES, len(sizes)):
        try:
            known = fit_family([row for size in sizes[:count] for row in size], forecast.choice)
            found += [_origin(known, forecast.choice, row, count) for row in sizes[count]]
        except ConfigError as error:
            left_out.append(f"from {count} sizes: {'; '.join(error.problems)}")
    if len(sizes) <= LEAST_VALUES:
        left_out.append(f"the rows are of {len(sizes)} sizes: {LEAST_VALUES + 1} are needed to forecast one of them")
    return found, left_out


def _by_size(rows: Sequence[Row], choice: FitChoice) -> list[list[Row]]:
    """Smallest first."""
    sizes: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.size(choice.counting, choice.flops), row.tokens)):
        here = row.size(choice.counting, choice.flops)
        if sizes and here <= _ONE_SIZE * sizes[-1][-1].size(choice.counting, choice.flops):
            sizes[-1].append(row)
        else:
            sizes.append([row])
    return sizes


def _origin(known: Family, choice: FitChoice, row: Row, n_sizes: int) -> Origin:
    there = numbers_at(known, row.size(choice.counting, choice.flops), float(row.tokens))
    inside_80, inside_95 = (there.run_interval.holds(row.loss, percent) for percent in (80, 95))
    return Origin(row.run, n_sizes, there.loss, row.loss, inside_80, inside_95)


def _changed(sealed: Sequence[Row], now: Sequence[Row]) -> list[str]:
    by_name = {row.run: row for row in now}
    found = []
    for row in sealed:
        other = by_name.get(row.run)
        if other is None:
            found.append(f"{row.run}, one of the sealed rows, is gone from the ledger")
        elif other != row:
            found.append(f"{row.run}, one of the sealed rows, had loss {row.loss:.6g}, now {other.loss:.6g}")
    return [*(["the ledger has changed since; the forecast stands as it was sealed"] if found else []), *found]


def _own_hours(summary: dict[str, Any]) -> float | None:
    hours = summary.get("device_hours")
    shared = (summary.get("branch") or {}).get("device_hours") or {}
    return sum(hours.values()) - sum(shared.values()) if hours else None

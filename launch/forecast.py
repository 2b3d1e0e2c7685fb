"""Forecasts that are sealed before the run that they speak of, and scored after it.

`seal` writes what rows of smaller runs say of a larger one, with intervals and what naive baselines say; the runner
asks `require_sealed` before it starts that run; `score` compares, once. `history` gives all of a sweep's folder. How
the numbers come about: `forecast_numbers.py`; how files are kept from being altered: `forecast_record.py`; what a
score is: `forecast_score.py`.
"""

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import ConfigError
from data_prep.files import exclusive
from launch.fit_config import FitChoice
from launch.forecast_numbers import baselines_of, numbers_at, size_of, spread_of
from launch.forecast_record import (
    FOLDER,
    SCHEMA_VERSION,
    Dropped,
    Forecast,
    Record,
    Score,
    SealedTarget,
    Target,
    publish,
    read_chain,
    same_choice,
    score_hashes,
)
from launch.forecast_score import measured_of, scored
from launch.scaling.analysis import fit_family
from launch.scaling.rows import Row, refuse_mixtures, split

__all__ = ["Forecast", "Score", "Target", "history", "require_sealed", "score", "seal"]

_BEGUN = ("summary.json", "metrics.jsonl", "events.jsonl", "checkpoints", "attempts")
"""of a run's folder: none of them is there, or all are empty, before its first step"""


def seal(folder: Path, target: Target, rows: Sequence[Row], choice: FitChoice) -> Forecast:
    """Writes folder/forecasts/NNNN.json. Asked the same again, it returns what is sealed.

    Raises ConfigError if the run has begun, if another forecast of it is sealed, if an earlier file was altered, or if
    the rows carry no law.
    """
    choice, sealed = same_choice(choice), _sealed_target(folder, target)
    used, dropped = _chosen(rows, choice, target.run)
    with exclusive(folder / FOLDER, "wait until its forecast is sealed"):
        records = history(folder)
        earlier = [forecast for forecast, _ in records if forecast.run == target.run]
        if earlier:
            return _same(earlier[-1], sealed, choice, used)
        _refuse_begun(target)
        forecast = Forecast(
            schema_version=SCHEMA_VERSION,
            number=len(records) + 1,
            written=_now(),
            run=target.run,
            target=sealed,
            choice=choice,
            numbers=numbers_at(fit_family(used, choice), size_of(sealed, choice), float(target.tokens)),
            baselines=baselines_of(used, sealed, choice),
            seed_spread=spread_of(used),
            rows=used,
            dropped=dropped,
            code_sha256=code_sha256(),
            numpy_version=np.__version__,
            previous_sha256=records[-1][0].sha256 if records else None,
            scores=score_hashes(records),
            sha256="",
        )
        return publish(folder, forecast.number, forecast)


def require_sealed(folder: Path, run: str, config_sha256: str) -> Forecast:
    """To be asked before the held-out run starts. Raises ConfigError if its forecast is not there, not as it was
    written, or of another configuration."""
    forecast, _ = _record(folder, run)
    if forecast.target.config_sha256 != config_sha256:
        raise ConfigError(
            [
                f"{run} has the configuration {config_sha256[:12]}, its sealed forecast is of "
                f"{forecast.target.config_sha256[:12]}: run what was forecast, or forecast it under another name"
            ]
        )
    return forecast


def score(folder: Path, run: str, row: Row, rows: Sequence[Row]) -> Score:
    """Writes folder/forecasts/NNNN.score.json, once; asked again of the same outcome, it returns what is written.

    rows: those of the ledger now; sealed rows that have changed since are told, and the forecast stands. Raises
    ConfigError if the forecast was altered, or the run is not the one that was forecast, or not over.
    """
    with exclusive(folder / FOLDER, "wait until it is scored"):
        forecast, earlier = _record(folder, run)
        if earlier is not None:
            return _once(earlier, row)
        return publish(folder, forecast.number, scored(folder, forecast, row, rows, _now()))


def history(folder: Path) -> list[Record]:
    """All forecasts, oldest first, with their scores. Raises ConfigError if anything is not as it was written
    (`read_chain` gives both)."""
    records, problems = read_chain(folder)
    if problems:
        raise ConfigError([f"{folder}: {problem}" for problem in problems])
    return records


def code_sha256() -> str:
    """Of what makes a forecast."""
    here, whole = Path(__file__).resolve().parent, hashlib.sha256()
    for file in sorted([*here.glob("scaling/*.py"), *here.glob("forecast*.py")]):
        whole.update(f"{file.relative_to(here).as_posix()}\0".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _record(folder: Path, run: str) -> Record:
    for forecast, score in history(folder):
        if forecast.run == run:
            return forecast, score
    raise ConfigError(
        [f"no forecast of {run} is sealed in {folder / FOLDER}: a held-out run may start only after one is"]
    )


def _sealed_target(folder: Path, target: Target) -> SealedTarget:
    fields: dict[str, Any] = dict(vars(target))
    fields["run_folder"] = Path(os.path.relpath(target.run_folder, folder)).as_posix()
    fields |= {name: float(fields[name]) for name in ("flops_full", "flops_causal")}
    return SealedTarget(**fields)


def _chosen(rows: Sequence[Row], choice: FitChoice, run: str) -> tuple[list[Row], list[Dropped]]:
    """(the rows of the law, by name; the others with the reason). Raises ConfigError for rows of several kinds."""
    others = [row for row in rows if row.run != run]
    used, left = split([row for row in others if row.family == choice.family], choice.rows)
    refuse_mixtures(used)
    dropped = [Dropped(row.run, reason) for row, reason in left]
    dropped += [
        Dropped(row.run, f"of family {row.family}, not {choice.family}")
        for row in others
        if row.family != choice.family
    ]
    return used, sorted(dropped, key=lambda one: one.run)


def _same(earlier: Forecast, target: SealedTarget, choice: FitChoice, used: list[Row]) -> Forecast:
    """What is sealed, if that is what is asked. Raises ConfigError with what differs."""
    differ = [
        what
        for what, one, other in (
            ("the run", earlier.target, target),
            ("how rows become a law", earlier.choice, choice),
            ("the rows", earlier.rows, used),
        )
        if one != other
    ]
    if differ:
        raise ConfigError(
            [
                f"a forecast of {earlier.run} was sealed on {earlier.written} ({FOLDER}/{earlier.number:04d}.json), "
                f"with other content: {', '.join(differ)} changed since. It stands; for another forecast, hold out a "
                "run of another name"
            ]
        )
    return earlier


def _once(earlier: Score, row: Row) -> Score:
    """What is written, if it is of this outcome. Raises ConfigError if it is of another."""
    if (earlier.verdict, earlier.measured) != (row.verdict, measured_of(row)):
        raise ConfigError(
            [
                f"{row.run} was scored on {earlier.written} with loss {_loss(earlier.measured)} ({earlier.verdict}); "
                f"now it has {_loss(measured_of(row))} ({row.verdict}). A forecast is scored once: to try again, run "
                "it under another name, with a forecast of its own"
            ]
        )
    return earlier


def _refuse_begun(target: Target) -> None:
    begun = [name for name in _BEGUN if _holds_something(target.run_folder / name)]
    if begun:
        raise ConfigError(
            [
                f"{target.run} has begun: {target.run_folder} holds {', '.join(begun)}. What is known already cannot "
                "be forecast; hold out another run, or give this one a new name"
            ]
        )


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _loss(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"

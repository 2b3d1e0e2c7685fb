"""Forecasts and scores as they lie on disk: `forecasts/0001.json`, `0001.score.json`, ... of a sweep's folder.

Each file says its own SHA-256 (over its content as canonical JSON, so that layout does not matter), that of the
forecast before it, and those of the scores that there were when it was sealed. So a number changed by hand, a forecast
removed from the chain, or a score removed before the next forecast is noticed. A hash keeps no secret: who rewrites the
whole chain is seen only by whoever noted the last hash elsewhere, which is why it is printed.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.check import as_tree, build, digest, to_tree
from conf.errors import ConfigError
from data_prep.files import publish_json
from launch.fit_config import FitChoice
from launch.scaling.bootstrap import Interval
from launch.scaling.rows import Row

SCHEMA_VERSION = 1
FOLDER = "forecasts"
_SCORE = ".score"


@dataclass(frozen=True)
class Target:
    """The run that is forecast, before it is there."""

    run: str
    run_folder: Path
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int
    tokens: int
    flops_full: float
    flops_causal: float
    config_sha256: str
    predicted_device_hours: float | None = None
    """of its own, less what it shares with the run that it branches from"""


@dataclass(frozen=True)
class SealedTarget:
    """A `Target` as a file has it."""

    run: str
    run_folder: str
    """seen from the sweep's folder"""
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int
    tokens: int
    flops_full: float
    flops_causal: float
    config_sha256: str
    predicted_device_hours: float | None


@dataclass(frozen=True)
class Dropped:
    run: str
    reason: str


@dataclass(frozen=True)
class Constants:
    """Of L = E + A/N^alpha + B/D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float


@dataclass(frozen=True)
class Numbers:
    """What rows say of a run of one size and length."""

    n: float
    """in the counting of the choice"""
    d: float
    loss: float
    law_interval: Interval
    run_interval: Interval
    """of a single run: the law's, and the scatter of runs"""
    law: Constants
    e_interval: Interval
    e_identified: bool
    """false where a law without E fits as well"""
    fit_error: float
    """mean of |fitted / measured - 1| over the rows"""
    scatter: float
    """of single runs about the law, of ln loss: the middle of what the residuals leave possible"""
    independent_runs: int
    outside: list[str]
    """how far beyond what was sampled"""


@dataclass(frozen=True)
class Baseline:
    """What anybody would say without a law."""

    name: str
    loss: float | None
    words: str
    """of which run or runs; or why there is none"""


@dataclass(frozen=True)
class Spread:
    sd: float
    """of ln loss between seeds"""
    words: str
    """measured or assumed"""


@dataclass(frozen=True)
class Forecast:
    schema_version: int
    number: int
    written: str
    run: str
    target: SealedTarget
    choice: FitChoice
    numbers: Numbers
    baselines: list[Baseline]
    seed_spread: Spread
    rows: list[Row]
    dropped: list[Dropped]
    code_sha256: str
    """of launch/scaling/*.py and launch/forecast*.py"""
    numpy_version: str
    previous_sha256: str | None
    scores: dict[str, str]
    """{number: SHA-256} of the scores that there were"""
    sha256: str


@dataclass(frozen=True)
class Skill:
    baseline: str
    loss: float | None
    relative_error: float | None
    skill: float | None
    """1 - |error| / |the baseline's error|"""
    words: str


@dataclass(frozen=True)
class Origin:
    """A run of the next size, forecast from all smaller sizes."""

    run: str
    n_sizes: int
    """that the law was fitted to"""
    predicted: float
    measured: float
    inside_80: bool
    inside_95: bool


@dataclass(frozen=True)
class Score:
    schema_version: int
    written: str
    run: str
    forecast_sha256: str
    verdict: str
    """how the run ended: ok, edge, diverged or partial"""
    measured: float | None
    """its loss; None where there is none to compare"""
    stderr: float | None
    relative_error: float | None
    """predicted / measured - 1"""
    error_in_seed_spreads: float | None
    inside_80: bool | None
    inside_95: bool | None
    width_80: float
    """of the interval, relative to the predicted loss"""
    width_95: float
    e_identified: bool
    skills: list[Skill]
    limit: float
    """the largest |relative error| that passes"""
    passed: bool
    goal_met: bool
    failures: list[str]
    """why it did not pass"""
    notes: list[str]
    origins: list[Origin]
    origins_left_out: list[str]
    predicted_device_hours: float | None
    device_hours: float | None
    """own, as measured"""
    sha256: str


Record = tuple[Forecast, Score | None]


def read_chain(folder: Path) -> tuple[list[Record], list[str]]:
    """(what can be read, oldest first; everything that is not as it was written) of a sweep's folder."""
    found, problems = _files(folder)
    forecasts = {k: one for k in found if (one := _read(Forecast, found[k], problems)) and not k.endswith(_SCORE)}
    scores = {
        k.removesuffix(_SCORE): one for k in found if k.endswith(_SCORE) and (one := _read(Score, found[k], problems))
    }
    last = max([int(k.removesuffix(_SCORE)) for k in found], default=0)
    for number in range(1, last + 1):
        if f"{number:04d}" not in found:
            problems.append(f"{FOLDER}/{number:04d}.json is gone: forecasts are numbered without gaps")
    for key, forecast in forecasts.items():
        problems += _links(key, forecast, forecasts, scores)
    for key, score in scores.items():
        if key in forecasts and score.forecast_sha256 != forecasts[key].sha256:
            problems.append(f"{FOLDER}/{key}.score.json is the score of another forecast than {key}.json")
    return [(forecast, scores.get(key)) for key, forecast in forecasts.items()], problems


def publish(folder: Path, number: int, record: Forecast | Score) -> Any:
    """Writes it whole, with its hash; returns it as it was written."""
    tree = hashed(to_tree(record))
    name = f"{number:04d}{_SCORE if isinstance(record, Score) else ''}.json"
    publish_json(folder / FOLDER / name, tree)
    return build(type(record), tree)


def hashed(tree: dict[str, Any]) -> dict[str, Any]:
    return tree | {"sha256": digest({key: value for key, value in tree.items() if key != "sha256"})}


def same_choice(choice: FitChoice) -> FitChoice:
    """Without what a subclass adds."""
    return FitChoice(**{field.name: getattr(choice, field.name) for field in dataclasses.fields(FitChoice)})


def _files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({number, with .score: file}, names that are neither)."""
    files = sorted((folder / FOLDER).glob("*.json")) if (folder / FOLDER).is_dir() else []
    known = {file.name.removesuffix(".json"): file for file in files if re.fullmatch(r"\d{4}(\.score)?", file.stem)}
    strange = [file.name for file in files if file not in known.values()]
    return known, [f"{FOLDER}/{name} is neither a forecast nor a score" for name in strange]


def _read(schema: type, file: Path, problems: list[str]) -> Any:
    """None, and why, if it is not what was written."""
    if (schema is Score) != file.stem.endswith(_SCORE):
        return None
    name = f"{FOLDER}/{file.name}"
    try:
        tree = as_tree(json.loads(file.read_text(encoding="utf-8")))
        if tree is None:
            raise ValueError("no JSON object")
        if tree.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {tree.get('schema_version')}, this program reads {SCHEMA_VERSION}")
        if (stated := tree.get("sha256")) != (real := hashed(tree)["sha256"]):
            problems.append(f"{name} was altered: it says SHA-256 {str(stated)[:12]}, its content has {real[:12]}")
        return build(schema, tree)
    except ConfigError as error:
        problems.append(f"{name} is not as it was written: {error.problems[0]}")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{name} cannot be read: {error}")
    return None


def _links(key: str, forecast: Forecast, forecasts: dict[str, Forecast], scores: dict[str, Score]) -> list[str]:
    found, name = [], f"{FOLDER}/{key}.json"
    if forecast.number != int(key):
        found.append(f"{name} was sealed as number {forecast.number}")
    before = forecasts.get(f"{int(key) - 1:04d}")
    if (before.sha256 if before else None) != forecast.previous_sha256:
        was, is_now = _short(forecast.previous_sha256), _short(before.sha256 if before else None)
        found.append(f"{name} was sealed after the forecast {was}; before it there is {is_now} now")
    for number, sha256 in forecast.scores.items():
        score = scores.get(number)
        if score is None or score.sha256 != sha256:
            state = "gone" if score is None else "another one"
            found.append(f"{FOLDER}/{number}.score.json is {state}: it was {_short(sha256)} when {key}.json was sealed")
    return found


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]


def score_hashes(records: Sequence[Record]) -> dict[str, str]:
    return {f"{forecast.number:04d}": score.sha256 for forecast, score in records if score}

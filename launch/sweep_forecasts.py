"""The sealed forecasts of a sweep and their scores, as its page shows them.

In: `forecasts/NNNN.json` and `NNNN.score.json`, as they were sealed and scored. Out: one `Told` each, oldest first. A
file that cannot be read is named; one whose content is not what its hash says is named as altered.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.check import digest
from launch.rows import figure
from launch.sweep_folder import json_of

Ends = tuple[float, float]


@dataclass(frozen=True)
class Origin:
    """One step of the rolling origin: a run of the next size, forecast from all smaller ones."""

    run: str
    predicted: float | None
    measured: float | None
    inside80: bool | None
    inside95: bool | None

    @property
    def error(self) -> float | None:
        return self.predicted / self.measured - 1 if self.predicted and self.measured else None


@dataclass(frozen=True)
class Skill:
    """Against a simpler rule."""

    name: str
    loss: float | None
    skill: float | None
    words: str


@dataclass(frozen=True)
class Scored:
    measured: float | None
    relative_error: float | None
    seed_spreads: float | None
    """the error in standard deviations between seeds"""
    inside80: bool | None
    inside95: bool | None
    width95: float | None
    limit: float | None
    """the largest relative error that passes"""
    skills: list[Skill]
    passed: bool | None
    goal: bool | None
    remarks: list[str]
    """why it did not pass, and what else there is to say"""
    origins: list[Origin]
    left_out: list[str]
    """rungs without an origin, with the reason"""
    hours: tuple[float | None, float | None]
    """device-hours predicted, and measured"""


@dataclass(frozen=True)
class Told:
    number: str
    run: str
    sealed: str
    sha256: str
    predicted: float | None
    ends80: Ends | None
    ends95: Ends | None
    """of a single run"""
    n_rows: int
    baselines: list[Skill]
    outside: list[str]
    """how far beyond what was sampled"""
    is_altered: bool
    score: Scored | None


def told_forecasts(folder: Path, damage: list[str]) -> list[Told]:
    files = sorted(file for file in (folder / "forecasts").glob("*.json") if not file.name.endswith(".score.json"))
    return [told for file in files if (told := _told(file, damage)) is not None]


def _told(file: Path, damage: list[str]) -> Told | None:
    facts, score_file = json_of(file, damage), file.with_suffix(".score.json")
    if not facts:
        return None
    score = json_of(score_file, damage) if score_file.exists() else {}
    altered = [name for name, tree in ((file.name, facts), (score_file.name, score)) if tree and _is_altered(tree)]
    damage += [f"forecasts/{name} was altered: its content is not what its SHA-256 says" for name in altered]
    numbers = _section(facts, "numbers")
    return Told(
        number=file.stem,
        run=str(facts.get("run") or "?"),
        sealed=str(facts.get("written") or "at a time not told"),
        sha256=str(facts.get("sha256") or ""),
        predicted=_number(numbers, "loss"),
        ends80=_ends(_section(numbers, "run_interval"), 80),
        ends95=_ends(_section(numbers, "run_interval"), 95),
        n_rows=len(_items(facts, "rows")),
        baselines=[_skill(one, "name") for one in _sections(facts, "baselines")],
        outside=_texts(numbers, "outside"),
        is_altered=bool(altered),
        score=_scored(score) if score else None,
    )


def _scored(facts: Mapping[str, Any]) -> Scored:
    return Scored(
        measured=_number(facts, "measured"),
        relative_error=_number(facts, "relative_error"),
        seed_spreads=_number(facts, "error_in_seed_spreads"),
        inside80=_flag(facts, "inside_80"),
        inside95=_flag(facts, "inside_95"),
        width95=_number(facts, "width_95"),
        limit=_number(facts, "limit"),
        skills=[_skill(one, "baseline") for one in _sections(facts, "skills")],
        passed=_flag(facts, "passed"),
        goal=_flag(facts, "goal_met"),
        remarks=[*_texts(facts, "failures"), *_texts(facts, "notes")],
        origins=[
            Origin(
                str(one.get("run") or "?"),
                _number(one, "predicted"),
                _number(one, "measured"),
                _flag(one, "inside_80"),
                _flag(one, "inside_95"),
            )
            for one in _sections(facts, "origins")
        ],
        left_out=_texts(facts, "origins_left_out"),
        hours=(_number(facts, "predicted_device_hours"), _number(facts, "device_hours")),
    )


def _skill(one: Mapping[str, Any], name: str) -> Skill:
    return Skill(str(one.get(name) or "?"), _number(one, "loss"), _number(one, "skill"), str(one.get("words") or ""))


def _is_altered(tree: Mapping[str, Any]) -> bool:
    return tree.get("sha256") != digest({key: value for key, value in tree.items() if key != "sha256"})


def _ends(facts: Mapping[str, Any], percent: int) -> Ends | None:
    low, high = _number(facts, f"low{percent}"), _number(facts, f"high{percent}")
    return None if low is None or high is None else (low, high)


def _number(facts: Mapping[str, Any], key: str) -> float | None:
    found = figure(dict(facts), key)
    return found if found is not None and math.isfinite(found) else None


def _flag(facts: Mapping[str, Any], key: str) -> bool | None:
    found = facts.get(key)
    return found if isinstance(found, bool) else None


def _items(facts: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = facts.get(key)
    return found if isinstance(found, list) else []


def _texts(facts: Mapping[str, Any], key: str) -> list[str]:
    return [str(one) for one in _items(facts, key)]


def _sections(facts: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    yield from (one for one in _items(facts, key) if isinstance(one, dict))


def _section(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = facts.get(key)
    return found if isinstance(found, dict) else {}

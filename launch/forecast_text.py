"""Forecasts and scores as people read them, and the verb `forecast`: all of a sweep's, and whether any was altered."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError
from launch.forecast_record import FOLDER, Forecast, Record, Score, read_chain
from launch.scaling.layout import aligned
from launch.scaling.report import spans

ALTERED = 1
"""exit code: something is not as it was written"""
_SHOWN_NOTES = 6


@dataclass
class ForecastConfig:
    sweep: str
    """a sweep's folder: its forecasts are shown, and checked against their hashes"""

    def problems(self) -> list[str]:
        return []


def forecast(config: ForecastConfig) -> int:
    """Prints the history; the exit code."""
    folder = Path(config.sweep)
    if not (folder / FOLDER).is_dir():
        raise ConfigError([f"sweep={folder}: it has no folder {FOLDER}; name a sweep's folder in which one was sealed"])
    records, problems = read_chain(folder)
    for one, score in records:
        print(forecast_text(one), end="\n\n")
        print(score_text(one, score) if score else f"  {one.run} is not scored yet", end="\n\n")
    print(history_text(records))
    if problems:
        print("\nALTERED: do not believe these forecasts\n" + "\n".join(f"  {problem}" for problem in problems))
        return ALTERED
    last = f"; the last is {records[-1][0].sha256}" if records else ""
    print(f"\n{_so_many(len(records), 'forecast')}, none altered{last}")
    return 0


def forecast_text(one: Forecast) -> str:
    numbers, spread = one.numbers, one.seed_spread
    law, span = numbers.law, numbers.e_interval
    known = "" if numbers.e_identified else "  NOT IDENTIFIED: zero fits as well"
    smallest_first = sorted(one.rows, key=lambda row: (row.n_params_matmul, row.tokens, row.run))
    names = ", ".join(row.run for row in smallest_first)
    lines = [
        f"forecast {one.number:04d} of {one.run}, sealed {one.written}",
        f"  N {numbers.n:,.0f} ({one.choice.counting}), {one.target.tokens:,} tokens, "
        f"{one.target.flops_causal:.3g} FLOPs; {_where(numbers.outside)}",
        aligned(
            [
                ("", "", "80 % interval", "95 % interval", ""),
                (one.choice.loss, f"{numbers.loss:.4f}", *spans(numbers.run_interval, ".4f"), "of this run"),
                ("", "", *spans(numbers.law_interval, ".4f"), "of the law alone"),
                ("E", f"{law.E:.4f}", *spans(span, ".4f"), known.strip()),
            ],
            right=(1,),
            indent="  ",
        ),
        f"  law: {law.E:.4g} + {law.A:.4g}/N^{law.alpha:.4f} + {law.B:.4g}/D^{law.beta:.4f}; mean error "
        f"{numbers.fit_error:.2%}, runs scatter {numbers.scatter:.2%} about it",
        f"  seed spread {spread.sd:.2%}, {spread.words}",
        _wrapped(f"{len(one.rows)} rows of {numbers.independent_runs} independent runs: {names}"),
        *(f"  not used: {dropped.run}: {dropped.reason}" for dropped in one.dropped),
        aligned(
            [(base.name, "none" if base.loss is None else f"{base.loss:.4f}", base.words) for base in one.baselines],
            right=(1,),
            indent="  without a law: ",
        ),
        f"  SHA-256 {one.sha256}; code {one.code_sha256[:12]}, numpy {one.numpy_version}",
    ]
    return "\n".join(lines)


def score_text(one: Forecast, score: Score) -> str:
    verdict = "GOAL MET" if score.goal_met else "PASSED" if score.passed else "NOT PASSED"
    lines = [f"score of {one.run}, {score.written}: {verdict}", *(f"  {failure}" for failure in score.failures)]
    if score.measured is not None and score.relative_error is not None:
        stderr = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        lines += [
            f"  predicted {one.numbers.loss:.4f}, measured {score.measured:.4f}{stderr}: error "
            f"{score.relative_error:+.2%} ({score.error_in_seed_spreads:+.1f} seed spreads; {score.limit:.2%} passes)",
            f"  {_in_or_out(score.inside_80)} the 80 % interval ({score.width_80:.1%} of the loss wide), "
            f"{_in_or_out(score.inside_95)} the 95 % interval ({score.width_95:.1%} wide)",
        ]
        rows = [("", "says", "error", "skill", "")]
        for skill in score.skills:
            rows.append(
                (skill.baseline, _or_none(skill.loss, ".4f"), _or_none(skill.relative_error, "+.2%"),
                 _or_none(skill.skill, "+.2f"), skill.words)
            )  # fmt: skip
        lines.append(aligned(rows, right=(1, 2, 3), indent="  "))
    else:
        lines.append(f"  {one.run} ended {score.verdict}: there is no loss to compare with {one.numbers.loss:.4f}")
    lines += [] if score.e_identified else ["  E was not identified"]
    return "\n".join([*lines, *_origins(score), *_cost(score), *_notes(score)])


def history_text(records: Sequence[Record]) -> str:
    head = ("", "run", "sealed", "predicted", "95 % interval", "measured", "error", "80 %", "95 %", "")
    rows: list[tuple[str, ...]] = [head]
    for one, score in records:
        predicted = f"{one.numbers.loss:.4f}", spans(one.numbers.run_interval, ".4f")[1]
        came = ("", "", "", "", "not scored yet") if score is None else _came(score)
        rows.append((f"{one.number:04d}", one.run, one.written, *predicted, *came))
    known = [score for _, score in records if score and score.inside_95 is not None]
    pooled = [
        f"inside: {sum(bool(s.inside_80) for s in known)} of {len(known)} in the 80 % interval, "
        f"{sum(bool(s.inside_95) for s in known)} in the 95 % interval"
    ]
    return "\n".join([aligned(rows, right=(3, 5, 6)), *(pooled if known else [])])


def _came(score: Score) -> tuple[str, ...]:
    verdict = "goal met" if score.goal_met else "passed" if score.passed else "not passed"
    if score.measured is None or score.relative_error is None:
        return score.verdict, "", "", "", verdict
    inside = (_in_or_out(score.inside_80), _in_or_out(score.inside_95))
    return f"{score.measured:.4f}", f"{score.relative_error:+.2%}", *inside, verdict


def _origins(score: Score) -> list[str]:
    lines = []
    if score.origins:
        within = sum(origin.inside_80 for origin in score.origins), sum(origin.inside_95 for origin in score.origins)
        errors = sorted(abs(origin.predicted / origin.measured - 1) for origin in score.origins)
        lines.append(
            f"  rolling origin, each size from the smaller ones: of {len(score.origins)} runs {within[0]} inside 80 %, "
            f"{within[1]} inside 95 %; median |error| {errors[len(errors) // 2]:.2%}, largest {errors[-1]:.2%}"
        )
    return lines + [f"  rolling origin left out {one}" for one in score.origins_left_out]


def _cost(score: Score) -> list[str]:
    predicted, measured = score.predicted_device_hours, score.device_hours
    if predicted is None or measured is None:
        return []
    return [f"  cost: {measured:.4g} device-hours, {predicted:.4g} predicted ({predicted / measured - 1:+.0%})"]


def _notes(score: Score) -> list[str]:
    more = [f"  and {len(score.notes) - _SHOWN_NOTES} more"] if len(score.notes) > _SHOWN_NOTES else []
    return [*(f"  note: {note}" for note in score.notes[:_SHOWN_NOTES]), *more]


def _wrapped(words: str) -> str:
    return textwrap.fill(words, 120, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _where(outside: Sequence[str]) -> str:
    return f"OUTSIDE what was sampled: {'; '.join(outside)}" if outside else "inside what was sampled"


def _in_or_out(inside: bool | None) -> str:
    return "inside" if inside else "outside"


def _or_none(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _so_many(count: int, what: str) -> str:
    return f"one {what}" if count == 1 else f"{count} {what}s"

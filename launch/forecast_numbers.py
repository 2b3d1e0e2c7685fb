"""A loss before it is measured: from rows, how they become a law, and a size and a length.

Out: the law's loss there with the intervals of the law and of a single run, and what three naive baselines say
(reference: largest smaller run; a power law without E on the envelope; the nearest cell). Nothing is read or written.

The intervals are those of `scaling/scatter.py`. Over synthetic sweeps of known law (4 or 5 sizes, 4 budgets each that
share a trunk, a run of twice the largest size forecast) they hold about as often as they say, where resampled runs
hold too seldom from four sizes, and resampled rows too seldom from either.
"""

from collections.abc import Sequence

import numpy as np

from conf.errors import ConfigError
from launch.fit_config import FitChoice
from launch.forecast_record import Baseline, Constants, Numbers, SealedTarget, Spread
from launch.scaling.analysis import DEFAULT_SEED_NOISE, Family, predict
from launch.scaling.bootstrap import Interval, interval
from launch.scaling.envelope import hull
from launch.scaling.minimum import Floats
from launch.scaling.rows import Convention, Counting, Row, points
from launch.scaling.scatter import seed_spread

LARGEST, POWER, NEAREST = "largest smaller run", "power law without E", "nearest cell"


def numbers_at(known: Family, n: float, d: float) -> Numbers:
    """Raises ConfigError where an interval has no end."""
    there, law = predict(known, None, n, d), known.fit.law
    _refuse_endless(known, there.loss_interval, there.run_interval)
    return Numbers(
        n=n,
        d=d,
        loss=there.loss,
        law_interval=there.loss_interval,
        run_interval=there.run_interval,
        law=Constants(*(float(value) for value in (law.E, law.A, law.B, law.alpha, law.beta))),
        e_interval=interval(known.constants.E),
        e_identified=not known.loose("E"),
        fit_error=known.fit.error,
        scatter=float(np.median(known.scatter.sd)),
        independent_runs=len(set(known.points.groups)),
        outside=list(there.outside),
    )


def size_of(target: SealedTarget, choice: FitChoice) -> float:
    match choice.counting:
        case Counting.matmul:
            return float(target.n_params_matmul)
        case Counting.total:
            return float(target.n_params)
        case Counting.non_embedding:
            return float(target.n_params_non_embedding)
        case Counting.compute:
            return flops_of(target, choice) / (6.0 * target.tokens)


def flops_of(target: SealedTarget, choice: FitChoice) -> float:
    return target.flops_full if choice.flops == Convention.full else target.flops_causal


def spread_of(rows: Sequence[Row]) -> Spread:
    found = seed_spread(rows)
    if found is None:
        return Spread(DEFAULT_SEED_NOISE, f"assumed {DEFAULT_SEED_NOISE:.1%}: no cell was run with two seeds")
    cells = "one cell" if found.cells == 1 else f"{found.cells} cells"
    return Spread(found.sd, f"measured: {cells} with several seeds")


def baselines_of(rows: Sequence[Row], target: SealedTarget, choice: FitChoice) -> list[Baseline]:
    at, flops = points(rows, choice.counting, choice.flops), flops_of(target, choice)
    smaller = [i for i in range(len(rows)) if at.flops[i] < flops]
    largest = max(smaller, key=lambda i: (at.flops[i], -at.loss[i]), default=None)
    away = np.log(at.n / size_of(target, choice)) ** 2 + np.log(at.d / target.tokens) ** 2
    return [
        Baseline(LARGEST, None, "no row has fewer FLOPs") if largest is None else _of(LARGEST, rows[largest]),
        _power(rows, at.flops, at.loss, flops),
        _of(NEAREST, rows[int(away.argmin())]),
    ]


def _of(name: str, row: Row) -> Baseline:
    return Baseline(name, row.loss, row.run)


def _power(rows: Sequence[Row], flops: Floats, loss: Floats, at: float) -> Baseline:
    """Through the rows on the lower hull of (ln C, ln L)."""
    on = list(hull(np.log(flops), np.log(loss)))
    names = ", ".join(rows[i].run for i in on)
    if len(on) < 2:
        return Baseline(POWER, None, f"only {names} is on the envelope; a power needs two runs")
    exponent, scale = np.polyfit(np.log(flops[on]), np.log(loss[on]), 1)
    return Baseline(POWER, float(np.exp(scale + exponent * np.log(at))), f"L ~ C^{exponent:.4f} through {names}")


def _refuse_endless(known: Family, *spans: Interval) -> None:
    if not np.isfinite([end for span in spans for end in (span.low95, span.high95)]).all():
        raise ConfigError(
            [
                f"{len(known.points.n)} rows of {len(set(known.points.groups))} independent runs leave the loss there "
                "without an upper end: that is no forecast. Add runs of other sizes and lengths, or run cells with a "
                "second seed"
            ]
        )

"""A loss before it is measured: from rows, how they become a law, and a size and a length.

Out: the law's loss there with the intervals of the law and of a single run, and what three naive baselines say
(reference: largest smaller run; a power law without E on the envelope; the nearest cell). Nothing is read or written.

The intervals are those of `scaling/scatter.py`. Over synthetic sweeps of known law (4 or 5 sizes, 4 budgets each that
share a trunk, a run of twice the largest size forecast) they hold about as often as they say, where resampled runs
hold too seldom from four sizes, and resampled rows too seldom from either (figures: EXPERIMENTS).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conf.errors import ConfigError
from launch.fit_config import FitChoice
from launch.forecast_record import Baseline, Constants, Numbers, SealedInterval, SealedTarget, Spread
from launch.scaling.analysis import DEFAULT_SEED_NOISE, outside
from launch.scaling.bootstrap import interval
from launch.scaling.envelope import hull
from launch.scaling.law import Law
from launch.scaling.minimum import Floats
from launch.scaling.parametric import Fit, fit
from launch.scaling.rows import Convention, Counting, Points, Row, points, refuse_too_few
from launch.scaling.scatter import Scatter, runs_of, scatter_of, scattered_laws, seed_spread

LARGEST, POWER, NEAREST = "largest smaller run", "power law without E", "nearest cell"
_NEGLIGIBLE_E = 0.01
"""of the lowest loss"""


@dataclass(frozen=True)
class Ground:
    """What forecasts stand on: a law of some rows, and those that the same runs could as well have given."""

    rows: Sequence[Row]
    at: Points
    found: Fit
    scatter: Scatter
    laws: Law
    seed: int


def ground(rows: Sequence[Row], choice: FitChoice) -> Ground:
    """Raises ConfigError where the rows carry no law."""
    at = points(rows, choice.counting, choice.flops)
    refuse_too_few(rows, at.n, at.d)
    found, rng = fit(at.n, at.d, at.loss, delta=choice.delta), np.random.default_rng(choice.seed)
    scatter = scatter_of(found, at, seed_spread(rows), choice.resamples, rng)
    return Ground(rows, at, found, scatter, scattered_laws(found, at, scatter, rng), choice.seed)


def numbers_at(known: Ground, n: float, d: float) -> Numbers:
    """Raises ConfigError where an interval has no end."""
    losses, span_e, law = known.laws.loss(n, d), interval(known.laws.E), known.found.law
    runs = runs_of(losses, known.scatter, np.random.default_rng([known.seed, 1]))
    spans = _both_ways(losses, law.loss(n, d)), _both_ways(runs, law.loss(n, d))
    _refuse_endless(known.rows, *(value for span in spans for value in (span.low95, span.high95)))
    lowest = float(known.at.loss.min())
    return Numbers(
        n=n,
        d=d,
        loss=float(law.loss(n, d)),
        law_interval=spans[0],
        run_interval=spans[1],
        law=Constants(*(float(value) for value in (law.E, law.A, law.B, law.alpha, law.beta))),
        e_interval=SealedInterval(span_e.low95, span_e.low80, span_e.high80, span_e.high95),
        e_identified=min(span_e.low95, float(law.E)) >= _NEGLIGIBLE_E * lowest,
        fit_error=known.found.error,
        scatter=float(np.median(known.scatter.sd)),
        independent_runs=len(set(known.at.groups)),
        outside=list(outside(known.at, n, d)),
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


def _both_ways(losses: Floats, fitted: float) -> SealedInterval:
    """From the lower to the higher of two ends: the percentile of the drawn losses, and what lies as far on the other
    side of the fitted one. Percentiles alone are wrong where E is near zero, which it cannot pass: what pushed the fit
    to one side would push the draws to the same side once more."""
    ahead, back = interval(losses), interval(fitted**2 / losses)
    return SealedInterval(
        min(ahead.low95, back.low95),
        min(ahead.low80, back.low80),
        max(ahead.high80, back.high80),
        max(ahead.high95, back.high95),
    )


def _refuse_endless(rows: Sequence[Row], *ends: float) -> None:
    if not np.isfinite(ends).all():
        raise ConfigError(
            [
                f"{len(rows)} rows of {len({row.group for row in rows})} independent runs leave the loss there "
                "without an upper end: that is no forecast. Add runs of other sizes and lengths, or run cells with a "
                "second seed"
            ]
        )

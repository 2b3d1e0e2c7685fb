"""Everything that rows of one ledger say: each estimator beside the others, and how sure each is.

In: rows that may be fitted. Out: one `Analysis`; `report.py` makes text of it. Nothing is read or printed here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from conf.errors import ConfigError
from launch.scaling.bootstrap import Interval, interval, resamples, with_noise
from launch.scaling.envelope import Envelope, envelope
from launch.scaling.families import Ratio, compare
from launch.scaling.isoflop import Bottom, Power, budgets, parabola, power
from launch.scaling.law import Cost, Law, cost_of
from launch.scaling.minimum import Floats
from launch.scaling.overtraining import fit_overtraining
from launch.scaling.parametric import Fit, fit, profile, refit
from launch.scaling.projection import project
from launch.scaling.repeated import Decay, fit_decay
from launch.scaling.rows import Convention, Counting, Points, Row, points, refuse_too_few
from launch.scaling.scatter import seed_spread

N_CONSTANTS = 5
DEFAULT_SEED_NOISE = 0.005
"""relative, where no cell was run with two seeds: what Porian et al. 2024 take"""
_CHUNK = 100
_PROFILED = {"E": (0.0, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25), "alpha": (0.5, 0.7, 0.85, 1.0, 1.15, 1.4, 2.0)}


@dataclass(frozen=True)
class Settings:
    counting: Counting
    convention: Convention
    delta: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Family:
    """One family's law with its resamples."""

    points: Points
    cost: Cost
    fit: Fit
    laws: Law
    n_laws: int
    n_refused: int
    """draws of runs that could not carry a law"""


@dataclass(frozen=True)
class Counted:
    counting: Counting
    fit: Fit
    cost: Cost


@dataclass(frozen=True)
class Prediction:
    n: float
    d: float
    flops: float
    loss: float
    n_interval: Interval | None
    d_interval: Interval | None
    """of the best size and length; None where both were asked for"""
    loss_interval: Interval
    """of the law"""
    run_interval: Interval
    """of a single run: noise added"""
    outside: tuple[str, ...]
    """how far beyond what was sampled"""


@dataclass(frozen=True)
class Analysis:
    family: Family
    projected: Law
    overtraining: Fit
    envelope: Envelope | str
    """or why there is none"""
    bottoms: list[Bottom]
    isoflop: Power | None
    profiles: dict[str, list[tuple[float, float]]]
    """of each constant: (value, rise of the objective, relative)"""
    countings: list[Counted]
    seed_noise: float | None
    """standard deviation of ln loss between seeds; None where no cell has two"""


def analyse(rows: Sequence[Row], settings: Settings, progress: Callable[[int, int], None]) -> Analysis:
    """Raises ConfigError where the rows carry no law."""
    family = fit_family(rows, settings, progress)
    at = family.points
    noise = seed_noise(rows)
    bottoms = [
        parabola(flops, at.n[which], at.loss[which], noise or DEFAULT_SEED_NOISE)
        for flops, which in budgets(at.flops)
        if len(which) >= 3
    ]
    return Analysis(
        family=family,
        projected=project(at.n, at.d, at.loss),
        overtraining=fit_overtraining(at.n, at.d, at.loss),
        envelope=_envelope(at),
        bottoms=bottoms,
        isoflop=power(bottoms) if sum(not bottom.flag for bottom in bottoms) >= 2 else None,
        profiles={name: _profile(family, name) for name in ("E", "alpha", "beta")},
        countings=[_counted(rows, counting, settings) for counting in Counting],
        seed_noise=noise,
    )


def fit_family(rows: Sequence[Row], settings: Settings, progress: Callable[[int, int], None]) -> Family:
    at = points(rows, settings.counting, settings.convention)
    refuse_too_few(rows, at.n, at.d)
    found = fit(at.n, at.d, at.loss, delta=settings.delta)
    drawn, refused = resamples(at.groups, at.n, at.d, settings.resamples, settings.seed)
    if len(drawn) < settings.resamples:
        raise ConfigError(
            [
                f"{len(set(at.groups))} independent runs: only {len(drawn)} of {len(drawn) + refused} draws carry a "
                "law, so there are no intervals. Add runs of other sizes and lengths, or lower "
                f"resamples={settings.resamples}"
            ]
        )
    laws = []
    for start in range(0, len(drawn), _CHUNK):
        progress(start, len(drawn))
        laws.append(refit(found, at.n, at.d, at.loss, drawn[start : start + _CHUNK]))
    progress(len(drawn), len(drawn))
    return Family(at, cost_of(at.n, at.d, at.flops), found, _joined(laws), len(drawn), refused)


def predict(family: Family, flops: float | None, n: float | None, d: float | None, seed: int) -> Prediction:
    """At a size and a length, or at the best of both for so many FLOPs."""
    law, laws, cost = family.fit.law, family.laws, family.cost
    n_interval = d_interval = None
    if n is None or d is None:
        assert flops is not None
        n, d = (float(value) for value in law.optimum(flops, cost))
        ns, ds = laws.optimum(flops, cost)
        n_interval, d_interval = interval(ns), interval(ds)
    else:
        flops = float(cost.flops(n, d))
    predicted = laws.loss(n, d)
    noisy = with_noise(predicted, family.fit.residuals, N_CONSTANTS, seed)
    return Prediction(
        n, d, flops, float(law.loss(n, d)), n_interval, d_interval, interval(predicted), interval(noisy),
        outside(family.points, n, d),
    )  # fmt: skip


def outside(at: Points, n: float, d: float) -> tuple[str, ...]:
    """Beyond the sampled sizes, lengths and tokens per parameter: which, and by what factor."""
    found = []
    for name, value, sampled in (("N", n, at.n), ("D", d, at.d), ("D/N", d / n, at.d / at.n)):
        if value > sampled.max() * 1.001:
            found.append(f"{name} {value / sampled.max():.3g} times the largest sampled ({sampled.max():.3g})")
        if value < sampled.min() / 1.001:
            found.append(f"{name} {sampled.min() / value:.3g} times below the smallest sampled ({sampled.min():.3g})")
    return tuple(found)


def compare_families(first: Family, second: Family) -> list[Ratio]:
    """At three losses that runs of both families have reached."""
    low = max(first.points.loss.min(), second.points.loss.min())
    high = min(first.points.loss.max(), second.points.loss.max())
    count = min(first.n_laws, second.n_laws)
    laws = (first.laws.at(slice(count)), second.laws.at(slice(count)))
    levels = np.array([low]) if high <= low else np.linspace(high, low, 4)[1:]
    return compare(first.fit.law, second.fit.law, *laws, (first.cost, second.cost), levels)


def decay(family: Family, rows: Sequence[Row], settings: Settings) -> Decay:
    """Half-lives of repetition, from the family's own rows and those that repeat."""
    more, own = points(rows, settings.counting, settings.convention), family.points
    n, d, unique, loss = (np.concatenate([getattr(own, k), getattr(more, k)]) for k in ("n", "d", "unique", "loss"))
    return fit_decay(family.fit.law, n, d, unique, loss, settings.delta)


def seed_noise(rows: Sequence[Row]) -> float | None:
    """Pooled over cells that were run with several seeds."""
    spread = seed_spread(rows)
    return spread.sd if spread else None


def _envelope(at: Points) -> Envelope | str:
    try:
        return envelope(at.flops, at.n, at.d, at.loss)
    except ConfigError as error:
        return error.problems[0]


def _profile(family: Family, name: str) -> list[tuple[float, float]]:
    at, best = family.points, getattr(family.fit.law, name)
    values = np.array([share * best for share in _PROFILED["E" if name == "E" else "alpha"]])
    values = values[values < at.loss.min()] if name == "E" else values
    objectives = profile(family.fit, at.n, at.d, at.loss, name, values)
    rises = objectives / max(family.fit.objective, 1e-300) - 1
    return [(float(value), float(rise)) for value, rise in zip(values, rises, strict=True)]


def _counted(rows: Sequence[Row], counting: Counting, settings: Settings) -> Counted:
    at = points(rows, counting, settings.convention)
    return Counted(counting, fit(at.n, at.d, at.loss, delta=settings.delta), cost_of(at.n, at.d, at.flops))


def _joined(laws: Sequence[Law]) -> Law:
    columns: list[Floats] = [
        np.concatenate([getattr(law, k) for law in laws]) for k in ("E", "A", "B", "alpha", "beta")
    ]
    return Law(*columns)

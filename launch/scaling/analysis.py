"""Everything that rows of one ledger say: each estimator beside the others, and how sure each is.

In: rows that may be fitted. Out: one `Analysis`; `report.py` makes text of it. Nothing is read or printed here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from conf.errors import ConfigError
from launch.fit_config import FitChoice
from launch.scaling.bootstrap import Interval, interval, interval_about, resamples
from launch.scaling.envelope import Envelope, envelope
from launch.scaling.families import Ratio, compare
from launch.scaling.isoflop import Bottom, Power, budgets, parabola, power
from launch.scaling.law import Cost, Law, cost_of
from launch.scaling.minimum import Floats
from launch.scaling.overtraining import fit_overtraining
from launch.scaling.parametric import LEAST_EXPONENT, Fit, fit, profile, refit, refit_losses
from launch.scaling.projection import project
from launch.scaling.repeated import Decay, fit_decay
from launch.scaling.rows import Counting, Points, Row, points, refuse_too_few
from launch.scaling.scatter import Scatter, runs_of, scatter_of, scattered_losses, seed_spread

ENOUGH_RUNS = 10
"""independent ones, to be resampled: with ten of four rows each, 95 % intervals of constants hold 95 to 100 of a
hundred, with five 90 to 98, and those of predictions 90 (40 surfaces of known law)"""
NEGLIGIBLE_E = 0.01
"""of the lowest loss"""
DEFAULT_SEED_NOISE = 0.005
"""relative, where no cell was run with two seeds: what Porian et al. 2024 take"""
_CHUNK = 100


def _quiet(done: int, of: int) -> None:
    pass


_PROFILED = {"E": (0.0, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25), "alpha": (0.5, 0.7, 0.85, 1.0, 1.15, 1.4, 2.0)}


@dataclass(frozen=True)
class Family:
    """One family's law, and others that the same runs could as well have given."""

    points: Points
    cost: Cost
    fit: Fit
    scatter: Scatter
    laws: Law
    """one for each draw of the scatter: whatever is predicted has its intervals from them"""
    constants: Law
    """those that the intervals of constants are of: resampled runs where there are enough, else the same"""
    drawn: str
    """which they are, in words"""
    seed: int

    @property
    def lowest(self) -> float:
        return float(self.points.loss.min())

    def loose(self, name: str) -> bool:
        """A constant that these rows leave open: E where none fits as well, an exponent that reaches its bound."""
        span = interval(getattr(self.constants, name))
        match name:
            case "E":
                return min(span.low95, float(self.fit.law.E)) < NEGLIGIBLE_E * self.lowest
            case "alpha" | "beta":
                return span.low95 <= 1.5 * LEAST_EXPONENT or span.high95 > 4 * span.low95
            case _:
                return False

    def spans(self, fitted: float, losses: Floats) -> tuple[Interval, Interval]:
        """(of the law, of a single run): of a loss that the fitted law says, and what `laws` say of it."""
        runs = runs_of(losses, self.scatter, np.random.default_rng([self.seed, 1]))
        return interval_about(fitted, losses), interval_about(fitted, runs)


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


def analyse(rows: Sequence[Row], choice: FitChoice, progress: Callable[[int, int], None] = _quiet) -> Analysis:
    """Raises ConfigError where the rows carry no law."""
    family = fit_family(rows, choice, progress)
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
        countings=[_counted(rows, counting, choice) for counting in Counting],
        seed_noise=noise,
    )


def fit_family(rows: Sequence[Row], choice: FitChoice, progress: Callable[[int, int], None] = _quiet) -> Family:
    at = points(rows, choice.counting, choice.flops)
    refuse_too_few(rows, at.n, at.d)
    found, rng = fit(at.n, at.d, at.loss, delta=choice.delta), np.random.default_rng(choice.seed)
    scatter = scatter_of(found, at, seed_spread(rows), choice.resamples, rng)
    losses = scattered_losses(found.law, at, scatter, rng)
    laws = _in_chunks(lambda some: refit_losses(found, at.n, at.d, losses[some]), choice.resamples, progress)
    constants, drawn = _resampled(found, at, choice, progress) or (laws, _scattered_words(at, choice))
    return Family(at, cost_of(at.n, at.d, at.flops), found, scatter, laws, constants, drawn, choice.seed)


def predict(family: Family, flops: float | None, n: float | None, d: float | None) -> Prediction:
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
    fitted = float(law.loss(n, d))
    of_law, of_run = family.spans(fitted, laws.loss(n, d))
    return Prediction(n, d, flops, fitted, n_interval, d_interval, of_law, of_run, outside(family.points, n, d))


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
    levels = np.array([low]) if high <= low else np.linspace(high, low, 4)[1:]
    return compare(first.fit.law, second.fit.law, first.laws, second.laws, (first.cost, second.cost), levels)


def decay(family: Family, rows: Sequence[Row], choice: FitChoice) -> Decay:
    """Half-lives of repetition, from the family's own rows and those that repeat."""
    more, own = points(rows, choice.counting, choice.flops), family.points
    n, d, unique, loss = (np.concatenate([getattr(own, k), getattr(more, k)]) for k in ("n", "d", "unique", "loss"))
    return fit_decay(family.fit.law, n, d, unique, loss, choice.delta)


def seed_noise(rows: Sequence[Row]) -> float | None:
    """Pooled over cells that were run with several seeds."""
    spread = seed_spread(rows)
    return spread.sd if spread else None


def _resampled(
    found: Fit, at: Points, choice: FitChoice, progress: Callable[[int, int], None]
) -> tuple[Law, str] | None:
    """Laws of resampled runs; None where too few runs are independent, or too few draws of them carry a law."""
    n_runs = len(set(at.groups))
    if n_runs < ENOUGH_RUNS:
        return None
    drawn, refused = resamples(at.groups, at.n, at.d, choice.resamples, choice.seed)
    if len(drawn) < choice.resamples:
        return None
    laws = _in_chunks(lambda some: refit(found, at.n, at.d, at.loss, drawn[some]), len(drawn), progress)
    more = f", {refused} more draws could not carry a law" if refused else ""
    return laws, f"{len(drawn)} resamples of {n_runs} independent runs{more}"


def _scattered_words(at: Points, choice: FitChoice) -> str:
    return (
        f"{choice.resamples} draws of how {len(at.n)} rows scatter about the law: {len(set(at.groups))} independent "
        f"runs are too few to resample, {ENOUGH_RUNS} are enough"
    )


def _in_chunks(laws: Callable[[slice], Law], count: int, progress: Callable[[int, int], None]) -> Law:
    found = []
    for start in range(0, count, _CHUNK):
        progress(start, count)
        found.append(laws(slice(start, start + _CHUNK)))
    progress(count, count)
    return _joined(found)


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


def _counted(rows: Sequence[Row], counting: Counting, choice: FitChoice) -> Counted:
    at = points(rows, counting, choice.flops)
    return Counted(counting, fit(at.n, at.d, at.loss, delta=choice.delta), cost_of(at.n, at.d, at.flops))


def _joined(laws: Sequence[Law]) -> Law:
    columns: list[Floats] = [
        np.concatenate([getattr(law, k) for law in laws]) for k in ("E", "A", "B", "alpha", "beta")
    ]
    return Law(*columns)

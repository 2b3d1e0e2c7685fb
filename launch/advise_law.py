"""The best of many real shapes for a budget, by a law and by each of those that fit about as well. Only arithmetic.

In: a law of loss, the shapes with what a token of each costs, how much text there is. Out: which shape, the loss, and
what is lost if the true law is another one. Tokens follow from the budget at the exact cost of each shape: the closed
form of the optimum holds for C = 6ND alone.

Text that is seen again counts for less (`scaling/repeated.py`). While the best run sees no token twice, only its tokens
are discounted, for the shapes beside it that would repeat; where the supply binds, excess parameters are too, as the
law was published and fitted.
"""

from dataclasses import dataclass, replace

import numpy as np

from launch.scaling.bootstrap import Interval, interval
from launch.scaling.law import Law
from launch.scaling.minimum import Floats, Indices
from launch.scaling.repeated import Repeated, worth

_LOG_BUDGETS = (np.log(1e3), np.log(1e40))
_HALVINGS = 60
_COARSE = 1.05  # shapes for the drawn laws of a search: sizes this far apart
_NEAR, _AROUND, _SIZES = 4.0, 100.0, 921  # sizes between real ones: a hundredth apart
_AT_AN_END = 0.05  # of the drawn laws, nearest to an end of the interval


@dataclass(frozen=True)
class Candidates:
    n: Floats
    cost: Floats
    """of a token, in the unit of the budget"""
    tokens_per_step: int

    def tokens(self, budget: float) -> Floats:
        """In whole steps; a budget that ends within a billionth of one reaches it."""
        return np.floor(budget / (self.cost * self.tokens_per_step) * (1 + 1e-9)) * self.tokens_per_step

    def coarse(self) -> "Candidates":
        kept, last = [], 0.0
        for i in np.argsort(self.n, kind="stable"):
            if self.n[i] >= last * _COARSE:
                kept.append(int(i))
                last = float(self.n[i])
        return replace(self, n=self.n[kept], cost=self.cost[kept])


@dataclass(frozen=True)
class Supply:
    """Unique tokens, and how fast they wear."""

    tokens: float
    """infinite where nobody said"""
    r_d: float
    r_n: float
    binds: bool = False

    def loss(self, law: Law, n: Floats, d: Floats) -> Floats:
        """Infinite where there is not one step."""
        unique = np.minimum(d, self.tokens)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.binds:
                found = Repeated(law, self.r_d, self.r_n).loss(n, d, unique)
            else:
                found = law.loss(n, worth(d, unique, self.r_d) if np.isfinite(self.tokens) else d)
        return np.where(d > 0, found, np.inf)

    def least_loss(self, law: Law) -> float:
        """Of any network, at any length."""
        if not np.isfinite(self.tokens):
            return float(law.E)
        return float(self.loss(law, np.array(1e30), np.array(1e30)))


def best(law: Law, supply: Supply, shapes: Candidates, budget: float) -> int:
    return int(np.argmin(supply.loss(law, shapes.n, shapes.tokens(budget))))


@dataclass(frozen=True)
class Regret:
    """Loss given away if a drawn law is the true one: that of the advised run less that of its own best."""

    n: Interval
    """best sizes by the drawn laws, between real ones too"""
    d: Interval
    """and their lengths"""
    if_low: float
    """where the best size is at the low end of its 80 % interval"""
    if_high: float
    median: float
    high90: float
    """by nine of ten laws it gives away less"""


def regret(laws: Law, supply: Supply, shapes: Candidates, budget: float, advised: int) -> Regret:
    """Each law's best is sought among the real shapes, and among sizes between them at the cost of their
    neighbours: where real ones are far apart, the same one would be best for all, and nothing seem uncertain."""
    tokens, column = shapes.tokens(budget), _column(laws)
    real = supply.loss(column, shapes.n[None, :], tokens[None, :])
    n, d = _between(shapes, budget, advised)
    every = supply.loss(column, n[None, :], d[None, :])
    own = every.argmin(axis=1)
    lost = real[:, advised] - np.minimum(real.min(axis=1), every.min(axis=1))
    sizes = interval(n[own])
    return Regret(
        n=sizes,
        d=interval(d[own]),
        if_low=_near(lost, n[own], sizes.low80),
        if_high=_near(lost, n[own], sizes.high80),
        median=float(np.median(lost)),
        high90=float(np.quantile(lost, 0.9)),
    )


def _between(shapes: Candidates, budget: float, advised: int) -> tuple[Floats, Floats]:
    """(sizes, their tokens) around the advised one, at a cost that is a power of the size, as near it."""
    middle = float(shapes.n[advised])
    priced = np.isfinite(shapes.cost)
    near = priced & (np.abs(np.log(shapes.n / middle)) < np.log(_NEAR))
    power = _cost_power(shapes.n[near], shapes.cost[near])
    n = np.geomspace(middle / _AROUND, middle * _AROUND, _SIZES)
    return n, budget / (shapes.cost[advised] * (n / middle) ** power)


def _cost_power(n: Floats, cost: Floats) -> float:
    """p of cost ~ n^p; 1, as in 6ND, where fewer than two sizes tell."""
    x = np.log(n) - np.log(n).mean()
    spread = float(x @ x)
    return float(x @ np.log(cost) / spread) if spread > 1e-9 else 1.0


def _near(lost: Floats, sizes: Floats, end: float) -> float:
    """Median over the laws whose best size is nearest to `end`."""
    count = max(1, round(_AT_AN_END * len(sizes)))
    nearest: Indices = np.argsort(np.abs(np.log(sizes / end)), kind="stable")[:count]
    return float(np.median(lost[nearest]))


def to_reach(law: Law, supply: Supply, shapes: Candidates, loss: float) -> Floats:
    """(laws,): least budgets at whose best shape the loss is reached; infinite where none does. Steps are not rounded
    here."""
    laws = _column(law)
    low, high = (np.full(len(laws.E), end) for end in _LOG_BUDGETS)
    reachable = _lowest(laws, supply, shapes, high) <= loss
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = _lowest(laws, supply, shapes, middle) <= loss
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reachable, np.exp(high), np.inf)


def _lowest(laws: Law, supply: Supply, shapes: Candidates, log_budgets: Floats) -> Floats:
    d = np.exp(log_budgets)[:, None] / shapes.cost[None, :]
    return supply.loss(laws, shapes.n[None, :], d).min(axis=1)


def _column(law: Law) -> Law:
    """Constants against shapes: (laws, 1)."""
    return Law(*(np.atleast_1d(value)[:, None] for value in (law.E, law.A, law.B, law.alpha, law.beta)))

"""How much single runs scatter about a law, and which laws the same runs could as well have given.

In: a fitted law, its rows, which of them share a trunk, and how far runs of several seeds lie apart where there are
such. Out: draws of the scatter, for each the losses that the same runs could have shown, and those of a further run.

A sweep whose budgets branch from one trunk a size has as many independent runs as sizes: five. Resampling those leaves
draws of three sizes for a curve of three constants, and resampling rows takes noise of a trunk for curvature. Here the
design stays, and losses are drawn: ln loss = ln law + sd · (√shared · trunk's + √(1 - shared) · own). Neither sd nor
shared is known; both are drawn from what the residuals say (restricted likelihood, Patterson and Thompson 1971, with
flat priors on ln sd and on shared), so that intervals are as wide as 15 degrees of freedom, not infinitely many, allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from launch.scaling.law import Law
from launch.scaling.minimum import Floats
from launch.scaling.parametric import Fit
from launch.scaling.rows import Points, Row

_SHARES = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
_MOST = 1.0
"""of sd: runs that scatter by a factor of e are no sweep; residuals of one degree of freedom would say so at times"""
_RUNS_A_LAW = 8


@dataclass(frozen=True)
class SeedSpread:
    """Of ln loss, between runs that differ in their seed alone."""

    sd: float
    freedom: int
    """degrees of freedom: trunks beyond the first of each size"""
    cells: int


@dataclass(frozen=True)
class Scatter:
    sd: Floats
    """(draws,) of ln loss"""
    shared: Floats
    """(draws,) share of the variance that all rows of a group have in common"""


def seed_spread(rows: Sequence[Row]) -> SeedSpread | None:
    """Pooled over cells that were run with several seeds. Rows of one seed in one cell differ in something else, such
    as their learning rate: that cell says nothing about seeds."""
    cells: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.n_params, row.tokens, row.family), []).append(row)
    repeated = [cell for cell in cells.values() if len(cell) > 1 and len({row.seed for row in cell}) == len(cell)]
    if not repeated:
        return None
    squares = sum(float(np.var(np.log([row.loss for row in cell]))) * len(cell) for cell in repeated)
    freedom = sum(len(cell) - 1 for cell in repeated)
    trunks = {(row.n_params, row.group) for cell in repeated for row in cell}
    sizes = {cell[0].n_params for cell in repeated}
    return SeedSpread(float(np.sqrt(squares / freedom)), min(freedom, len(trunks) - len(sizes)), len(repeated))


def scatter_of(found: Fit, at: Points, seeds: SeedSpread | None, count: int, rng: np.random.Generator) -> Scatter:
    """`count` draws of what the residuals, and the spread between seeds, leave possible."""
    free = _unfitted(found.law, at)
    remains, together = free.T @ found.residuals, free.T @ _same_group(at.groups) @ free
    freedom = len(remains) + (seeds.freedom if seeds else 0)
    known = seeds.freedom * seeds.sd**2 if seeds else 0.0
    shares = _SHARES if len(set(at.groups)) < len(at.groups) else _SHARES[:1]
    squares, logs = np.zeros(len(shares)), np.zeros(len(shares))
    for i, share in enumerate(shares):
        covariance = (1 - share) * np.eye(len(remains)) + share * together
        squares[i] = remains @ np.linalg.solve(covariance, remains) + known
        logs[i] = -0.5 * np.linalg.slogdet(covariance)[1] - 0.5 * freedom * np.log(max(squares[i], 1e-300))
    likely = np.exp(logs - logs.max())
    which = rng.choice(len(shares), size=count, p=likely / likely.sum())
    return Scatter(np.minimum(np.sqrt(squares[which] / rng.chisquare(freedom, count)), _MOST), shares[which])


def scattered_losses(law: Law, at: Points, scatter: Scatter, rng: np.random.Generator) -> Floats:
    """(draws, rows): what the same runs could have shown, if they lie about the fitted law as each draw says."""
    names = sorted(set(at.groups))
    trunks = rng.standard_normal((len(scatter.sd), len(names)))[:, [names.index(group) for group in at.groups]]
    own = rng.standard_normal(trunks.shape)
    shared = scatter.shared[:, None]
    noise = scatter.sd[:, None] * (np.sqrt(shared) * trunks + np.sqrt(1 - shared) * own)
    return law.loss(at.n, at.d) * np.exp(noise)


def runs_of(losses: Floats, scatter: Scatter, rng: np.random.Generator) -> Floats:
    """Losses that a run with a trunk of its own may show: several for each draw, so that percentiles are smooth."""
    return (losses * np.exp(scatter.sd * rng.standard_normal((_RUNS_A_LAW, len(losses))))).ravel()


def _unfitted(law: Law, at: Points) -> Floats:
    """(rows, degrees of freedom): orthonormal directions of the residuals that no constant of the law can take up."""
    a, b = law.A * at.n**-law.alpha, law.B * at.d**-law.beta
    ones = np.ones(len(at.n))
    slopes = np.stack([ones, a, a * _centred(at.n), b, b * _centred(at.d)], axis=1) / (law.E + a + b)[:, None]
    axes, sizes, _ = np.linalg.svd(slopes / np.linalg.norm(slopes, axis=0))
    return axes[:, int((sizes > 1e-7 * sizes[0]).sum()) :]


def _centred(values: Floats) -> Floats:
    return np.log(values) - np.log(values).mean()


def _same_group(groups: Sequence[str]) -> Floats:
    return np.array([[one == other for other in groups] for one in groups], dtype=np.float64)

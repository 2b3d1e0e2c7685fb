"""Fits of L(N, D) = E + A/N^alpha + B/D^beta, the third estimator of Hoffmann et al. 2022 (arXiv 2203.15556, D.3).

In: N, D, losses. Out: the law at the exact minimum of sum Huber(ln predicted - ln observed), with how many starts agree
on it. The starts are a grid of exponents with the best E, A, B for each (variable projection), and the corners of a
box. ln N and ln D are centred: that removes the ill-conditioning of A and alpha.

`shared=True` keeps alpha = beta, which is the over-training form (see `overtraining.py`); `logs=False` with
delta=infinity is least squares of the losses themselves.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from launch.scaling.law import Law
from launch.scaling.minimum import Floats, Problem, minimise
from launch.scaling.projection import linear_part

HUBER_DELTA = 1e-3
"""as in Hoffmann et al., appendix D.3"""
AGREEING = 1e-6
"""of the objective: starts that end as close to the lowest agree with it"""
E_AT_ZERO = 1e-6
"""of the lowest loss: E is not searched below"""
LEAST_EXPONENT = 0.01
ENOUGH_FOR_A_START = 1e-9  # of the objective; the best of them goes on to the exact minimum
ENOUGH_FOR_A_RESAMPLE = 1e-7
ENOUGH_FOR_AN_OUTCOME = 1e-5
_N_BESIDE = 3
_EXPONENTS = np.geomspace(0.05, 1.5, 7)
_A, _B, _E, _ALPHA, _BETA = range(5)


@dataclass(frozen=True)
class Fit:
    law: Law
    objective: float
    exact: bool
    """nothing is to be gained there; false where the steps ran out"""
    n_starts: int
    n_agreeing: int
    """starts that reached the objective within AGREEING of the lowest"""
    others: tuple[float, ...]
    """objectives of other minima that starts ended in, relative to the lowest, lowest first"""
    residuals: Floats
    """ln predicted - ln observed, a row"""
    delta: float
    logs: bool
    shared: bool
    constants: Floats
    """a, b, e, alpha, beta on centred axes: where another fit of almost the same rows starts"""

    @property
    def error(self) -> float:
        """Mean of |predicted / observed - 1|."""
        return float(np.mean(np.abs(np.expm1(self.residuals))))


def fit(
    n: Floats, d: Floats, loss: Floats, *, delta: float = HUBER_DELTA, logs: bool = True, shared: bool = False
) -> Fit:
    problem, starts = _problem(n, d, loss, delta, logs, shared), _starts(n, d, loss)
    reached = minimise(problem, _packed(starts, shared), enough=ENOUGH_FOR_A_START)
    best = int(reached.objective.argmin())
    exact = minimise(problem, reached.values[best : best + 1])
    lowest = float(exact.objective[0])
    constants = _unpacked(exact.values, shared)
    law = _laws(n, d, constants).at(0)
    distance = reached.objective / max(lowest, 1e-300) - 1
    agreeing = (distance <= AGREEING) | (reached.objective < 1e-18)
    return Fit(
        law=law,
        objective=lowest,
        exact=bool(exact.finished[0]),
        n_starts=len(starts),
        n_agreeing=int(agreeing.sum()),
        others=tuple(sorted({round(float(value), 6) for value in distance[~agreeing]})[:3]),
        residuals=np.log(law.loss(n, d)) - np.log(loss),
        delta=delta,
        logs=logs,
        shared=shared,
        constants=constants[0],
    )


def refit(found: Fit, n: Floats, d: Floats, loss: Floats, weights: Floats) -> Law:
    """One law for each row of `weights` (resamples, rows): how often each row counts."""
    problem = _problem(n, d, loss, found.delta, found.logs, found.shared)
    return _laws(n, d, _lowest(found, problem, len(weights), weights, ENOUGH_FOR_A_RESAMPLE))


def refit_losses(found: Fit, n: Floats, d: Floats, losses: Floats) -> Law:
    """One law for each row of `losses` (outcomes, rows): what other outcomes of the same runs would have given."""
    problem = _problem(n, d, losses.min(axis=0), found.delta, found.logs, found.shared)
    targets = np.tile(np.log(losses) if found.logs else losses, (_N_BESIDE, 1))
    return _laws(n, d, _lowest(found, replace(problem, target=targets), len(losses), None, ENOUGH_FOR_AN_OUTCOME))


def profile(found: Fit, n: Floats, d: Floats, loss: Floats, constant: str, values: Floats) -> Floats:
    """Objectives with one constant (E, alpha or beta) held at each of `values`, all others at their best."""
    problem = _problem(n, d, loss, found.delta, found.logs, False)
    column = {"E": _E, "alpha": _ALPHA, "beta": _BETA}[constant]
    held = np.log(np.maximum(values, 1e-12)) if constant == "E" else values
    ends = []
    for start in (found.constants, *_starts(n, d, loss)[::20]):
        starts = np.repeat(np.asarray(start)[None], len(held), axis=0)
        starts[:, column] = held
        ends.append(minimise(problem, starts, fixed=(column,)).objective)
    return np.min(ends, axis=0)


def _problem(n: Floats, d: Floats, loss: Floats, delta: float, logs: bool, shared: bool) -> Problem:
    x, y = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    design = np.zeros((len(n), 3, 5))
    design[:, 0, _A], design[:, 0, _ALPHA] = 1.0, -x
    design[:, 1, _B], design[:, 1, _BETA] = 1.0, -y
    design[:, 2, _E] = 1.0
    floor = np.array([-np.inf, -np.inf, np.log(E_AT_ZERO * loss.min()), LEAST_EXPONENT, LEAST_EXPONENT])
    if shared:
        design[:, 1, _ALPHA] = -y
        design, floor = design[:, :, :_BETA], floor[:_BETA]
    return Problem(design, np.log(loss) if logs else loss, logs, delta, floor)


def _starts(n: Floats, d: Floats, loss: Floats) -> Floats:
    """(starts, 5): a grid of exponents with E, A, B of variable projection, then the corners of a box around them."""
    alpha, beta = np.array(list(itertools.product(_EXPONENTS, _EXPONENTS))).T
    (e, a, b), lowest = linear_part(n, d, loss, alpha, beta)[0].T, float(loss.min())
    grid = np.stack([np.log(np.maximum(v, 1e-3 * lowest)) for v in (a, b, e)] + [alpha, beta], axis=1)
    shares = ([0.02, 0.3], [0.02, 0.3], [0.3, 0.95])
    corners = itertools.product(*[np.log(np.array(share) * lowest) for share in shares], [0.2, 0.8], [0.2, 0.8])
    return np.concatenate([grid, np.array(list(corners))])


def _lowest(found: Fit, problem: Problem, count: int, weights: Floats | None, enough: float) -> Floats:
    """(count, 5): constants of the lowest end of each, started from the fit itself and from two points beside it."""
    starts = _beside(_packed(found.constants[None], found.shared)[0])
    counts = None if weights is None else np.tile(weights, (_N_BESIDE, 1))
    ends = minimise(problem, np.repeat(starts, count, axis=0), counts, enough=enough)
    which = ends.objective.reshape(_N_BESIDE, count).argmin(axis=0)
    return _unpacked(ends.values.reshape(_N_BESIDE, count, -1)[which, np.arange(count)], found.shared)


def _beside(centre: Floats) -> Floats:
    """The centre, and two points with other exponents and another E."""
    moves = np.zeros((_N_BESIDE, len(centre)))
    moves[1, _E], moves[2, _E] = -0.2, -1.0
    moves[1, _ALPHA:] = 0.1
    moves[2, _ALPHA:] = -0.3 * centre[_ALPHA:]
    return centre + moves


def _packed(constants: Floats, shared: bool) -> Floats:
    return constants[:, :_BETA] if shared else constants


def _unpacked(constants: Floats, shared: bool) -> Floats:
    return np.concatenate([constants, constants[:, _ALPHA:]], axis=1) if shared else constants


def _laws(n: Floats, d: Floats, constants: Floats) -> Law:
    a, b, e, alpha, beta = constants.T
    return Law(
        E=np.exp(e),
        A=np.exp(a + alpha * np.log(n).mean()),
        B=np.exp(b + beta * np.log(d).mean()),
        alpha=alpha,
        beta=beta,
    )

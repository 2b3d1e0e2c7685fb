"""The exact minimum of a robust sum over laws that are sums of powers, from many starts or for many resamples at once.

In: a law whose terms are exp(design · constants), what it shall meet, and where to start. Out: the constants reached
from each start, and how far down each came. The terms of E + A/N^alpha + B/D^beta are e, a - alpha·ln N, b - beta·ln D.

Each step tries two directions and takes the lower: Newton's, with the exact second derivative of the Huber sum, and
that of the majorant (squares weighted by delta / |residual|), which also works far from the minimum. The Huber sum is a
sum: a mean of the same would meet a fixed tolerance far too early (Besiroglu et al., arXiv 2404.10102, section 3).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

EXACT = 1e-13
_MAX_STEPS = 200
_HALVINGS = 9
_ROUNDING = 1e-30  # a sum of squares below this is rounding
_SMALLEST_CURVATURE = 1e-12  # of the largest


@dataclass(frozen=True)
class Problem:
    design: Floats
    """(rows, terms, constants)"""
    target: Floats
    """(rows,): losses, or their logarithms; or (starts, rows), for each start its own"""
    logs: bool
    """residuals are those of the logarithms: ln(sum of terms) - target; else of the sum itself"""
    delta: float
    """where Huber's square turns into a line; infinity for least squares"""
    floor: Floats
    """(constants,): none goes below"""


@dataclass(frozen=True)
class Minima:
    values: Floats
    """(starts, constants)"""
    objective: Floats
    """(starts,)"""
    finished: NDArray[np.bool_]
    """(starts,): false where the steps ran out before nothing was to be gained"""


@dataclass(frozen=True)
class _Local:
    """What is known around each of the current points."""

    residual: Floats
    slopes: Floats
    """of each residual by the exponent of each term"""
    jacobian: Floats
    curvature: Floats
    """second derivatives of the residuals, weighted by how hard each pulls"""
    gradient: Floats
    newton: Floats
    majorant: Floats

    def of(self, which: NDArray[np.bool_]) -> "_Local":
        return _Local(**{name: value[which] for name, value in vars(self).items()})


def minimise(
    problem: Problem,
    starts: Floats,
    weights: Floats | None = None,
    fixed: tuple[int, ...] = (),
    enough: float = EXACT,
) -> Minima:
    """weights: (starts, rows), how often each row counts; the constants numbered in `fixed` stay as they start; ends
    where another step would lower the objective by less than the share `enough`."""
    values = np.maximum(np.array(starts, dtype=np.float64), problem.floor)
    counts = (
        np.ones((len(values), problem.target.shape[-1])) if weights is None else np.asarray(weights, dtype=np.float64)
    )
    lowest = objective(problem, values, counts)
    radius, active = np.full(len(values), 1.0), np.arange(len(values))
    for _ in range(_MAX_STEPS):
        going, moved, reached = _tried(
            _of(problem, active), values[active], counts[active], radius[active], fixed, enough * lowest[active]
        )
        active = active[going]
        if not len(active):
            break
        lower = reached < lowest[active]
        values[active[lower]], lowest[active[lower]] = moved[lower], reached[lower]
        radius[active] = np.where(lower, np.minimum(radius[active] * 2, 2.0), radius[active] / 8)
        active = active[radius[active] > 1e-13]  # below it no step goes down: all that is left is rounding
    return Minima(values, lowest, ~np.isin(np.arange(len(values)), active))


def objective(problem: Problem, values: Floats, weights: Floats) -> Floats:
    """(starts,): the weighted Huber sums at `values`."""
    return (weights * huber(residuals(problem, values), problem.delta)).sum(axis=1)


def residuals(problem: Problem, values: Floats) -> Floats:
    """(starts, rows)"""
    return _residuals(problem, _exponents(problem, values))[0]


def huber(residual: Floats, delta: float) -> Floats:
    if np.isinf(delta):
        return 0.5 * residual**2
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def _tried(
    problem: Problem, values: Floats, counts: Floats, radius: Floats, fixed: tuple[int, ...], enough: Floats
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """(which starts have something to gain, and of these where the best step leads, and how low)."""
    at = _held(_local(problem, values, counts), values, problem.floor, fixed)
    majorant, newton = _factors(at.majorant), _factors(at.newton)
    directions = [_solved(factors, at.gradient) for factors in (majorant, newton)]
    going = -np.einsum("sp,sp->s", directions[1], at.gradient) > enough + _ROUNDING
    problem, at, counts = _of(problem, going), at.of(going), counts[going]
    majorant = majorant[0][going], majorant[1][going]
    steps = [_shortened(problem, at, step[going], counts, radius[going]) for step in directions]
    bent = [step + _solved(majorant, _bend(problem, at, step, counts)) / 2 for step in steps]
    return going, *_better(problem, values[going], np.stack([*steps, *bent]), counts)


def _of(problem: Problem, which: Indices | NDArray[np.bool_]) -> Problem:
    """For some of the starts."""
    return problem if problem.target.ndim == 1 else replace(problem, target=problem.target[which])


def _exponents(problem: Problem, values: Floats) -> Floats:
    rows, terms, constants = problem.design.shape
    return (values @ problem.design.reshape(rows * terms, constants).T).reshape(len(values), rows, terms)


def _residuals(problem: Problem, exponents: Floats) -> tuple[Floats, Floats]:
    """(residuals, their derivatives by the exponent of each term)."""
    if not problem.logs:
        terms = np.exp(np.minimum(exponents, 300.0))
        return terms.sum(axis=-1) - problem.target, terms
    highest = exponents.max(axis=-1, keepdims=True)
    terms = np.exp(exponents - highest)
    total = terms.sum(axis=-1)
    return highest[..., 0] + np.log(total) - problem.target, terms / total[..., None]


def _local(problem: Problem, values: Floats, weights: Floats) -> _Local:
    design, delta = problem.design, problem.delta
    residual, slopes = _residuals(problem, _exponents(problem, values))
    jacobian = np.matmul(slopes.transpose(1, 0, 2), design).transpose(1, 0, 2)
    pull = weights * np.clip(residual, -delta, delta)
    inside = weights * (np.abs(residual) <= delta)
    curvature = _second_derivatives(problem, pull[:, :, None] * slopes)
    if problem.logs:
        curvature -= _gram(jacobian, pull)
    return _Local(
        residual=residual,
        slopes=slopes,
        jacobian=jacobian,
        curvature=curvature,
        gradient=np.einsum("sn,snp->sp", pull, jacobian),
        newton=_gram(jacobian, inside) + curvature,
        majorant=_gram(jacobian, weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))),
    )


def _held(at: _Local, values: Floats, floor: Floats, fixed: tuple[int, ...]) -> _Local:
    """Without the constants that are fixed, or at their floor and pushed below it."""
    held = (values <= floor) & (at.gradient > 0)
    held[:, list(fixed)] = True
    free = ~held
    both = free[:, :, None] & free[:, None, :]
    held_alone = held[:, :, None] * np.eye(values.shape[1])
    return replace(
        at,
        jacobian=at.jacobian * free[:, None, :],
        curvature=at.curvature * both,
        gradient=at.gradient * free,
        newton=at.newton * both + held_alone * np.abs(at.newton).max(axis=(1, 2), keepdims=True),
        majorant=at.majorant * both + held_alone * np.abs(at.majorant).max(axis=(1, 2), keepdims=True),
    )


def _second_derivatives(problem: Problem, pulls: Floats) -> Floats:
    """Sum over rows and terms of pull · design · designᵀ."""
    rows, terms, p = problem.design.shape
    outer = (problem.design[..., :, None] * problem.design[..., None, :]).reshape(rows * terms, p * p)
    return (pulls.reshape(len(pulls), rows * terms) @ outer).reshape(-1, p, p)


def _gram(jacobian: Floats, weights: Floats) -> Floats:
    return np.matmul(jacobian.transpose(0, 2, 1) * weights[:, None, :], jacobian)


def _factors(matrix: Floats) -> tuple[Floats, Floats]:
    """(|eigenvalues|, eigenvectors): where curvature is negative its sign is turned, so that steps lead downhill."""
    sizes, axes = np.linalg.eigh(matrix)
    sizes = np.abs(sizes)
    return np.maximum(sizes, np.maximum(_SMALLEST_CURVATURE * sizes.max(axis=1, keepdims=True), 1e-300)), axes


def _solved(factors: tuple[Floats, Floats], gradient: Floats) -> Floats:
    """-|matrix|⁻¹ gradient"""
    sizes, axes = factors
    along = np.matmul(axes.transpose(0, 2, 1), gradient[:, :, None]) / sizes[:, :, None]
    return -np.matmul(axes, along)[:, :, 0]


def _bend(problem: Problem, at: _Local, step: Floats, weights: Floats) -> Floats:
    """What the second derivative along the step adds to the gradient: the valley of such laws is narrow and curved, and
    a step that bends with it may be long (geodesic acceleration: Transtrum and Sethna 2012, arXiv 1201.5885)."""
    rows, terms, p = problem.design.shape
    along = (step @ problem.design.reshape(rows * terms, p).T).reshape(len(step), rows, terms)
    second = (at.slopes * along**2).sum(axis=-1)
    if problem.logs:
        second -= (at.slopes * along).sum(axis=-1) ** 2
    shares = weights * np.minimum(1.0, problem.delta / np.maximum(np.abs(at.residual), 1e-300))
    return np.einsum("sn,snp->sp", shares * second, at.jacobian)


def _shortened(problem: Problem, at: _Local, step: Floats, weights: Floats, radius: Floats) -> Floats:
    """The step as long as is best along it where residuals are taken as linear and their curvature as constant, and at
    most `radius` in every constant. Along a line the Huber sum is then quadratic in pieces: its slope is bisected."""
    along = np.einsum("snp,sp->sn", at.jacobian, step)
    bend = np.einsum("sp,spq,sq->s", step, at.curvature, step)
    low = np.zeros(len(step))
    high = radius / np.maximum(np.abs(step).max(axis=1), 1e-300)
    high = np.where(np.abs(step).max(axis=1) < radius, np.minimum(high, 4.0), high)

    def slope(t: Floats) -> Floats:
        pull = np.clip(at.residual + t[:, None] * along, -problem.delta, problem.delta)
        return (weights * pull * along).sum(axis=1) + bend * t

    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        up = slope(middle) > 0
        low, high = np.where(up, low, middle), np.where(up, middle, high)
    before, after = slope(low), slope(high)
    between = np.where((after > 0) & (before < 0), -before / np.maximum(after - before, 1e-200), 1.0)
    return step * (low + between * (high - low))[:, None]


def _better(problem: Problem, values: Floats, steps: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The lower of the two ends of the steps, start by start."""
    ends = np.maximum(values + steps, problem.floor)
    reached = np.stack([objective(problem, end, weights) for end in ends])
    which = reached.argmin(axis=0)
    rows = np.arange(len(values))
    return ends[which, rows], reached[which, rows]

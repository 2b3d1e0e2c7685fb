"""Variable projection: for given exponents the law E + A/N^alpha + B/D^beta is linear, so only two are searched.

In: N, D and losses. Out: the least-squares law with E, A, B >= 0. For a pair of exponents the best non-negative E, A, B
are found exactly, by trying every subset of the three (Golub and Pereyra 1973 for the principle; for isoFLOP data the
Open Athena study of 2026, "scaling-law-analysis"). Squares of losses, not of their logarithms: no row is down-weighted.
"""

import itertools

import numpy as np

from launch.scaling.law import Law
from launch.scaling.minimum import Floats

_SUBSETS = [subset for size in (3, 2, 1) for subset in itertools.combinations(range(3), size)]
_FIRST = np.geomspace(0.02, 2.0, 24)
_ROUNDS = 60


def linear_part(n: Floats, d: Floats, loss: Floats, alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """For each pair of exponents: ((pairs, 3) E and the terms A/N^alpha, B/D^beta at the geometric means of N and D,
    (pairs,) sum of squares)."""
    x, y = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    columns = np.stack(
        [np.ones((len(alpha), len(n))), np.exp(-alpha[:, None] * x), np.exp(-beta[:, None] * y)], axis=-1
    )
    best, lowest = np.zeros((len(alpha), 3)), np.full(len(alpha), np.inf)
    for subset in _SUBSETS:
        found = _least_squares(columns[:, :, subset], loss)
        squares = ((np.einsum("snk,sk->sn", columns[:, :, subset], found) - loss) ** 2).sum(axis=1)
        lower = (found >= 0).all(axis=1) & (squares < lowest)
        lowest[lower] = squares[lower]
        best[lower] = 0.0
        best[np.ix_(lower, subset)] = found[lower]
    return best, lowest


def project(n: Floats, d: Floats, loss: Floats) -> Law:
    """The law of least squares; a grid of exponents shrinks around its best pair until nothing moves."""
    steps = np.log(_FIRST)
    centre, width = np.array([steps.mean(), steps.mean()]), np.ptp(steps) / 2
    best = np.inf
    for _ in range(_ROUNDS):
        ahead = np.linspace(-width, width, 13)
        alpha, beta = np.exp(np.array(list(itertools.product(centre[0] + ahead, centre[1] + ahead))).T)
        _, squares = linear_part(n, d, loss, alpha, beta)
        at = squares.argmin()
        edge = max(abs(np.log(alpha[at]) - centre[0]), abs(np.log(beta[at]) - centre[1])) > 0.99 * width
        if squares[at] < best:
            best, centre = squares[at], np.log([alpha[at], beta[at]])
        width *= 1.0 if edge else 0.55
        if width < 1e-12:
            break
    return _law(n, d, loss, *np.exp(centre))


def _law(n: Floats, d: Floats, loss: Floats, alpha: float, beta: float) -> Law:
    e, a, b = linear_part(n, d, loss, np.array([alpha]), np.array([beta]))[0][0]
    return Law(e, a * np.exp(alpha * np.log(n).mean()), b * np.exp(beta * np.log(d).mean()), alpha, beta)


def _least_squares(columns: Floats, loss: Floats) -> Floats:
    """By QR: normal equations would square the condition number, which is large in a flat valley."""
    q, r = np.linalg.qr(columns)
    k = np.arange(r.shape[-1])
    tiny = 1e-13 * np.abs(r[:, 0, 0])[:, None]
    diagonal = r[:, k, k]
    r[:, k, k] = np.where(np.abs(diagonal) < tiny, np.inf, diagonal)
    found = np.zeros((len(columns), len(k)))
    right = np.einsum("snk,n->sk", q, loss)
    for i in reversed(k):
        known = np.einsum("sk,sk->s", r[:, i, i + 1 :], found[:, i + 1 :])
        found[:, i] = (right[:, i] - known) / r[:, i, i]
    return found

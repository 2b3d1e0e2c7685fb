"""IsoFLOP curves: at each budget, loss against ln N has a valley; the bottoms follow a power of C. The second estimator
of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2).

In: N and losses at equal FLOPs. Out: the size at the bottom, by a parabola or by interpolation, with its spread under
seed noise; then N* ~ C^a, each bottom weighted by 1 / variance. A bottom outside the sizes tried, or on their edge, is
flagged and not used. Parabolas are biased where alpha and beta differ or the sizes are off-centre (Open Athena 2026).
"""

from dataclasses import dataclass

import numpy as np

from launch.scaling.minimum import Floats, Indices

_BETWEEN = 25
"""points of the interpolation from one size to the next"""


@dataclass(frozen=True)
class Bottom:
    flops: float
    n: float
    spread: float
    """standard deviation of ln N under seed noise"""
    loss: float
    flag: str
    """why it is not used; empty if it is"""


@dataclass(frozen=True)
class Power:
    exponent: float
    scale: float


def budgets(flops: Floats, tolerance: float = 0.1) -> list[tuple[float, Indices]]:
    """(budget, which rows) of rows whose FLOPs agree within the tolerance, cheapest first."""
    order = np.argsort(flops, kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(flops[order])) > tolerance / 2) + 1
    groups = [group for group in np.split(order, cuts) if np.ptp(np.log(flops[group])) <= tolerance]
    return [(float(np.exp(np.log(flops[group]).mean())), group) for group in groups]


def parabola(flops: float, n: Floats, loss: Floats, noise: float = 0.005, draws: int = 400, seed: int = 0) -> Bottom:
    """noise: standard deviation of a loss between seeds, relative."""
    x = np.log(n) - np.log(n).mean()
    if len(set(x)) < 3:
        return Bottom(flops, float("nan"), float("inf"), float(loss.min()), f"{len(set(x))} sizes, needs 3")
    solve = np.linalg.pinv(np.stack([np.ones_like(x), x, x**2], axis=1))
    c0, c1, c2 = solve @ loss
    vertex = -c1 / (2 * c2) if c2 > 0 else float("nan")
    flag = _edge(vertex, x) if c2 > 0 else "no valley: the parabola opens downwards"
    noisy = loss * (1 + noise * np.random.default_rng(seed).standard_normal((draws, len(x))))
    _, b1, b2 = solve @ noisy.T
    spread = float(np.std((-b1 / (2 * b2))[b2 > 0])) if (b2 > 0).any() else float("inf")
    bottom = float(c0 - c1**2 / (4 * c2)) if c2 > 0 else float(loss.min())
    return Bottom(flops, float(np.exp(vertex + np.log(n).mean())), max(spread, 1e-6), bottom, flag)


def interpolated(
    flops: float, n: Floats, loss: Floats, noise: float = 0.005, draws: int = 400, seed: int = 0
) -> Bottom:
    """The median bottom of Akima curves through losses with seed noise, as Porian et al. 2024 do (arXiv 2406.19146,
    appendix); its spread is at least a third of the way between two sizes."""
    order = np.argsort(n)
    x, losses = np.log(n[order]), loss[order]
    if len(x) < 5:
        return Bottom(flops, float("nan"), float("inf"), float(loss.min()), f"{len(x)} sizes, interpolation needs 5")
    fine = np.linspace(x[0], x[-1], (len(x) - 1) * _BETWEEN)
    noisy = losses + noise * np.random.default_rng(seed).standard_normal((draws, len(x)))
    curves = akima(x, np.log(noisy), fine)
    lowest = curves.argmin(axis=1)
    inside = (lowest > 0) & (lowest < len(fine) - 1)
    if inside.sum() < draws / 2:
        return Bottom(flops, float("nan"), float("inf"), float(loss.min()), "the lowest loss is at the edge of sizes")
    found = fine[lowest[inside]]
    spread = max(float(found.std()), _BETWEEN / 3 * (fine[1] - fine[0])) * draws / inside.sum()
    return Bottom(flops, float(np.exp(np.median(found))), spread, float(np.exp(curves[inside].min(axis=1).mean())), "")


def power(bottoms: list[Bottom]) -> Power:
    """N* = scale · C^exponent through the bottoms without a flag, weighted by their spread. At least two are needed."""
    used = [bottom for bottom in bottoms if not bottom.flag]
    x, y = (np.log([getattr(bottom, name) for bottom in used]) for name in ("flops", "n"))
    slope, intercept = np.polyfit(x, y, 1, w=1 / np.array([bottom.spread for bottom in used]))
    return Power(float(slope), float(np.exp(intercept)))


def akima(x: Floats, y: Floats, at: Floats) -> Floats:
    """(curves, at): cubic pieces whose slope at a knot weighs its four neighbouring secants (Akima 1970)."""
    width = np.diff(x)
    inner = np.diff(y, axis=1) / width
    first, last = inner[:, :1], inner[:, -1:]
    second, before = inner[:, 1:2], inner[:, -2:-1]
    left = [3 * first - 2 * second, 2 * first - second]
    right = [2 * last - before, 3 * last - 2 * before]
    secants = np.concatenate([*left, inner, *right], axis=1)
    change = np.abs(np.diff(secants, axis=1))
    ahead, behind = change[:, 2:], change[:, :-2]
    total = ahead + behind
    mean = (secants[:, 1:-2] + secants[:, 2:-1]) / 2
    slopes = np.where(
        total > 1e-9 * total.max(axis=1, keepdims=True),
        (ahead * secants[:, 1:-2] + behind * secants[:, 2:-1]) / np.maximum(total, 1e-300),
        mean,
    )
    piece = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t = (at - x[piece]) / width[piece]
    low, high = slopes[:, piece] * width[piece], slopes[:, piece + 1] * width[piece]
    rise = y[:, piece + 1] - y[:, piece]
    return y[:, piece] + t * (low + t * ((3 * rise - 2 * low - high) + t * (low + high - 2 * rise)))


def _edge(vertex: float, x: Floats) -> str:
    if not x.min() < vertex < x.max():
        return "edge: its bottom lies outside the sizes tried"
    return ""

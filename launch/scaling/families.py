"""Two families of networks against each other: how much compute one needs for the loss of the other.

In: a law for each family (same form, same validation text, sizes counted alike). Out: at a loss that both reach, the
ratio of their FLOPs, each at its own best size and length, with an interval. Kaplan et al. 2020
(arXiv 2001.08361, section 3.2.1) compare at equal N; equal compute is fairer to networks whose FLOPs per parameter
differ, and is what the scaling study of xLSTM (2025) does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.scaling.bootstrap import Interval, interval
from launch.scaling.law import Cost, Law
from launch.scaling.minimum import Floats


@dataclass(frozen=True)
class Ratio:
    loss: float
    ratio: float
    """FLOPs of the second family / FLOPs of the first"""
    interval: Interval
    reached: float
    """share of the drawn laws by which both families can reach the loss at all"""


def flops_to_reach(law: Law, loss: float, cost: Cost) -> Any:
    """Along the best sizes L - E is a power of C, with exponent alpha·beta / (alpha + power·beta). Infinite below E."""
    n, d = law.optimum(1.0, cost)
    at_one = law.loss(n, d) - law.E
    exponent = law.alpha * law.beta / (law.alpha + cost.power * law.beta)
    above = np.asarray(loss - law.E)
    return np.where(above > 0, (at_one / np.where(above > 0, above, 1.0)) ** (1 / exponent), np.inf)


def compare(
    first: Law, second: Law, firsts: Law, seconds: Law, costs: tuple[Cost, Cost], losses: Floats
) -> list[Ratio]:
    """`firsts` and `seconds` are the laws that fit about as well, as many of each."""
    found = []
    for loss in losses:
        one, other = flops_to_reach(first, loss, costs[0]), flops_to_reach(second, loss, costs[1])
        ones, others = flops_to_reach(firsts, loss, costs[0]), flops_to_reach(seconds, loss, costs[1])
        both = np.isfinite(ones) & np.isfinite(others)
        with np.errstate(invalid="ignore"):
            ratios = others / ones
        found.append(Ratio(float(loss), float(other / one), interval(ratios), float(both.mean())))
    return found

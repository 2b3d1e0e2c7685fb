"""How sure a fit is: intervals of whatever follows from many laws, and the draws that refit it on resampled runs.

Runs are drawn, not rows: the points of one run (checkpoints, or cooldowns of one trunk) share its noise, and resampling
them one by one makes every interval too narrow. A resample that cannot carry a law (fewer than three sizes or token
counts) is drawn again, and how many there were is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from launch.scaling.minimum import Floats
from launch.scaling.rows import LEAST_VALUES, distinct

_MOST_DRAWS = 50
"""as many times the resamples asked for"""


@dataclass(frozen=True)
class Interval:
    low95: float
    low80: float
    high80: float
    high95: float

    def holds(self, value: float, percent: int) -> bool:
        low, high = (self.low95, self.high95) if percent == 95 else (self.low80, self.high80)
        return low <= value <= high


def interval(values: Floats) -> Interval:
    """Percentiles of draws; values that are not finite are as far out as can be."""
    known = np.where(np.isnan(values), np.inf, values)
    return Interval(*(float(value) for value in np.quantile(known, [0.025, 0.1, 0.9, 0.975], method="nearest")))


def interval_about(fitted: float, values: Floats) -> Interval:
    """From the lower to the higher of two ends: the percentile of the drawn values, and what lies as far on the other
    side of the fitted one. Percentiles alone are wrong where E is near zero, which it cannot pass: what pushed the fit
    to one side would push the draws to the same side once more."""
    ahead, back = interval(values), interval(fitted**2 / values)
    return Interval(
        min(ahead.low95, back.low95),
        min(ahead.low80, back.low80),
        max(ahead.high80, back.high80),
        max(ahead.high95, back.high95),
    )


def resamples(groups: Sequence[str], n: Floats, d: Floats, count: int, seed: int) -> tuple[Floats, int]:
    """((count, rows) how often each row counts, draws that carried no law). Fewer come back if few draws carry one."""
    names = sorted(set(groups))
    which = np.array([names.index(group) for group in groups])
    rng, kept, refused = np.random.default_rng(seed), [], 0
    while len(kept) < count and len(kept) + refused < _MOST_DRAWS * count:
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[which].astype(np.float64)
        if _carries_a_law(drawn, n, d):
            kept.append(drawn)
        else:
            refused += 1
    return np.array(kept, dtype=np.float64).reshape(len(kept), len(groups)), refused


def _carries_a_law(drawn: Floats, n: Floats, d: Floats) -> bool:
    used = drawn > 0
    return min(distinct(n[used]), distinct(d[used])) >= LEAST_VALUES and used.sum() > 5

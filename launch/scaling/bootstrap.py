"""How sure a fit is: the same fit on resampled runs, and intervals of whatever follows from it.

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
    middle: float
    high80: float
    high95: float

    def holds(self, value: float, percent: int = 95) -> bool:
        low, high = (self.low95, self.high95) if percent == 95 else (self.low80, self.high80)
        return low <= value <= high


def interval(values: Floats) -> Interval:
    """Percentiles of a bootstrap; values that are not finite are as far out as can be."""
    known = np.where(np.isnan(values), np.inf, values)
    return Interval(*(float(value) for value in np.quantile(known, [0.025, 0.1, 0.5, 0.9, 0.975], method="nearest")))


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


def with_noise(predicted: Floats, residuals: Floats, n_constants: int, seed: int) -> Floats:
    """Losses that another run may show: each prediction times a residual of the fit, drawn at random and widened for
    the constants that were fitted away."""
    rng = np.random.default_rng(seed)
    widened = residuals * np.sqrt(len(residuals) / max(1, len(residuals) - n_constants))
    return predicted * np.exp(rng.choice(widened, size=predicted.shape))


def _carries_a_law(drawn: Floats, n: Floats, d: Floats) -> bool:
    used = drawn > 0
    return min(distinct(n[used]), distinct(d[used])) >= LEAST_VALUES and used.sum() > 5

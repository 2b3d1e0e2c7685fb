"""The lower envelope of loss against FLOPs, and the powers of its sizes: the first estimator of Hoffmann et al. 2022
(arXiv 2203.15556, section 3.1), on finished runs only.

In: FLOPs, N, D and loss of runs whose schedule ended. Out: the runs on the lower convex hull of (ln C, ln L), and
N* ~ C^a, D* ~ C^b through them. What lies on the hull depends on which runs there are (Gemstones find slopes of .46 to
.80 by slice), so its members are always printed.
"""

from dataclasses import dataclass

import numpy as np

from conf.errors import ConfigError
from launch.scaling.minimum import Floats


@dataclass(frozen=True)
class Envelope:
    members: tuple[int, ...]
    """rows on the hull, cheapest first"""
    n_exponent: float
    n_scale: float
    """N* = n_scale · C^n_exponent"""
    d_exponent: float
    d_scale: float
    loss_exponent: float
    loss_scale: float
    """L = loss_scale · C^loss_exponent, a power without E: a baseline, no law"""

    def optimum(self, flops: float) -> tuple[float, float]:
        return self.n_scale * flops**self.n_exponent, self.d_scale * flops**self.d_exponent

    def loss(self, flops: float) -> float:
        return self.loss_scale * flops**self.loss_exponent


def envelope(flops: Floats, n: Floats, d: Floats, loss: Floats) -> Envelope:
    """Raises ConfigError when fewer than three runs are on the hull."""
    members = hull(np.log(flops), np.log(loss))
    if len(members) < 3:
        raise ConfigError([f"the envelope has {len(members)} runs of {len(loss)}; a power needs at least 3"])
    on = list(members)
    (a, log_n), (b, log_d), (c, log_l) = (np.polyfit(np.log(flops[on]), np.log(v[on]), 1) for v in (n, d, loss))
    return Envelope(members, a, np.exp(log_n), b, np.exp(log_d), c, np.exp(log_l))


def hull(x: Floats, y: Floats) -> tuple[int, ...]:
    """The falling part of the lower convex hull, from the leftmost point to the lowest (Andrew's monotone chain)."""
    chain: list[int] = []
    for i in sorted(range(len(x)), key=lambda i: (x[i], y[i])):
        if chain and x[i] == x[chain[-1]]:
            continue
        while len(chain) > 1 and _turns_up(x, y, chain[-2], chain[-1], i) <= 0:
            chain.pop()
        chain.append(i)
    lowest = min(range(len(chain)), key=lambda k: y[chain[k]])
    return tuple(chain[: lowest + 1])


def _turns_up(x: Floats, y: Floats, i: int, j: int, k: int) -> float:
    return (x[j] - x[i]) * (y[k] - y[i]) - (y[j] - y[i]) * (x[k] - x[i])

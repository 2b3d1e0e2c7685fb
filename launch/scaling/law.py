"""The parametric law L(N, D) = E + A/N^alpha + B/D^beta, and what follows from it for a budget.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.3; the closed form of the optimum is its
equation 4. Every constant may be an array: then all results are arrays too (one law a draw).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.scaling.minimum import Floats

Number = float | Floats


@dataclass(frozen=True)
class Cost:
    """FLOPs of a run = 6 · scale · N^power · D. 6ND is scale 1, power 1; where attention or the head are left out of
    N, both are fitted to the rows, so that every counting is asked for its optimum at the same FLOPs."""

    scale: float = 1.0
    power: float = 1.0

    def flops(self, n: Number, d: Number) -> Number:
        return 6.0 * self.scale * n**self.power * d


SIX_N_D = Cost()


def cost_of(n: Floats, d: Floats, flops: Floats) -> Cost:
    """Fitted to rows: ln(C / 6D) on ln N."""
    if np.ptp(np.log(n)) < 1e-9:
        return Cost(scale=float(np.exp(np.mean(np.log(flops / (6 * n * d))))))
    power, intercept = np.polyfit(np.log(n), np.log(flops / (6 * d)), 1)
    return Cost(scale=float(np.exp(intercept)), power=float(power))


@dataclass(frozen=True)
class Law:
    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any

    def loss(self, n: Number, d: Number) -> Any:
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def n_exponent(self, cost: Cost = SIX_N_D) -> Any:
        """a of N* ~ C^a."""
        return self.beta / (self.alpha + self.beta * cost.power)

    def d_exponent(self, cost: Cost = SIX_N_D) -> Any:
        """b of D* ~ C^b."""
        return 1.0 - cost.power * self.n_exponent(cost)

    def optimum(self, flops: Number, cost: Cost = SIX_N_D) -> tuple[Any, Any]:
        """(N*, D*) of the lowest loss for so many FLOPs, where alpha·A·N^-alpha = power·beta·B·D^-beta."""
        budget = flops / (6.0 * cost.scale)
        log_g = np.log(self.alpha * self.A / (cost.power * self.beta * self.B))
        n = np.exp((log_g + self.beta * np.log(budget)) / (self.alpha + cost.power * self.beta))
        return n, budget / n**cost.power

    def at(self, i: Any) -> "Law":
        """One of many, or some."""
        return Law(self.E[i], self.A[i], self.B[i], self.alpha[i], self.beta[i])

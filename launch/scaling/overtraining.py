"""The over-training form: loss by compute C and tokens per parameter M (Gadre et al. 2024, arXiv 2403.08540, 3).

    L = E + (a·M^eta + b·M^-eta)·C^-eta,   C = 6ND, M = D/N

It is E + A/N^kappa + B/D^kappa with kappa = 2·eta: one exponent for both. In: N, D, losses. Out: the law of least
squares, as theirs is. And from loss to mean error on tasks, error = eps - k·exp(-gamma·L), their equation 5.
"""

from dataclasses import dataclass

import numpy as np

from launch.scaling.law import Law
from launch.scaling.minimum import Floats
from launch.scaling.parametric import Fit, fit

_ROUNDS = 60


@dataclass(frozen=True)
class Downstream:
    eps: float
    k: float
    gamma: float

    def error(self, loss: float | Floats) -> float | Floats:
        return self.eps - self.k * np.exp(-self.gamma * loss)


def fit_overtraining(n: Floats, d: Floats, loss: Floats) -> Fit:
    return fit(n, d, loss, delta=np.inf, logs=False, shared=True)


def in_compute(law: Law) -> tuple[float, float, float]:
    """(a, b, eta) of the form in C and M."""
    eta = law.alpha / 2
    return law.A * 6**eta, law.B * 6**eta, eta


def fit_downstream(loss: Floats, error: Floats) -> Downstream:
    """Least squares: for a given gamma, eps and k are linear; gamma is searched on a shrinking grid."""
    centre, width, best = np.log(1.0), np.log(100.0), (np.inf, 1.0)
    for _ in range(_ROUNDS):
        tried = np.exp(centre + np.linspace(-width, width, 41))
        squares = [_eps_and_k(loss, error, gamma)[1] for gamma in tried]
        best = min(best, (min(squares), tried[int(np.argmin(squares))]))
        centre, width = np.log(best[1]), width * 0.6
    (eps, k), _ = _eps_and_k(loss, error, best[1])
    return Downstream(float(eps), float(k), float(best[1]))


def _eps_and_k(loss: Floats, error: Floats, gamma: float) -> tuple[Floats, float]:
    columns = np.stack([np.ones_like(loss), -np.exp(-gamma * (loss - loss.mean()))], axis=1)
    (eps, k), *_ = np.linalg.lstsq(columns, error, rcond=None)
    squares = float(((columns @ np.array([eps, k]) - error) ** 2).sum())
    return np.array([eps, k * np.exp(gamma * loss.mean())]), squares

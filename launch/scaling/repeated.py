"""The law for repeated text: tokens seen again are worth less and less (Muennighoff et al. 2023, arXiv 2305.16264,
section 3.1 and equations 5 to 7).

    L = E + A/N'^alpha + B/D'^beta,   D' = U + U·R*·(1 - exp(-R/R*)),   R = D/U - 1 repetitions of U unique tokens

and the same for parameters beyond those that U tokens can use. In: a law of fresh text, and rows that repeat. Out: the
half-lives R*_D and R*_N, with the range of R*_D that fits almost as well: the valley is flat (anything from 12 to 1000
fits the published runs within .5 %), so a bare number says little.
"""

from dataclasses import dataclass

import numpy as np

from launch.scaling.law import Law, Number
from launch.scaling.minimum import Floats, huber
from launch.scaling.parametric import HUBER_DELTA

_LEAST, _MOST = 0.1, 1e4
_GRID = 61
_FINE = 1201
_ROUNDS = 25
ALMOST = 0.005
"""of the objective: half-lives within it fit almost as well"""


@dataclass(frozen=True)
class Repeated:
    law: Law
    r_d: Number
    r_n: Number

    def loss(self, n: Number, d: Number, unique: Number) -> Number:
        usable = np.minimum(n, usable_parameters(self.law, unique))
        return self.law.loss(worth(n, usable, self.r_n), worth(d, np.minimum(d, unique), self.r_d))


@dataclass(frozen=True)
class Decay:
    repeated: Repeated
    objective: float
    low_r_d: float
    high_r_d: float
    """between them the objective is within ALMOST of the lowest"""

    @property
    def identified(self) -> bool:
        return self.low_r_d > _LEAST * 1.01 and self.high_r_d < _MOST / 1.01


def worth(total: Number, unique: Number, r_star: Number) -> Number:
    """So many fresh tokens (or parameters) as `total` are worth of which `unique` differ."""
    repetitions = total / unique - 1
    return unique + unique * r_star * -np.expm1(-repetitions / r_star)


def usable_parameters(law: Law, unique: Number) -> Number:
    """U_N: those that would be best for so many unique tokens."""
    g = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    return g * (g * unique) ** (law.beta / law.alpha)


def fit_decay(law: Law, n: Floats, d: Floats, unique: Floats, loss: Floats, delta: float = HUBER_DELTA) -> Decay:
    """Both half-lives at the lowest Huber sum of log losses; `law` stays. A grid shrinks around its lowest cell; then
    the range of R*_D is read off a fine grid."""
    centre, width = np.log([_LEAST, _LEAST]) / 2 + np.log([_MOST, _MOST]) / 2, np.log(_MOST / _LEAST) / 2
    best = np.inf
    for _ in range(_ROUNDS):
        x, y = _axes(centre, width)
        found = _objectives(law, n, d, unique, loss, delta, x, y)
        i, j = np.unravel_index(found.argmin(), found.shape)
        if found[i, j] <= best:
            best, centre = found[i, j], np.array([x[i], y[j]])
        width *= 0.5
    r_d, r_n = (float(value) for value in np.exp(centre))
    along, by_size = np.log(np.geomspace(_LEAST, _MOST, _FINE)), np.log(np.geomspace(_LEAST, _MOST, _GRID))
    every = _objectives(law, n, d, unique, loss, delta, along, np.append(by_size, centre[1])).min(axis=1)
    near = np.exp(along[every <= best * (1 + ALMOST)])
    return Decay(Repeated(law, r_d, r_n), float(best), min([r_d, *near]), max([r_d, *near]))


def _axes(centre: Floats, width: float) -> tuple[Floats, Floats]:
    """Logarithms of both half-lives to try, inside the bounds."""
    bounds = np.log([_LEAST, _MOST])
    first, second = (np.clip(middle + np.linspace(-width, width, _GRID), *bounds) for middle in centre)
    return first, second


def _objectives(
    law: Law, n: Floats, d: Floats, unique: Floats, loss: Floats, delta: float, log_r_d: Floats, log_r_n: Floats
) -> Floats:
    """(r_d, r_n) Huber sums."""
    usable, seen = np.minimum(n, usable_parameters(law, unique)), np.minimum(d, unique)
    by_data = law.B * worth(d, seen, np.exp(log_r_d)[:, None]) ** -law.beta
    by_size = law.A * worth(n, usable, np.exp(log_r_n)[:, None]) ** -law.alpha
    predicted = np.log(law.E + by_data[:, None, :] + by_size[None, :, :])
    return huber(predicted - np.log(loss), delta).sum(axis=-1)

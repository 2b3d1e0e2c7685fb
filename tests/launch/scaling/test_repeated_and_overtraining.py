"""Laws for what is not one pass at the best size: repeated text, over-training, another family of networks."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from launch.scaling.families import compare, flops_to_reach
from launch.scaling.law import SIX_N_D, Cost, Law
from launch.scaling.overtraining import fit_downstream, fit_overtraining, in_compute
from launch.scaling.repeated import Repeated, fit_decay, worth
from tests.launch.scaling.surfaces import TRUE, grid, noisy

C4 = Repeated(Law(np.exp(0.6254804), np.exp(6.255414), np.exp(7.3049974), 0.3526596, 0.3526596), 15.387756, 5.309743)
"""huggingface/datablations, utils/parametric_fit.ipynb"""


def test_the_published_loss_of_repeated_text_comes_out():
    assert C4.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-12)


def test_epochs_are_worth_what_was_published():
    """Of Muennighoff et al.: four epochs nearly as good as fresh text, sixteen worth 10.6, never more than 16.4."""
    assert worth(4.0, 1.0, 15.387756) == pytest.approx(3.73, abs=0.005)
    assert worth(16.0, 1.0, 15.387756) == pytest.approx(10.6, abs=0.05)
    assert worth(1e9, 1.0, 15.387756) == pytest.approx(16.4, abs=0.05)
    assert worth(1.0, 1.0, 15.387756) == 1.0


def test_text_that_is_not_repeated_and_all_usable_is_worth_itself():
    assert C4.loss(1e8, 5e9, 5e9) == pytest.approx(C4.law.loss(1e8, 5e9))


def repetitions(true: Repeated, epochs: list[float], noise: float):
    n, d = (np.tile(values, len(epochs)) for values in grid(sizes=4, lengths=3))
    unique = d / np.repeat(epochs, len(d) // len(epochs))
    rng = np.random.default_rng(0)
    return n, d, unique, true.loss(n, d, unique) * np.exp(noise * rng.standard_normal(len(n)))


def test_half_lives_come_back_from_runs_that_repeat_enough():
    true = Repeated(TRUE, 12.0, 6.0)
    found = fit_decay(TRUE, *repetitions(true, [1, 8, 40, 150], 0.0))
    assert found.repeated.r_d == pytest.approx(12, rel=1e-3)
    assert found.repeated.r_n == pytest.approx(6, rel=1e-3)
    noisy_one = fit_decay(TRUE, *repetitions(true, [1, 8, 40, 150], 0.005))
    assert noisy_one.identified
    assert noisy_one.repeated.r_d == pytest.approx(12, rel=0.2)


def test_two_epochs_do_not_tell_the_half_life():
    found = fit_decay(TRUE, *repetitions(Repeated(TRUE, 300.0, 1e4), [1, 2], 0.01))
    assert not found.identified


def test_the_overtraining_form_is_the_law_with_one_exponent():
    law = Law(1.7, 400.0, 410.0, 0.3, 0.3)
    a, b, eta = in_compute(law)
    n, d = 3e8, 7e10
    compute, per_parameter = 6 * n * d, d / n
    assert eta == 0.15
    assert 1.7 + (a * per_parameter**eta + b * per_parameter**-eta) * compute**-eta == pytest.approx(law.loss(n, d))


def test_overtraining_is_fitted_as_its_authors_do():
    """scipy's curve_fit of E + a (N^-k) + b (D^-k): five points, as theirs."""
    n = np.array([1.06e7, 7.9e7, 1.54e8, 4.12e8, 1.06e7])
    d = 20 * n * np.array([1, 1, 1, 1, 16])
    loss = noisy(Law(1.9, 170.0, 280.0, 0.27, 0.27), n, d, 0.003, 0)

    def form(_, a: float, b: float, k: float, e: float):
        return a * n**-k + b * d**-k + e

    best = min(
        (curve_fit(form, n, loss, p0=[p, p, k, 1.0], maxfev=20000)[0] for p in (100, 300, 1000) for k in (0.2, 0.35)),
        key=lambda values: float(((form(n, *values) - loss) ** 2).sum()),
    )
    found = fit_overtraining(n, d, loss)
    assert 2 * found.objective <= ((form(n, *best) - loss) ** 2).sum() * (1 + 1e-6)
    assert found.law.loss(1.4e9, 9e11) == pytest.approx(
        float(best[0] * 1.4e9 ** -best[2] + best[1] * 9e11 ** -best[2] + best[3]), rel=1e-4
    )


def test_errors_on_tasks_follow_the_loss():
    loss = np.linspace(2.4, 4.5, 6)
    found = fit_downstream(loss, 0.85 - 1.9 * np.exp(-0.9 * loss))
    assert (found.eps, found.k, found.gamma) == (pytest.approx(0.85), pytest.approx(1.9), pytest.approx(0.9))
    assert found.error(3.0) == pytest.approx(0.85 - 1.9 * np.exp(-2.7))


@pytest.mark.parametrize("cost", [SIX_N_D, Cost(1.3, 0.9)])
def test_flops_to_reach_a_loss_reach_it(cost: Cost):
    flops = float(flops_to_reach(TRUE, 2.5, cost))
    assert TRUE.loss(*TRUE.optimum(flops, cost)) == pytest.approx(2.5)
    assert flops_to_reach(TRUE, 1.6, cost) == np.inf


def test_a_family_that_needs_twice_the_compute_is_told_as_that():
    """Twice the FLOPs for every N and D, or 2^alpha times the size term and 2^0 of the other, by hand."""
    many = Law(*(np.full(100, getattr(TRUE, name)) for name in ("E", "A", "B", "alpha", "beta")))
    (found,) = compare(TRUE, TRUE, many, many, (SIX_N_D, Cost(scale=2.0)), np.array([2.5]))
    assert found.ratio == pytest.approx(2.0)
    assert (found.interval.low95, found.interval.high95) == (pytest.approx(2.0), pytest.approx(2.0))
    assert found.reached == 1.0

"""The parametric law: known constants come back, and the best size for a budget is the best one."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar, nnls

from launch.scaling.law import SIX_N_D, Cost, Law, cost_of
from launch.scaling.parametric import fit
from launch.scaling.projection import linear_part, project
from tests.launch.scaling.surfaces import TRUE, grid, isoflop, noisy

CONSTANTS = ("E", "A", "B", "alpha", "beta")


def test_a_clean_surface_gives_its_constants_back():
    n, d = grid()
    found = fit(n, d, TRUE.loss(n, d))
    for name in CONSTANTS:
        assert getattr(found.law, name) == pytest.approx(getattr(TRUE, name), rel=1e-4)
    assert found.error < 1e-8


def test_variable_projection_is_exact_on_a_clean_surface():
    n, d = grid()
    found = project(n, d, TRUE.loss(n, d))
    for name in CONSTANTS:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    assert np.abs(found.loss(n, d) / TRUE.loss(n, d) - 1).max() < 1e-9


def test_the_linear_part_is_that_of_non_negative_least_squares():
    n, d = grid()
    loss, x, y = noisy(TRUE, n, d, 0.3, 1), np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    pairs = np.array([(0.1, 0.9), (0.34, 0.28), (1.5, 0.05)])
    found, squares = linear_part(n, d, loss, pairs[:, 0], pairs[:, 1])
    for (alpha, beta), values, sum_of_squares in zip(pairs, found, squares, strict=True):
        wanted, norm = nnls(np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * y)], axis=1), loss)
        assert values == pytest.approx(wanted, abs=1e-8)
        assert sum_of_squares == pytest.approx(norm**2)


def test_losses_without_a_floor_give_no_floor():
    n, d = grid()
    law = Law(0.0, 40.0, 41.0, 0.15, 0.14)
    assert fit(n, d, law.loss(n, d)).law.E < 0.01
    assert project(n, d, law.loss(n, d)).E < 0.01


@pytest.mark.parametrize("cost", [SIX_N_D, Cost(1.2, 0.93)])
def test_the_best_size_for_a_budget_has_the_lowest_loss(cost: Cost):
    n, d = TRUE.optimum(1e21, cost)
    assert cost.flops(n, d) == pytest.approx(1e21)
    searched = minimize_scalar(
        lambda log_n: TRUE.loss(np.exp(log_n), 1e21 / cost.flops(np.exp(log_n), 1.0)),
        bounds=(np.log(1e6), np.log(1e13)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert np.log(n) == pytest.approx(searched.x, abs=1e-4)
    larger = TRUE.optimum(1e22, cost)
    assert np.log10(larger[0] / n) == pytest.approx(TRUE.n_exponent(cost))
    assert np.log10(larger[1] / d) == pytest.approx(TRUE.d_exponent(cost))


def test_the_closed_form_is_that_of_the_paper():
    """Hoffmann et al., equation 4: G = (alpha A / beta B)^(1/(alpha + beta)), N* = G (C/6)^a."""
    g = (0.34 * 400 / (0.28 * 410)) ** (1 / 0.62)
    n, d = TRUE.optimum(6e20)
    assert n == pytest.approx(g * 1e20 ** (0.28 / 0.62))
    assert d == pytest.approx(1e20 ** (0.34 / 0.62) / g)


def test_the_cost_of_other_countings_is_fitted_to_rows():
    n, d = grid()
    found = cost_of(n, d, 6 * 1.3 * n**0.9 * d)
    assert (found.scale, found.power) == (pytest.approx(1.3), pytest.approx(0.9))


def test_flops_beyond_63_bits_stay_what_they_are():
    n, d, flops = isoflop((1e22, 1e23, 1e24, 1e25))
    assert flops.max() > 2**63
    found = fit(n, d, TRUE.loss(n, d))
    assert found.law.optimum(1e25)[0] == pytest.approx(TRUE.optimum(1e25)[0], rel=1e-2)


def test_alpha_and_beta_can_be_one_exponent():
    n, d = grid()
    law = Law(1.7, 400.0, 410.0, 0.3, 0.3)
    found = fit(n, d, law.loss(n, d), shared=True).law
    assert found.alpha == found.beta == pytest.approx(0.3, rel=1e-4)

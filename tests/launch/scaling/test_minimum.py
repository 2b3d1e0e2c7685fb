"""The minimiser against scipy's, plain formulas, and the traps that published fits fell into."""

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize
from scipy.special import logsumexp

from launch.scaling.minimum import EXACT, Floats, Problem, huber, minimise, objective, residuals
from launch.scaling.parametric import HUBER_DELTA, fit, profile
from tests.launch.scaling.surfaces import TRUE, grid, noisy

DELTA = 1e-3


def problem(n: Floats, d: Floats, loss: Floats, logs: bool = True, delta: float = DELTA) -> Problem:
    x, y = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    design = np.zeros((len(n), 3, 5))
    design[:, 0, 0], design[:, 0, 3] = 1, -x
    design[:, 1, 1], design[:, 1, 4] = 1, -y
    design[:, 2, 2] = 1
    return Problem(design, np.log(loss) if logs else loss, logs, delta, np.full(5, -np.inf))


def plain(constants: Floats, n: Floats, d: Floats, loss: Floats, delta: float = DELTA) -> float:
    """As Hoffmann et al. write it, on axes that are not centred."""
    a, b, e, alpha, beta = constants
    predicted = logsumexp(np.stack([a - alpha * np.log(n), b - beta * np.log(d), np.full(len(n), e)]), axis=0)
    size = np.abs(predicted - np.log(loss))
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())


def uncentred(fitted) -> Floats:
    law = fitted.law
    return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])


def test_the_objective_is_the_sum_of_the_paper():
    n, d = grid()
    found = fit(n, d, noisy(TRUE, n, d, 0.01, 0))
    assert found.objective == pytest.approx(plain(uncentred(found), n, d, noisy(TRUE, n, d, 0.01, 0)), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_scipy_finds_nothing_lower_from_other_starts(seed: int):
    n, d = grid()
    loss = noisy(TRUE, n, d, 0.01, seed)
    found, rng = fit(n, d, loss), np.random.default_rng(seed)
    starts = [uncentred(found) * (1 + 0.1 * rng.standard_normal(5)) for _ in range(3)]
    for start in [np.array([6.0, 6.0, 0.5, 0.35, 0.3]), *starts]:
        done = minimize(
            lambda constants: 1e4 * plain(constants, n, d, loss),
            start,
            method="Nelder-Mead",
            options={"maxiter": 4000, "maxfev": 4000, "xatol": 1e-10, "fatol": 1e-14},
        )
        assert done.fun / 1e4 >= found.objective * (1 - 1e-9)


def test_least_squares_of_losses_are_those_of_scipy():
    n, d = grid()
    loss = noisy(TRUE, n, d, 0.01, 4)
    found = fit(n, d, loss, delta=np.inf, logs=False)

    def off(v: Floats) -> Floats:
        return np.exp(v[0] - v[3] * np.log(n / 1e8)) + np.exp(v[1] - v[4] * np.log(d / 5e9)) + np.exp(v[2]) - loss

    done = least_squares(off, [0.0, 0.0, 0.5, 0.3, 0.3], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert found.objective == pytest.approx(done.cost, rel=1e-8)
    assert found.law.alpha == pytest.approx(done.x[3], rel=1e-5)


def test_the_derivatives_are_zero_at_the_minimum_and_many_starts_end_there():
    n, d = grid()
    loss = noisy(TRUE, n, d, 0.01, 5)
    found = fit(n, d, loss)
    at = uncentred(found)
    for j in range(5):
        step = np.zeros(5)
        step[j] = 1e-4 * abs(at[j])
        assert plain(at + step, n, d, loss) >= found.objective
        assert plain(at - step, n, d, loss) >= found.objective
    assert found.n_agreeing > 0.8 * found.n_starts


def test_weights_count_rows_as_often_as_copies_would():
    n, d = grid()
    loss = noisy(TRUE, n, d, 0.01, 6)
    counts = np.random.default_rng(0).integers(0, 4, len(n))
    copied = np.repeat(np.arange(len(n)), counts)
    start = np.array([[-1.0, -1.0, 0.6, 0.3, 0.3]])
    weighted = minimise(problem(n, d, loss), start, counts[None].astype(float))
    made = problem(n, d, loss)
    copies = Problem(made.design[copied], made.target[copied], True, DELTA, made.floor)
    assert weighted.objective[0] == pytest.approx(minimise(copies, start).objective[0], rel=1e-9)


def test_what_is_fixed_stays_and_nothing_goes_below_its_floor():
    n, d = grid()
    made = problem(n, d, noisy(TRUE, n, d, 0.01, 7))
    start = np.array([[-1.0, -1.0, 0.6, 0.2, 0.3]])
    assert minimise(made, start, fixed=(3,)).values[0, 3] == pytest.approx(0.2, rel=1e-12)
    floor = np.array([-np.inf, -np.inf, 0.9, -np.inf, -np.inf])  # e = ln 1.7 = .53 would be better
    held = minimise(Problem(made.design, made.target, True, DELTA, floor), start)
    assert held.values[0, 2] == pytest.approx(0.9)
    assert held.objective[0] > minimise(made, start).objective[0]


def test_a_profile_is_lowest_at_the_fit_and_rises_to_both_sides():
    n, d = grid()
    loss = noisy(TRUE, n, d, 0.002, 8)
    found = fit(n, d, loss)
    for name in ("E", "alpha", "beta"):
        best = getattr(found.law, name)
        low, at, high = profile(found, n, d, loss, name, best * np.array([0.8, 1.0, 1.15]))
        assert at == pytest.approx(found.objective, rel=1e-6)
        assert low > at * 1.001
        assert high > at * 1.001


def test_huber_is_square_inside_and_straight_outside():
    assert huber(np.array([0.5e-3, -3e-3]), 1e-3) == pytest.approx([0.125e-6, 2.5e-6])
    assert huber(np.array([3.0]), np.inf) == pytest.approx([4.5])


def test_a_mean_with_the_usual_tolerance_would_stop_early():
    """Why the sum is taken, and why an end is judged by what another step would gain, not by a fixed number."""
    n, d = grid()
    loss = noisy(TRUE, n, d, 0.01, 9)
    found = fit(n, d, loss)
    start = np.array([5.0, 5.0, 0.5, 0.3, 0.3])
    early = minimize(lambda v: plain(v, n, d, loss) / len(n), start, method="BFGS")
    assert plain(early.x, n, d, loss) > 1.05 * found.objective
    assert EXACT < 1e-9
    assert HUBER_DELTA == DELTA


def test_residuals_and_objective_agree():
    n, d = grid()
    made = problem(n, d, TRUE.loss(n, d))
    at = np.array([[-1.0, -1.0, 0.5, 0.3, 0.3]])
    by_hand = huber(residuals(made, at), DELTA).sum()
    assert objective(made, at, np.ones((1, len(n))))[0] == pytest.approx(by_hand)

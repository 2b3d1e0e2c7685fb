"""Intervals: over runs, not rows; as wide as the truth needs."""

import numpy as np

from launch.scaling.bootstrap import interval, resamples
from launch.scaling.parametric import fit, refit
from tests.launch.scaling.surfaces import TRUE, grid, isoflop, noisy


def test_rows_of_one_run_are_drawn_together():
    n, d = grid()
    groups = [f"trunk{int(size)}" for size in n]
    drawn, _ = resamples(groups, n, d, 50, seed=0)
    for name in set(groups):
        columns = drawn[:, [group == name for group in groups]]
        assert (columns == columns[:, :1]).all()


def test_draws_that_carry_no_law_are_drawn_again_and_counted():
    n, d = grid(sizes=3, lengths=4)
    drawn, refused = resamples([f"trunk{int(size)}" for size in n], n, d, 20, seed=0)
    assert len(drawn) == 20
    assert refused > 0
    assert all(len({size for size, count in zip(n, one, strict=True) if count}) == 3 for one in drawn)


def test_rows_that_cannot_carry_a_law_give_no_resamples():
    n, d = grid(sizes=2)
    assert len(resamples([str(i) for i in range(len(n))], n, d, 5, seed=0)[0]) == 0


def test_resampled_laws_are_those_of_a_fresh_fit():
    n, d, _ = isoflop()
    loss = noisy(TRUE, n, d, 0.01, 3)
    drawn, _ = resamples([str(i) for i in range(len(n))], n, d, 5, seed=1)
    laws = refit(fit(n, d, loss), n, d, loss, drawn)
    for i, counts in enumerate(drawn):
        copied = np.repeat(np.arange(len(n)), counts.astype(int))
        fresh = fit(n[copied], d[copied], loss[copied]).law
        assert abs(laws.n_exponent()[i] - fresh.n_exponent()) < 2e-3
        assert abs(laws.loss(1e10, 1e11)[i] / fresh.loss(1e10, 1e11) - 1) < 1e-3


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """A count of 12 known surfaces; a 95 % interval of few runs is expected to be somewhat too narrow."""
    n, d, _ = isoflop()
    held = []
    for seed in range(12):
        loss = noisy(TRUE, n, d, 0.005, seed)
        drawn, _ = resamples([str(i) for i in range(len(n))], n, d, 80, seed)
        laws = refit(fit(n, d, loss), n, d, loss, drawn)
        larger = laws.loss(2 * n.max(), 2 * d.max())
        truth = TRUE.loss(2 * n.max(), 2 * d.max())
        spans = (interval(laws.n_exponent()), interval(larger))
        held.append([spans[0].holds(TRUE.n_exponent(), 95), spans[1].holds(truth, 95), spans[1].holds(truth, 80)])
    exponent, loss95, loss80 = np.sum(held, axis=0)
    assert exponent >= 9
    assert loss95 >= 9
    assert loss80 >= 6
    assert loss80 <= loss95


def test_percentiles_are_those_of_numpy_and_what_is_not_finite_is_far_out():
    values = np.arange(1001.0)
    assert interval(values).low95 == 25
    assert (interval(values).low80, interval(values).high80) == (100, 900)
    assert interval(np.append(values[:900], [np.nan] * 101)).high95 == np.inf

"""How much runs scatter about a law, from its residuals; and how often intervals made of it hold."""

import numpy as np
import pytest

from launch.fit_config import FitChoice
from launch.scaling.analysis import Family, fit_family, predict
from launch.scaling.parametric import Fit, fit, refit_losses
from launch.scaling.rows import Convention, Counting, Points, Row, points
from launch.scaling.scatter import Scatter, SeedSpread, scatter_of, scattered_losses, seed_spread
from tests.launch.scaling.surfaces import TRUE, grid, isoflop, noisy, row
from tests.launch.sweeps import HELD_OUT, LAW, SIZES, rows_of

THERE = (float(HELD_OUT[0]), float(HELD_OUT[1]))


@pytest.fixture(scope="module")
def sweeps() -> list[Family]:
    """Eight of one law, with other noise: four sizes whose budgets share a trunk."""
    return [fit_family(rows_of(seed=100 + i, sizes=SIZES[1:]), FitChoice(resamples=40, seed=i)) for i in range(8)]


def fitted(rows: list[Row]) -> tuple[Fit, Points]:
    at = points(rows, Counting.matmul, Convention.causal)
    return fit(at.n, at.d, at.loss), at


def drawn(rows: list[Row]) -> Scatter:
    found, at = fitted(rows)
    return scatter_of(found, at, None, 4000, np.random.default_rng(0))


def many(noise: float, shared: float) -> list[Row]:
    """Twelve sizes of four budgets: enough to tell what a trunk shares."""
    rng, (n, d) = np.random.default_rng(7), grid(12, 4)
    trunks = {size: rng.standard_normal() for size in n}
    own = [np.sqrt(shared) * trunks[size] + np.sqrt(1 - shared) * rng.standard_normal() for size in n]
    loss = TRUE.loss(n, d) * np.exp(noise * np.array(own))
    return [
        row(f"{i}", int(a), int(b), loss=float(x), group=f"{a}")
        for i, (a, b, x) in enumerate(zip(n, d, loss, strict=True))
    ]


def test_noise_that_a_trunk_shares_is_told_from_that_of_each_run():
    apart, together = drawn(many(0.01, 0.0)), drawn(many(0.01, 0.8))
    assert np.median(apart.sd) == pytest.approx(0.01, rel=0.25)
    assert np.median(together.sd) == pytest.approx(0.01, rel=0.4)
    assert np.median(apart.shared) <= 0.15
    assert np.median(together.shared) >= 0.6


def test_few_runs_leave_more_scatter_possible_and_seeds_less(sweeps: list[Family]):
    rng = np.random.default_rng(0)
    known = SeedSpread(sd=0.01, freedom=40, cells=10)
    alone, with_seeds = (scatter_of(sweeps[3].fit, sweeps[3].points, seeds, 4000, rng) for seeds in (None, known))
    assert np.quantile(alone.sd, 0.975) > 1.5 * np.quantile(with_seeds.sd, 0.975)
    assert np.median(with_seeds.sd) == pytest.approx(0.01, rel=0.15)


def test_few_independent_runs_are_not_resampled_and_that_is_said(sweeps: list[Family]):
    few, (n, d) = sweeps[0], grid(5, 2)
    assert few.constants is few.laws
    assert few.drawn.endswith(
        "16 rows scatter about the law: 4 independent runs are too few to resample, 10 are enough"
    )
    three = [row(f"{i}", int(a), int(b) * (1 + i % 2)) for i, (a, b) in enumerate(zip(n, d, strict=True))]
    enough = fit_family(three, FitChoice(resamples=40))
    assert enough.constants is not enough.laws
    assert enough.drawn.startswith("40 resamples of 10 independent runs")


def test_runs_that_share_nothing_have_no_common_scatter():
    assert (drawn([row(r.run, r.n_params_matmul, r.tokens, loss=r.loss) for r in rows_of()]).shared == 0).all()


def test_scattered_losses_give_the_laws_of_fresh_fits():
    n, d, _ = isoflop()
    found = fit(n, d, noisy(TRUE, n, d, 0.01, 3))
    losses = np.stack([noisy(TRUE, n, d, 0.01, seed) for seed in range(2)])
    laws = refit_losses(found, n, d, losses)
    for i, loss in enumerate(losses):
        fresh = fit(n, d, loss).law
        assert laws.loss(1e10, 1e11)[i] == pytest.approx(fresh.loss(1e10, 1e11), rel=2e-3)


def test_scattered_losses_are_as_far_apart_as_laws_of_sweeps_are(sweeps: list[Family]):
    """Eight sweeps of the same law against draws from one of them, at the held-out run."""
    there = np.log([float(one.fit.law.loss(*THERE)) for one in sweeps])
    found, at = sweeps[1].fit, sweeps[1].points
    scatter = Scatter(np.full(50, 0.01), np.full(50, 0.5))
    losses = scattered_losses(found.law, at, scatter, np.random.default_rng(0))
    laws = refit_losses(found, at.n, at.d, losses)
    assert 0.4 < np.std(np.log(laws.loss(*THERE))) / np.std(there) < 2.5


def test_spread_between_seeds_counts_trunks_not_budgets():
    rows = [
        row(f"{seed}-{d}", d=d, seed=seed, group=f"trunk{seed}", loss=3.0 * np.exp(0.01 * (seed - 2)))
        for seed in (1, 2, 3)
        for d in (10**9, 2 * 10**9, 4 * 10**9)
    ]
    spread = seed_spread(rows)
    assert spread is not None
    assert (spread.cells, spread.freedom) == (3, 2)
    assert spread.sd == pytest.approx(0.01)


def test_intervals_of_a_single_run_hold_about_as_often_as_they_say(sweeps: list[Family]):
    """Of a run of twice the largest size. (Of fifty, resampled trunks hold 37 in their 95 % interval, resampled rows
    40, and this one 47.)"""
    held = []
    for seed, family in enumerate(sweeps):
        truth = float(LAW.loss(*THERE) * np.exp(0.01 * np.random.default_rng(seed).standard_normal()))
        span = predict(family, None, *THERE).run_interval
        held.append((span.holds(truth, 80), span.holds(truth, 95), (span.high95 - span.low95) / truth))
    within_80, within_95, widths = np.array(held).T
    assert within_80.sum() >= 5
    assert within_95.sum() >= 7
    assert np.median(widths) < 0.15

"""The estimators that need no law: hull and valleys."""

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator
from scipy.spatial import ConvexHull

from conf.errors import ConfigError
from launch.scaling.envelope import envelope, hull
from launch.scaling.isoflop import Bottom, akima, budgets, interpolated, parabola, power
from launch.scaling.law import Law
from tests.launch.scaling.surfaces import TRUE, isoflop


def test_the_hull_is_the_falling_lower_part_of_the_convex_hull():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.random(30), rng.random(30)
        corners = set(ConvexHull(np.stack([x, y], axis=1)).vertices.tolist())
        left, lowest = int(x.argmin()), int(y.argmin())
        slope = (y[lowest] - y[left]) / (x[lowest] - x[left]) if left != lowest else 0
        wanted = {i for i in corners if x[i] <= x[lowest] and y[i] <= y[left] + slope * (x[i] - x[left]) + 1e-12}
        found = hull(x, y)
        assert set(found) == wanted
        assert list(x[list(found)]) == sorted(x[list(found)])


def test_the_envelope_of_the_best_sizes_has_their_exponents():
    flops = np.geomspace(1e18, 1e22, 9)
    n, d = Law(0.0, 40.0, 41.0, 0.3, 0.2).optimum(flops)
    found = envelope(flops, n, d, 50 * flops**-0.05 + 1)
    assert found.n_exponent == pytest.approx(0.4)
    assert found.d_exponent == pytest.approx(0.6)
    assert found.optimum(1e20)[0] == pytest.approx(n[4])
    assert len(found.members) >= 8


def test_an_envelope_of_two_runs_is_refused():
    with pytest.raises(ConfigError, match="needs at least 3"):
        envelope(np.array([1e18, 1e19]), np.array([1e7, 2e7]), np.array([1e9, 2e9]), np.array([3.0, 2.0]))


def test_runs_of_equal_flops_are_one_budget():
    _, _, flops = isoflop()
    off = flops * np.exp(np.random.default_rng(0).uniform(-0.02, 0.02, len(flops)))
    found = budgets(off)
    assert [len(rows) for _, rows in found] == [5, 5, 5, 5]
    assert [flops for flops, _ in found] == pytest.approx([1e17, 1e18, 1e19, 1e20], rel=0.02)


def test_a_parabola_finds_its_own_bottom():
    n = np.geomspace(1e7, 1e9, 7)
    loss = 3 + 0.05 * (np.log(n) - np.log(8e7)) ** 2
    found = parabola(1e19, n, loss)
    assert (found.n, found.loss, found.flag) == (pytest.approx(8e7), pytest.approx(3), "")
    assert 0 < found.spread < 0.2


def test_a_bottom_beyond_the_sizes_tried_is_flagged_and_not_used():
    n = np.geomspace(1e7, 1e8, 5)
    beyond = parabola(1e22, n, 3 + 0.05 * (np.log(n) - np.log(3e8)) ** 2)
    assert "edge" in beyond.flag
    assert "opens downwards" in parabola(1e19, n, 3 - 0.05 * (np.log(n) - np.log(3e7)) ** 2).flag
    assert "edge" in interpolated(1e19, n, 3 + 0.05 * (np.log(n) - np.log(3e8)) ** 2).flag
    good = [Bottom(1e18, 1e7, 0.1, 3.0, ""), Bottom(1e20, 1e8, 0.1, 2.0, "")]
    assert power([*good, beyond]).exponent == pytest.approx(0.5)


@pytest.mark.parametrize("bottom", [parabola, interpolated])
def test_bottoms_of_a_symmetric_law_follow_its_exponent(bottom):
    law = Law(1.7, 400.0, 400.0, 0.3, 0.3)
    found = []
    for flops in (1e18, 1e19, 1e20, 1e21):
        n = law.optimum(flops)[0] * np.geomspace(0.2, 5, 9)
        found.append(bottom(flops, n, law.loss(n, flops / 6 / n)))
    assert power(found).exponent == pytest.approx(0.5, abs=0.02)


def test_akima_curves_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.random(9)), rng.random((4, 9))
    at = np.linspace(x[0], x[-1], 101)
    for curve, values in zip(akima(x, y, at), y, strict=True):
        assert curve == pytest.approx(Akima1DInterpolator(x, values)(at), abs=1e-12)


def test_seed_noise_widens_the_bottom():
    n = TRUE.optimum(1e19)[0] * np.geomspace(0.2, 5, 9)
    loss = TRUE.loss(n, 1e19 / 6 / n)
    assert parabola(1e19, n, loss, noise=0.01).spread > 1.5 * parabola(1e19, n, loss, noise=0.003).spread

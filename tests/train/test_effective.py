"""The share of time that went into steps that count, and how often to save, as tables."""

import math

import pytest

from train.effective import best_interval, device_time_ratio, effective_time_ratio, time_lost


@pytest.mark.parametrize(
    ("step_seconds", "first_start", "now", "ratio"),
    [
        (50.0, 1000.0, 1100.0, 0.5),
        (95.0, 0.0, 100.0, 0.95),
        (100.0, 1000.0, 1100.0, 1.0),
        (50.0, 1000.0, 1020.0, 1.0),  # a clock was set back: less time has passed than was worked
        (50.0, 1000.0, 200.0, 1.0),  # and even below the start
        (50.0, 0.0, 5e9, 1e-8),
        (0.0, 1000.0, 1100.0, None),
        (50.0, None, 1100.0, None),
    ],
)
def test_the_effective_time_ratio_lies_between_0_and_1_whatever_the_clocks_say(
    step_seconds: float, first_start: float | None, now: float, ratio: float | None
):
    assert effective_time_ratio(step_seconds, first_start, now) == (None if ratio is None else pytest.approx(ratio))


@pytest.mark.parametrize(("train", "everything", "ratio"), [(8.0, 10.0, 0.8), (8.0, 4.0, 1.0), (0.0, 10.0, None)])
def test_the_ratio_of_device_time_knows_no_gaps(train: float, everything: float, ratio: float | None):
    assert device_time_ratio(train, everything) == ratio


def test_the_best_interval_is_that_of_young():
    """10 s and 2.5 h give 424 s, and lose about 5 %."""
    assert best_interval(10, 2.5 * 3600) == pytest.approx(424.3, abs=0.1)
    assert time_lost(424.3, 10, 2.5 * 3600) == pytest.approx(0.0471, abs=1e-4)


@pytest.mark.parametrize(("save", "failing"), [(0.01, 60.0), (10.0, 9000.0), (120.0, 3600.0)])
def test_no_other_interval_loses_less(save: float, failing: float):
    best = best_interval(save, failing)
    losses = [time_lost(best * math.exp(i / 10), save, failing) for i in range(-20, 21)]
    assert min(losses) == losses[20]

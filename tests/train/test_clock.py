"""What a rank says of its time: steps, collectives, and what is neither."""

import contextlib
from types import SimpleNamespace

import pytest

from train.engine import clock
from train.engine.clock import CollectiveClock, StepClock


def test_what_goes_on_aside_is_no_part_of_a_step(monkeypatch: pytest.MonkeyPatch):
    """An evaluation between two steps, with collectives of its own, counted as the next step's work."""
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(clock, "CLOCK", CollectiveClock())
    clock.CLOCK.device = "cpu"
    collective = clock.CLOCK.around(spend)
    steps = StepClock()
    spend(3.0)
    collective(0.5)
    with steps.aside():
        spend(100.0)
        collective(50.0)
    spend(2.0)
    collective(0.25)
    assert steps.read() == (0.75, 5.75)
    spend(1.0)
    assert steps.read() == (0.0, 1.0)
    with contextlib.suppress(ValueError), steps.aside():
        spend(10.0)
        raise ValueError
    assert steps.read() == (0.0, 0.0)

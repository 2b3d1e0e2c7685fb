"""Learning rates at the corners of each schedule, as a table."""

import math

import pytest

from train.optimizer_config import ConstantSchedule, CosineSchedule, LinearSchedule, WsdSchedule
from train.schedule import lr_at

TOTAL, PEAK = 1000, 2.0


@pytest.mark.parametrize(
    ("schedule", "at", "expected"),
    [
        (CosineSchedule(warmup_tokens=100, min_lr_ratio=0.1), 1, PEAK * 0.01),
        (CosineSchedule(warmup_tokens=100, min_lr_ratio=0.1), 100, PEAK),
        (CosineSchedule(warmup_tokens=100, min_lr_ratio=0.1), 550, PEAK * 0.55),
        (
            CosineSchedule(warmup_tokens=100, min_lr_ratio=0.1),
            325,
            PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        ),
        (CosineSchedule(warmup_tokens=100, min_lr_ratio=0.1), TOTAL, PEAK * 0.1),
        (CosineSchedule(), 0, PEAK),
        (LinearSchedule(warmup_tokens=200), 600, PEAK * 0.5),
        (LinearSchedule(warmup_tokens=200, min_lr_ratio=0.2), TOTAL, PEAK * 0.2),
        (ConstantSchedule(warmup_tokens=10), 5, PEAK * 0.5),
        (ConstantSchedule(warmup_tokens=10), TOTAL, PEAK),
        (WsdSchedule(warmup_tokens=100, decay_fraction=0.25), 749, PEAK),
        (WsdSchedule(warmup_tokens=100, decay_fraction=0.25), 750, PEAK),
        (WsdSchedule(warmup_tokens=100, decay_fraction=0.25), 875, PEAK * 0.5),
        (WsdSchedule(warmup_tokens=100, decay_fraction=0.25, min_lr_ratio=0.1), 875, PEAK * 0.55),
        (WsdSchedule(warmup_tokens=100, decay_fraction=0.25), TOTAL, 0.0),
        (WsdSchedule(decay_fraction=0.0), TOTAL, PEAK),
    ],
)
def test_learning_rate_table(schedule, at: int, expected: float):
    assert lr_at(schedule, at, peak_lr=PEAK, total_tokens=TOTAL) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "schedule", [CosineSchedule(warmup_tokens=100), LinearSchedule(warmup_tokens=100), WsdSchedule(warmup_tokens=100)]
)
def test_the_rate_rises_then_never_rises_again(schedule):
    rates = [lr_at(schedule, tokens, peak_lr=PEAK, total_tokens=TOTAL) for tokens in range(1, TOTAL + 1)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)

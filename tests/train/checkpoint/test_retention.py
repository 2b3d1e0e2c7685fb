"""Which checkpoints stay."""

import pytest

from train.checkpoint.folders import not_kept
from train.config import CheckpointConfig

LOSSES: dict[int, float | None] = {10: 5.0, 20: 3.0, 30: None, 40: 3.5, 50: None, 60: 4.0}


@pytest.mark.parametrize(
    ("saved_step", "rule", "removed"),
    [
        (60, {}, [40, 30, 20, 10]),
        (60, {"keep_last": 4}, [20, 10]),
        (60, {"keep_last": 9}, []),
        (60, {"keep_every_steps": 30}, [40, 20, 10]),
        (60, {"keep_every_steps": 10}, []),
        (60, {"keep_best": True}, [40, 30, 10]),
        (60, {"keep_best": True, "keep_every_steps": 40}, [30, 10]),
        # later ones did not verify when the run was resumed: they go first, and count for nothing
        (40, {}, [60, 50, 20, 10]),
        (30, {"keep_best": True}, [60, 50, 40, 10]),
        (50, {"keep_every_steps": 60}, [60, 30, 20, 10]),
    ],
)
def test_the_last_the_multiples_and_the_best_stay(saved_step: int, rule: dict, removed: list[int]):
    assert not_kept(LOSSES, saved_step, CheckpointConfig(**rule)) == removed


def test_of_equal_losses_the_later_is_the_best_and_without_any_nothing_more_is_kept():
    best = CheckpointConfig(keep_best=True)
    assert not_kept({1: 2.0, 2: 2.0, 3: 4.0, 4: 4.0}, 4, best) == [1]
    assert not_kept({1: None, 2: None, 3: None, 4: None}, 4, best) == [2, 1]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"keep_every_steps": 250}, "multiple of checkpoint.every_steps=100"),
        ({"keep_every_steps": 0}, "100 would do"),
        ({"keep_every_steps": -100}, "100 would do"),
        ({"keep_every_steps": 50}, "100 would do"),
    ],
)
def test_a_rule_that_would_keep_nothing_is_refused(rule: dict, words: str):
    (problem,) = CheckpointConfig(**rule).problems()
    assert words in problem
    assert CheckpointConfig(keep_every_steps=300).problems() == []

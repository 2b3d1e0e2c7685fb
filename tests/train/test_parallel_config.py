"""Which parallel settings go together."""

import pytest

from train.parallel_config import ParallelConfig, Precision


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ParallelConfig(zero_stage=1, hpz_size=2), "needs parallel.zero_stage=3"),
        (ParallelConfig(zero_stage=3, hpz_size=1), "must be at least 2"),
        (ParallelConfig(zero_stage=3, hpz_size=2, tp_size=2), "would mix their slices"),
        (ParallelConfig(zero_stage=1, tp_size=0), "parallel.tp_size=0 must be at least 1"),
        (ParallelConfig(offload_optimizer=True, precision=Precision.bf16_states), "does not go with"),
    ],
)
def test_what_does_not_go_together_is_refused(config: ParallelConfig, words: str):
    assert [words in problem for problem in config.problems()] == [True]


def test_hpz_divides_the_data_parallel_ranks():
    config = ParallelConfig(zero_stage=3, hpz_size=4)
    assert config.problems() == config.problems_on(8) == []
    assert "can be one of [2, 3, 6]" in config.problems_on(6)[0]
    assert "set null" in config.problems_on(1)[0]

"""The batch is dealt out exactly, or refused with sizes that work."""

import pytest

from train.batch import BatchError, solve_batch


@pytest.mark.parametrize(
    ("global_size", "micro", "dp", "accumulation"),
    [(32, 8, 1, 4), (32, 8, 4, 1), (32, 32, 1, 1), (24, 2, 3, 4), (1, 1, 1, 1), (4096, 4, 128, 8)],
)
def test_the_parts_multiply_to_the_whole(global_size: int, micro: int, dp: int, accumulation: int):
    plan = solve_batch(
        global_batch_size=global_size, micro_batch_size=micro, dp_size=dp, seq_len=128, total_tokens=10**6
    )
    assert plan.gradient_accumulation_steps == accumulation
    assert plan.micro_batch_size * plan.gradient_accumulation_steps * plan.dp_size == global_size
    assert plan.sequences_per_rank * dp == global_size


@pytest.mark.parametrize(("total_tokens", "steps"), [(1, 1), (1024, 1), (1025, 2), (10 * 1024, 10)])
def test_tokens_are_rounded_up_to_whole_steps(total_tokens: int, steps: int):
    plan = solve_batch(global_batch_size=8, micro_batch_size=8, dp_size=1, seq_len=128, total_tokens=total_tokens)
    assert (plan.total_steps, plan.total_tokens) == (steps, steps * 1024)


def test_an_uneven_batch_is_refused_with_the_nearest_sizes():
    with pytest.raises(BatchError) as caught:
        solve_batch(global_batch_size=30, micro_batch_size=4, dp_size=2, seq_len=128, total_tokens=1)
    message = str(caught.value)
    assert "30" in message
    assert "nearest global batch sizes: 24 and 32" in message
    assert "micro_batch_size in [1, 3, 5, 15]" in message


def test_a_batch_smaller_than_one_forward_names_the_smallest_that_works():
    with pytest.raises(BatchError, match="nearest global batch sizes: 16;"):
        solve_batch(global_batch_size=8, micro_batch_size=4, dp_size=4, seq_len=128, total_tokens=1)


def test_sizes_that_change_on_the_way_count_on_from_the_tokens_before():
    first = solve_batch(global_batch_size=8, micro_batch_size=8, dp_size=1, seq_len=32, total_tokens=5000)
    later = solve_batch(
        global_batch_size=6,
        micro_batch_size=6,
        dp_size=1,
        seq_len=16,
        total_tokens=5000,
        first_step=10,
        tokens_before=first.tokens_seen(10),
    )
    assert later.tokens_seen(10) == first.tokens_seen(10) == 2560
    assert later.total_steps == 10 + 26  # 2440 tokens in steps of 96
    assert later.total_tokens == later.tokens_seen(36) == 2560 + 26 * 96

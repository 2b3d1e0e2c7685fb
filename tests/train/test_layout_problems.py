"""What a network cannot be cut into, and what to do about it."""

import pytest

from model.config import ModelConfig
from train.layout_problems import cutting_problems


def problems(seq_len: int = 64, tp: int = 1, sp: int = 1, norms: bool = True, **settings: int) -> list[str]:
    model = ModelConfig(**({"n_heads": 8, "n_kv_heads": 4, "d_ff": 64, "vocab_size": 128} | settings))  # pyright: ignore[reportArgumentType]
    return cutting_problems(model, seq_len, tp_size=tp, sp_size=sp, sequence_parallel_norms=norms)


@pytest.mark.parametrize(("tp", "sp"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
def test_what_divides_is_fine(tp: int, sp: int):
    assert problems(tp=tp, sp=sp) == []


def test_key_value_heads_that_are_too_few_name_what_would_do():
    (problem,) = problems(tp=4, sp=2)
    assert "n_kv_heads=4" in problem
    assert "= 8" in problem
    assert "model.n_kv_heads of 8 would" in problem
    assert "tp_size x sp_size of 1, 2 or 4" in problem


def test_a_single_key_value_head_cannot_be_cut():
    (problem,) = problems(tp=2, n_kv_heads=1)
    assert "model.n_kv_heads of 2, 4 or 8 would" in problem


def test_heads_that_no_number_of_key_value_heads_can_mend_name_numbers_of_heads():
    (problem,) = problems(tp=3, d_ff=66, vocab_size=129, seq_len=63)
    assert "model.n_heads=6 and 9 would" in problem


def test_all_problems_come_at_once_with_the_nearest_sizes():
    heads, mlp, vocabulary, row = problems(tp=4, n_kv_heads=2, d_ff=66, vocab_size=131, seq_len=65)
    assert "n_kv_heads=2" in heads
    assert "model.d_ff=66" in mlp
    assert "64 and 68" in mlp
    assert "model.vocab_size=131" in vocabulary
    assert "nearest sizes 132" in vocabulary
    assert "data.seq_len=65" in row
    assert "64 and 68, or parallel.sequence_parallel_norms=false" in row


def test_rows_are_cut_by_tensor_parallelism_only_with_sequence_parallel_norms():
    assert problems(seq_len=62, tp=2, sp=2, norms=False) == []
    (problem,) = problems(seq_len=62, tp=2, sp=2)
    assert "60 and 64" in problem
    (problem,) = problems(seq_len=63, sp=2)
    assert "sequence_parallel_norms" not in problem


def test_sizes_below_one_are_refused_before_anything_is_divided():
    assert problems(tp=0, sp=-1) == ["parallel.tp_size=0 must be at least 1", "parallel.sp_size=-1 must be at least 1"]

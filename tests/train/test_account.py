"""The work of a step by true segment lengths: compared with every pair of positions, looked at one by one."""

from pathlib import Path

import numpy as np
import pytest

from model.arithmetic import count_parameters, flops_per_token
from model.config import ModelConfig
from tests.train.sources import corpus_of, rows_of
from train.account import Account, Flops, account_of, flops_of
from train.batch import solve_batch
from train.data import TrainBatches
from train.filling import filled
from train.rows import PADDING, PhaseRows

SHARDS = [[9, 1, 30, 4, 25], [57], [1, 1, 40, 12]]
SEQ_LEN = 14


def brute_force(rows: PhaseRows, samples: np.ndarray, window: int | None) -> tuple[int, int, int]:
    """(tokens, pairs, pairs of full squares), from the very numbers that attention is given."""
    located = rows.pieces(samples)
    parts = filled(rows, located)
    segments = parts[2] if len(parts) > 2 else np.zeros_like(parts[0])
    n_tokens = n_pairs = n_square = 0
    for (_, pieces), row in zip(located, segments, strict=True):
        real = np.concatenate([np.full(pairs, position != PADDING) for position, pairs in pieces])
        together = (row[:, None] == row[None, :]) & real[:, None] & real[None, :]
        distance = np.arange(SEQ_LEN)[:, None] - np.arange(SEQ_LEN)[None, :]
        near = distance < (window or SEQ_LEN)
        n_tokens += int(real.sum())
        n_pairs += int((together & near & (distance >= 0)).sum())
        of_segments = np.unique(row[real], return_counts=True)[1].tolist()
        n_square += sum(n * min(n, window or n) for n in of_segments)
    return n_tokens, n_pairs, n_square


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("mode", ["concat", "best_fit"])
def test_pairs_are_those_that_are_attended_and_padding_never_counts(
    tmp_path: Path, mode: str, mask: bool, window: int | None
):
    corpora = [
        corpus_of(tmp_path, "a", SHARDS, weight=3),
        corpus_of(tmp_path, "b", [[50, 20, 3]], first_id=1000, weight=1),
    ]
    rows = rows_of(corpora, global_batch_size=8, seq_len=SEQ_LEN, packing=mode, mask_documents=mask)
    samples = np.arange(64, dtype=np.int64)
    account = account_of(rows, samples, window, 2)
    assert account.numbers == brute_force(rows, samples, window)
    assert (account.n_tokens == 64 * SEQ_LEN) == (mode == "concat")
    assert list(account.sources) == [source for source, _ in rows.pieces(samples)]


def test_the_ranks_accounts_add_up_to_that_of_the_step_for_any_layout(tmp_path: Path):
    corpora = [
        corpus_of(tmp_path, "a", SHARDS, weight=3),
        corpus_of(tmp_path, "b", [[50, 20]], weight=1, first_id=1000),
    ]
    rows = rows_of(corpora, global_batch_size=8, seq_len=SEQ_LEN, packing="best_fit", mask_documents=True)

    def accounts(dp_size: int) -> list[Account]:
        plan = solve_batch(
            global_batch_size=8, micro_batch_size=1, dp_size=dp_size, seq_len=SEQ_LEN, total_tokens=10_000
        )
        return [TrainBatches(rows, plan, rank).account(5, None, 2) for rank in range(dp_size)]

    (whole,) = accounts(1)
    for dp_size in (2, 4, 8):
        found = accounts(dp_size)
        assert tuple(map(sum, zip(*(each.numbers for each in found), strict=True))) == whole.numbers
        assert sum((each.sources for each in found), ()) == whole.sources


def test_full_rows_without_masks_cost_what_the_plan_says():
    model = ModelConfig(vocab_size=131, n_layers=2, d_model=36, n_heads=6, n_kv_heads=2, d_ff=50, sliding_window=20)
    for seq_len, n_rows in [(32, 5), (16, 3)]:
        seen = min(20, seq_len)
        pairs = sum(min(i + 1, seen) for i in range(seq_len))
        account = Account(n_rows * seq_len, n_rows * pairs, n_rows * seq_len * seen)
        full, causal = flops_per_token(model, seq_len)
        assert flops_of(account, model).full == n_rows * seq_len * full
        assert flops_of(account, model).causal == pytest.approx(
            n_rows * seq_len * causal, rel=1e-4
        )  # whole FLOPs a token


def test_a_document_of_n_tokens_costs_the_products_and_its_own_pairs():
    model = ModelConfig(vocab_size=131, n_layers=2, d_model=36, n_heads=6, n_kv_heads=2, d_ff=50)
    products, width = 6 * count_parameters(model).n_params_matmul, 12 * 2 * 36
    lengths = [5, 12, 1]
    account = Account(18, sum(n * (n + 1) // 2 for n in lengths), sum(n * n for n in lengths))
    squares = 25 + 144 + 1
    assert flops_of(account, model) == Flops(18 * products + width * squares, 18 * products + width * squares // 2)

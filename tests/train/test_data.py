"""The order of the data is a pure function of dataset, seed and step; no prediction is lost or made twice."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep.files import DataError
from data_prep.shards import ShardHead, shard_writer
from model.loss import IGNORED_TARGET
from train.batch import BatchPlan, solve_batch
from train.data import TokenStream, TrainBatches, ValidationBatches, _key, permute, sequence_starts

KEY = _key(seed=0, epoch=0)


def stream_of(folder: Path, lengths: list[int], split: str = "train") -> tuple[TokenStream, np.ndarray]:
    """A split of several shards whose tokens count up from 0 (each document's last one is end-of-text, id 2)."""
    tokens, entries, first = [], [], 0
    for i, length in enumerate(lengths):
        ids = np.arange(first, first + length - 1) % 60_000
        with shard_writer(folder / f"{split}-{i}", ShardHead("t", "k", 60_000, 2)) as writer:
            if length:
                writer.add(ids, text_bytes=length - 1)
        tokens += [*ids, 2] if length else []
        entries.append(SimpleNamespace(name=f"{split}-{i}", tokens=length))
        first += length
    manifest = SimpleNamespace(shards_of=lambda asked: [e for e in entries if asked == split])
    return TokenStream(folder, manifest, split), np.array(tokens)  # type: ignore[arg-type]


def plan_of(dp_size: int = 1, global_size: int = 8, micro: int = 2, seq_len: int = 7) -> BatchPlan:
    return solve_batch(
        global_batch_size=global_size, micro_batch_size=micro, dp_size=dp_size, seq_len=seq_len, total_tokens=10_000
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4099, 1_000_003])
def test_the_permutation_is_one(size: int):
    images = permute(np.arange(size, dtype=np.int64), size, KEY)
    assert np.array_equal(np.sort(images), np.arange(size))


def test_the_permutation_looks_random_and_depends_on_its_key():
    size = 10_000
    images = permute(np.arange(size, dtype=np.int64), size, KEY)
    other = permute(np.arange(size, dtype=np.int64), size, _key(seed=1, epoch=0))
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.05
    assert (np.abs(np.diff(images)) == 1).sum() < 20  # neighbours stay neighbours about twice in 10 000
    assert (images == other).sum() < 20


def test_the_permutation_of_a_trillion_needs_no_table():
    size = 10**12
    indices = np.arange(0, 10**6, dtype=np.int64)
    images = permute(indices, size, KEY)
    assert len(np.unique(images)) == len(indices)
    assert images.min() >= 0
    assert images.max() < size


def test_a_stream_reads_across_shards_and_round_the_end(tmp_path: Path):
    stream, tokens = stream_of(tmp_path, [10, 0, 1, 25, 14])
    assert stream.n_tokens == 50
    for start, count in [(0, 50), (9, 3), (8, 30), (45, 12), (49, 103)]:
        expected = np.resize(np.roll(tokens, -start), count)
        assert np.array_equal(stream.read(start, count), expected)


@pytest.mark.parametrize(("n_tokens", "seq_len"), [(50, 7), (49, 7), (8, 7), (1000, 13), (997, 64)])
def test_each_epoch_predicts_every_token_exactly_once(n_tokens: int, seq_len: int):
    """Over k epochs' worth of sequences, every position of the endless stream is a target once, in any order."""
    n_sequences = n_tokens * 3 // seq_len * 2
    starts = sequence_starts(np.arange(n_sequences, dtype=np.int64), n_tokens=n_tokens, seq_len=seq_len, seed=5)
    targets = np.zeros(n_tokens, dtype=np.int64)
    for start in starts:
        np.add.at(targets, (start + 1 + np.arange(seq_len)) % n_tokens, 1)
    # the last epoch may be incomplete: complete ones first
    complete = n_sequences * seq_len // n_tokens
    assert targets.min() >= complete - 1
    assert targets.sum() == n_sequences * seq_len
    whole = np.arange(-(-complete * n_tokens // seq_len), dtype=np.int64)
    starts = sequence_starts(whole, n_tokens=n_tokens, seq_len=seq_len, seed=5)
    covered = np.concatenate([(start + 1 + np.arange(seq_len)) % n_tokens for start in starts])
    counts = np.bincount(covered, minlength=n_tokens)
    assert counts.min() == complete
    assert counts.sum() - complete * n_tokens < seq_len  # only the row that runs into the next epoch


def test_epochs_are_shuffled_differently():
    first, second = (
        sequence_starts(np.arange(e * 100, e * 100 + 100, dtype=np.int64), n_tokens=1000, seq_len=10, seed=1)
        for e in (0, 1)
    )
    assert sorted(first) == sorted(second)
    assert list(first) != list(second)


def batches(stream: TokenStream, plan: BatchPlan, step: int, seed: int = 3) -> list[list[int]]:
    """All rows of one step, over all ranks, in the order of their sequence numbers."""
    rows: list[list[int]] = []
    for dp_rank in range(plan.dp_size):
        for tokens, targets in TrainBatches(stream, plan, seed, dp_rank).micro_batches(step):
            assert tokens.shape == targets.shape == (plan.micro_batch_size, plan.seq_len)
            assert torch.equal(tokens[:, 1:], targets[:, :-1])
            rows += torch.cat([tokens, targets[:, -1:]], dim=1).tolist()
    return rows


def test_the_order_is_the_same_for_any_number_of_ranks_and_any_micro_batch(tmp_path: Path):
    stream, _ = stream_of(tmp_path, [100, 57])
    for step in (0, 3, 11):
        expected = batches(stream, plan_of(1, micro=8), step)
        for dp_size, micro in [(1, 1), (1, 4), (2, 2), (4, 1), (8, 1), (4, 2)]:
            assert batches(stream, plan_of(dp_size, micro=micro), step) == expected


def test_a_batch_needs_no_batch_before_it(tmp_path: Path):
    stream, _ = stream_of(tmp_path, [100, 57])
    in_turn = [batches(stream, plan_of(), step) for step in range(6)]
    assert batches(stream, plan_of(), 5) == in_turn[5]
    assert batches(stream, plan_of(), 5, seed=4) != in_turn[5]


def test_a_corpus_smaller_than_one_sequence_is_refused(tmp_path: Path):
    stream, _ = stream_of(tmp_path, [7])
    with pytest.raises(DataError, match=r"7 tokens; one sequence needs data.seq_len \+ 1 = 8"):
        TrainBatches(stream, plan_of(), 0, 0)


def validation(
    stream: TokenStream, dp_size: int = 1, batch_size: int = 2, max_sequences: int = 100
) -> ValidationBatches:
    return ValidationBatches(stream, seq_len=7, max_sequences=max_sequences, batch_size=batch_size, dp_size=dp_size)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 50])
@pytest.mark.parametrize("dp_size", [1, 3])
def test_validation_predicts_each_token_once_on_any_number_of_ranks(tmp_path: Path, length: int, dp_size: int):
    stream, tokens = stream_of(tmp_path, [length], "val")
    rows = validation(stream, dp_size)
    seen: list[int] = []
    n_batches = set()
    for rank in range(dp_size):
        of_rank = list(rows.batches(rank))
        n_batches.add(len(of_rank))
        for _, targets in of_rank:
            seen += targets[targets != IGNORED_TARGET].tolist()
    assert sorted(seen) == sorted(tokens[1:].tolist())
    assert len(n_batches) == 1  # ZeRO-3 gathers weights together on all ranks


def test_validation_takes_the_first_rows_each_time(tmp_path: Path):
    stream, tokens = stream_of(tmp_path, [50], "val")
    (inputs, targets), *rest = validation(stream, max_sequences=2).batches(0)
    assert rest == []
    assert inputs.flatten().tolist() == tokens[:14].tolist()
    assert targets.flatten().tolist() == tokens[1:15].tolist()

"""Rows as they are read: the same for any layout of ranks, every token predicted, documents kept apart when asked."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.files import DataError
from data_prep.shards import file_of
from model.loss import IGNORED_TARGET
from tests.train.sources import EOS, corpus_of, rows_of, write_shards
from train.batch import BatchPlan, solve_batch
from train.data import TrainBatches, ValidationBatches
from train.fingerprint import fingerprint, from_pieces, pieces_of
from train.rows import PhaseRows
from train.stream import OpenFiles, TokenStream

SHARDS = [[9, 1, 30, 4, 25], [57], [1, 1, 40, 12]]


def stream_of(folder: Path, documents: list[list[int]], split: str = "train") -> tuple[TokenStream, np.ndarray]:
    manifest, tokens = write_shards(folder, documents, split)
    return TokenStream(folder, manifest, split), tokens  # type: ignore[arg-type]


def plan_of(dp_size: int = 1, global_size: int = 8, micro: int = 2, seq_len: int = 7) -> BatchPlan:
    return solve_batch(
        global_batch_size=global_size, micro_batch_size=micro, dp_size=dp_size, seq_len=seq_len, total_tokens=10_000
    )


# --- the stream


def test_a_stream_reads_across_shards_and_round_the_end(tmp_path: Path):
    stream, tokens = stream_of(tmp_path, [[10], [], [1], [25], [14]])
    assert stream.n_tokens == 50
    for start, count in [(0, 50), (9, 3), (8, 30), (45, 12), (49, 103)]:
        expected = np.resize(np.roll(tokens, -start), count)
        assert np.array_equal(stream.read(start, count), expected)


@pytest.mark.parametrize("lengths", [[[10, 1, 1, 5]], SHARDS, [[3] * 2000, [1] * 700]])
def test_documents_begin_where_the_index_says(tmp_path: Path, lengths: list[list[int]]):
    stream, _ = stream_of(tmp_path, lengths)
    ends = np.cumsum([length for shard in lengths for length in shard])
    begins = {0, *ends[:-1].tolist()}
    n = stream.n_tokens
    for start, count in [(0, n), (n // 3, n // 2), (n - 3, 7), (1, 0), (0, 1), (n // 2, 1)]:
        expected = [i for i in range(count) if (start + i) % n in begins]
        assert stream.document_starts(start, count).tolist() == expected


def test_passages_and_documents_agree(tmp_path: Path):
    stream, _ = stream_of(tmp_path, SHARDS)
    for start in range(0, stream.n_tokens, 5):
        at = start
        for passage in stream.passages(start, 23):
            position, tokens = stream.document(passage.shard, passage.document)
            assert (position + passage.first) % stream.n_tokens == at % stream.n_tokens
            assert 0 <= passage.first < passage.first + passage.tokens <= tokens
            at += passage.tokens
        assert at == start + 23


def test_shards_of_both_widths_are_read_as_they_lie(tmp_path: Path):
    manifest, tokens = write_shards(tmp_path, SHARDS, vocab_sizes=[60_000, 70_000])
    assert [shard.bin_bytes // shard.tokens for shard in manifest.shards] == [2, 4, 2]
    stream = TokenStream(tmp_path, manifest, "train")  # type: ignore[arg-type]
    assert np.array_equal(stream.read(0, len(tokens)), tokens)
    ends = np.cumsum([length for shard in SHARDS for length in shard]).tolist()
    assert stream.document_starts(0, len(tokens)).tolist() == [0, *ends[:-1]]
    assert [stream.document(p.shard, p.document)[1] for p in stream.passages(0, len(tokens))] == [
        length for shard in SHARDS for length in shard
    ]


def test_a_shard_whose_size_fits_no_width_is_named(tmp_path: Path):
    manifest, _ = write_shards(tmp_path, [[4, 5]])
    manifest.shards[0].bin_bytes += 1
    with pytest.raises(DataError, match=r"9 tokens in 19 bytes, which are neither 2 nor 4"):
        TokenStream(tmp_path, manifest, "train")  # type: ignore[arg-type]


def test_open_files_never_exceed_their_limit(tmp_path: Path):
    manifest, tokens = write_shards(tmp_path, [[4]] * 40)
    files = OpenFiles(limit=5)
    stream = TokenStream(tmp_path, manifest, "train", files=files)  # type: ignore[arg-type]
    assert len(files) == 0  # nothing is opened before it is needed
    assert np.array_equal(stream.read(0, 160), tokens)
    assert len(stream.document_starts(0, 160)) == 40
    assert len(files) == 5


def test_more_shards_than_the_process_may_open_are_read(tmp_path: Path):
    manifest, tokens = write_shards(tmp_path, [[4]] * 60)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    for descriptor in free:
        os.close(descriptor)
    files = OpenFiles(limit=1000)
    stream = TokenStream(tmp_path, manifest, "train", files=files)  # type: ignore[arg-type]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        assert np.array_equal(stream.read(0, 240), tokens)
        assert np.array_equal(stream.read(0, 240), tokens)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 1 <= len(files) <= 20


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_shard_that_was_exchanged_is_named(tmp_path: Path, ending: str):
    stream, _ = stream_of(tmp_path, [[4, 5]])
    file = file_of(tmp_path / stream.shards[0].name, ending)
    file.write_bytes(file.read_bytes()[:-1] if ending == ".bin" else b"x" * 200)
    with pytest.raises(DataError, match=file.name):
        stream.read(0, 3) if ending == ".bin" else stream.document_starts(0, 3)


# --- training rows


def batches(rows: PhaseRows, plan: BatchPlan, step: int) -> list[list[int]]:
    """All rows of one step, over all ranks, in the order of their sequence numbers."""
    found: list[list[int]] = []
    for dp_rank in range(plan.dp_size):
        for parts in TrainBatches(rows, plan, dp_rank).micro_batches(step):
            assert {part.shape for part in parts} == {(plan.micro_batch_size, plan.seq_len)}
            found += torch.cat(list(parts), dim=1).tolist()
    return found


@pytest.mark.parametrize("mode", ["concat", "best_fit"])
@pytest.mark.parametrize("mask", [False, True])
def test_the_order_is_the_same_for_any_number_of_ranks_and_any_micro_batch(tmp_path: Path, mode: str, mask: bool):
    corpora = [
        corpus_of(tmp_path, "a", SHARDS, weight=3),
        corpus_of(tmp_path, "b", [[50, 20]], first_id=1000, weight=1),
    ]
    rows = rows_of(corpora, global_batch_size=8, seq_len=7, packing=mode, mask_documents=mask)
    for step in (0, 3, 11):
        expected = batches(rows, plan_of(1, micro=8), step)
        for dp_size, micro in [(1, 1), (2, 2), (4, 1), (8, 1), (4, 2)]:
            assert batches(rows, plan_of(dp_size, micro=micro), step) == expected


def test_a_batch_needs_no_batch_before_it(tmp_path: Path):
    corpus = corpus_of(tmp_path, "a", SHARDS)
    rows = rows_of([corpus], global_batch_size=8, seq_len=7)
    in_turn = [batches(rows, plan_of(), step) for step in range(6)]
    assert batches(rows, plan_of(), 5) == in_turn[5]
    other = rows_of([corpus], seed=4, global_batch_size=8, seq_len=7)
    assert batches(other, plan_of(), 5) != in_turn[5]


def test_a_corpus_smaller_than_one_sequence_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"7 tokens; one sequence needs data.seq_len \+ 1 = 8"):
        rows_of([corpus_of(tmp_path, "a", [[7]])], seq_len=7)


def pairs_by_hand(lengths: list[list[int]], tokens: np.ndarray) -> list[tuple[int, int]]:
    """(input, target) of every prediction inside a document."""
    found, at = [], 0
    for length in (length for shard in lengths for length in shard):
        found += list(zip(tokens[at : at + length - 1].tolist(), tokens[at + 1 : at + length].tolist(), strict=True))
        at += length
    return sorted(found)


@pytest.mark.parametrize("mode", ["concat", "best_fit"])
def test_with_masks_an_epoch_predicts_exactly_what_is_inside_documents(tmp_path: Path, mode: str):
    corpus = corpus_of(tmp_path, "a", SHARDS)
    tokens = corpus.stream("train").read(0, corpus.tokens("train"))
    seq_len = 10  # divides the 180 tokens, so that epochs end with rows
    rows = rows_of([corpus], seq_len=seq_len, global_batch_size=1, packing=mode, mask_documents=True)
    n_rows = rows.phase.sources[0].stretches[0].epoch_slots // seq_len
    plan = plan_of(1, global_size=n_rows, micro=n_rows, seq_len=seq_len)
    ((ids, targets, segments),) = TrainBatches(rows, plan, 0).micro_batches(0)
    kept = targets != IGNORED_TARGET
    assert sorted(zip(ids[kept].tolist(), targets[kept].tolist(), strict=True)) == pairs_by_hand(SHARDS, tokens)
    for row in range(n_rows):
        ended = (ids[row] == EOS).nonzero().flatten().tolist()
        assert all(segments[row, at + 1] != segments[row, at] for at in ended if at + 1 < seq_len)
        same = segments[row, 1:] == segments[row, :-1]
        inside = same & kept[row, :-1]
        assert torch.equal(ids[row, 1:][inside], targets[row, :-1][inside])


def test_without_masks_concatenated_rows_predict_across_documents(tmp_path: Path):
    rows = rows_of([corpus_of(tmp_path, "a", SHARDS)], seq_len=7, global_batch_size=8)
    for ids, targets in TrainBatches(rows, plan_of(), 0).micro_batches(2):
        assert torch.equal(ids[:, 1:], targets[:, :-1])
        assert not (targets == IGNORED_TARGET).any()


def test_a_mixture_takes_each_sources_rows_in_that_sources_order(tmp_path: Path):
    """What one source gives does not depend on the others: taking it alone gives the same rows in the same order."""
    corpora = [corpus_of(tmp_path, name, SHARDS, first_id=i * 1000 + 10, weight=w) for i, (name, w) in
               enumerate([("a", 0.5), ("b", 0.3), ("c", 0.2)])]  # fmt: skip
    mixed = rows_of(corpora, seq_len=7)
    found: list[list[list[tuple[int, int]]]] = [[], [], []]
    for source, pieces in mixed.pieces(np.arange(100, dtype=np.int64)):
        found[source].append(pieces)
    assert [len(pieces) for pieces in found] == [50, 30, 20]
    alone = rows_of([corpora[0]], seq_len=7)
    assert found[0] == [pieces for _, pieces in alone.pieces(np.arange(50, dtype=np.int64))]
    assert found[0][:20] != found[1][:20]


# --- the hash of a batch


def hash_of(rows: PhaseRows, plan: BatchPlan, step: int) -> str:
    """As the ranks make it together."""
    sums = [0, 0, 0, 0]
    for rank in range(plan.dp_size):
        mine = fingerprint(TrainBatches(rows, plan, rank).micro_batches(step), rank * plan.sequences_per_rank)
        sums = [total + piece for total, piece in zip(sums, pieces_of(mine), strict=True)]
    return from_pieces(sums)


def test_the_hash_of_a_batch_is_the_same_for_any_layout_and_no_other_batch_has_it(tmp_path: Path):
    rows = rows_of([corpus_of(tmp_path, "a", SHARDS)], seq_len=7, global_batch_size=8)
    expected = hash_of(rows, plan_of(1, micro=8), 4)
    assert len(expected) == 16
    assert {hash_of(rows, plan_of(dp, micro=m), 4) for dp, m in [(1, 1), (2, 2), (4, 1), (8, 1)]} == {expected}
    assert len({hash_of(rows, plan_of(), step) for step in range(50)}) == 50


def test_the_hash_sees_a_changed_id_a_changed_target_and_exchanged_rows():
    ids = torch.arange(12).view(3, 4)
    hashes = {
        fingerprint([(ids, ids + 1)], 0),
        fingerprint([(ids + (ids == 5), ids + 1)], 0),
        fingerprint([(ids, ids + 1 + (ids == 5))], 0),
        fingerprint([(ids[[1, 0, 2]], ids[[1, 0, 2]] + 1)], 0),
        fingerprint([(ids, ids + 1)], 3),
    }
    assert len(hashes) == 5


# --- validation rows


def validation(
    streams: list[TokenStream], dp_size: int = 1, batch_size: int = 2, max_sequences: int = 100, mask: bool = False
) -> ValidationBatches:
    return ValidationBatches(
        streams, seq_len=7, max_sequences=max_sequences, batch_size=batch_size, dp_size=dp_size, mask_documents=mask
    )


def test_without_a_val_split_both_ways_to_one_are_named(tmp_path: Path):
    stream, _ = stream_of(tmp_path, [[9]], "train")
    manifest, _ = write_shards(tmp_path, [[9]])
    empty = TokenStream(tmp_path, manifest, "val")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"val_fraction or, where they were imported, .*peer\.val=\[GLOB\]"):
        validation([empty])
    assert validation([empty, stream]).n_sequences == 2


@pytest.mark.parametrize("length", [2, 7, 8, 9, 50])
@pytest.mark.parametrize("dp_size", [1, 3])
def test_validation_predicts_each_token_once_on_any_number_of_ranks(tmp_path: Path, length: int, dp_size: int):
    stream, tokens = stream_of(tmp_path, [[length]], "val")
    rows = validation([stream], dp_size)
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
    stream, tokens = stream_of(tmp_path, [[50]], "val")
    (inputs, targets), *rest = validation([stream], max_sequences=2).batches(0)
    assert rest == []
    assert inputs.flatten().tolist() == tokens[:14].tolist()
    assert targets.flatten().tolist() == tokens[1:15].tolist()


def test_validation_of_a_mixture_takes_from_each_source_in_turn(tmp_path: Path):
    long, _ = stream_of(tmp_path / "a", [[50]], "val")
    short, _ = stream_of(tmp_path / "b", [[9]], "val")
    (first, _), (second, _), *rest = validation([long, short], max_sequences=4).batches(0)
    assert rest == []
    ids = torch.cat([first, second])
    assert ids[0].tolist() == ids[1].tolist() == long.read(0, 7).tolist()
    assert ids[2].tolist() == long.read(7, 7).tolist()
    assert ids[3, :1].tolist() == short.read(7, 1).tolist()


def test_validation_with_masks_predicts_nothing_across_documents(tmp_path: Path):
    stream, tokens = stream_of(tmp_path, [[5, 1, 20]], "val")
    kept: list[int] = []
    for _, targets, segments in validation([stream], mask=True).batches(0):
        kept += targets[targets != IGNORED_TARGET].tolist()
        assert segments.shape == targets.shape
    assert sorted(kept) == sorted(target for _, target in pairs_by_hand([[5, 1, 20]], tokens))

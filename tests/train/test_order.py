"""The order inside a source: a permutation computed both ways; a change of row length that loses nothing."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from train.order import Order, Stretch, changed, key_of, order_key, permute, unpermute

KEY = order_key(seed=0, epoch=0)
SIZES = [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4099, 1_000_003]


@pytest.mark.parametrize("size", SIZES)
def test_the_permutation_is_one_and_its_inverse_takes_it_back(size: int):
    images = permute(np.arange(size, dtype=np.int64), size, KEY)
    assert np.array_equal(np.sort(images), np.arange(size))
    assert np.array_equal(unpermute(images, size, KEY), np.arange(size))


def test_the_permutation_looks_random_and_depends_on_its_key():
    size = 10_000
    images = permute(np.arange(size, dtype=np.int64), size, KEY)
    other = permute(np.arange(size, dtype=np.int64), size, order_key(seed=1, epoch=0))
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
    assert np.array_equal(unpermute(images, size, KEY), indices)


def plain(n_slots: int, block: int) -> tuple[Stretch, ...]:
    return (Stretch(begins=0, shift=0, block=block, epoch_slots=n_slots),)


def starts_of_the_first_version(sequences: np.ndarray, *, n_tokens: int, seq_len: int, seed: int) -> np.ndarray:
    """The order that runs of version 0.1 were trained in, as it was written there."""
    starts = np.empty_like(sequences)
    epochs = sequences * seq_len // n_tokens
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        first = -(-int(epoch) * n_tokens // seq_len)
        after = -(-(int(epoch) + 1) * n_tokens // seq_len)
        shuffled = permute(sequences[inside] - first, after - first, order_key(seed, int(epoch)))
        starts[inside] = (shuffled + first) * seq_len - int(epoch) * n_tokens
    return starts


CASES = [(50, 7), (49, 7), (8, 7), (1000, 13), (997, 64)]


@pytest.mark.parametrize(("n_tokens", "seq_len"), CASES)
def test_one_source_keeps_the_order_of_the_first_version(n_tokens: int, seq_len: int):
    sequences = np.arange(n_tokens * 4 // seq_len, dtype=np.int64)
    positions = Order(plain(n_tokens, seq_len), seed=5).positions(sequences * seq_len)
    expected = starts_of_the_first_version(sequences, n_tokens=n_tokens, seq_len=seq_len, seed=5)
    assert np.array_equal(positions, expected)


@pytest.mark.parametrize(("n_tokens", "seq_len"), CASES)
def test_each_epoch_uses_every_slot_exactly_once(n_tokens: int, seq_len: int):
    order = Order(plain(n_tokens, seq_len), seed=5)
    for epochs in (1, 2, 3):
        consumed = np.arange(-(-epochs * n_tokens // seq_len) * seq_len, dtype=np.int64)
        counts = np.bincount(order.positions(consumed), minlength=n_tokens)
        assert counts.min() == epochs
        assert counts.sum() - epochs * n_tokens < seq_len  # only the row that runs into the next epoch


def test_epochs_and_sources_are_shuffled_differently():
    consumed = np.arange(0, 1000, 10, dtype=np.int64)
    first = Order(plain(1000, 10), seed=1).positions(consumed)
    second = Order(plain(1000, 10), seed=1).positions(consumed + 1000)
    other = Order(plain(1000, 10), seed=1, ordinal=1).positions(consumed)
    assert sorted(first) == sorted(second) == sorted(other)
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


def epoch_ends(stretches: Sequence[Stretch], until: int) -> Iterator[tuple[int, int]]:
    """(slots consumed, epoch) of every moment up to `until` at which all earlier epochs are complete."""
    for stretch, following in zip(stretches, [*(s.begins for s in stretches[1:]), until], strict=False):
        at = stretch.begins
        while at <= min(following, until):
            at, epoch = stretch.epoch_end(at)
            yield at, epoch
            at += 1


@pytest.mark.parametrize("lengths", [(7, 5), (5, 13), (10, 20, 3), (6, 6, 4), (3, 50, 7)])
@pytest.mark.parametrize("n_tokens", [50, 53])
def test_a_change_of_row_length_repeats_and_drops_nothing(lengths: tuple[int, ...], n_tokens: int):
    """Ledger of slots: when an epoch ends each slot was used once in it, whenever lengths were changed before; only the
    slots of a row that has run into the next epoch were used once more."""
    generator = np.random.default_rng(n_tokens)
    stretches, consumed = plain(n_tokens, lengths[0]), 0
    used: list[int] = []
    for length in (*lengths[1:], lengths[0], lengths[1]):
        rows = int(generator.integers(0, 9)) * stretches[-1].block
        used += Order(stretches, seed=2).positions(np.arange(consumed, consumed + rows, dtype=np.int64)).tolist()
        consumed += rows
        stretches = changed(stretches, consumed, block=length, epoch_slots=n_tokens)
    order, end = Order(stretches, seed=2), consumed + 3 * n_tokens
    used += order.positions(np.arange(consumed, end, dtype=np.int64)).tolist()
    assert used == order.positions(np.arange(end, dtype=np.int64)).tolist()  # no change has touched the past
    ends = [(at, epoch) for at, epoch in epoch_ends(stretches, end) if at <= end]
    assert ends[-1][1] >= end // n_tokens - 1
    for at, epoch in ends:
        counts = Counter(used[:at])
        assert {counts[slot] for slot in range(n_tokens)} <= {epoch, epoch + 1}
        assert at - epoch * n_tokens < max(lengths)


def test_runs_are_the_same_slots_in_one_piece():
    stretches = changed(plain(100, 10), 30, block=7, epoch_slots=100)
    order = Order(stretches, seed=1)
    starts = np.arange(0, 300, 12, dtype=np.int64)
    rows, positions, lengths = order.runs(starts, 12)
    slots = np.concatenate([(p + np.arange(n)) % 100 for p, n in zip(positions, lengths, strict=True)])
    assert np.array_equal(slots, order.positions(np.arange(300, dtype=np.int64)))
    assert np.bincount(rows, weights=lengths).tolist() == [12] * 25


def test_the_uses_of_a_slot_are_where_it_is_used():
    stretches = changed(plain(53, 10), 27, block=7, epoch_slots=53)
    order = Order(stretches, seed=1)
    found = [
        (consumed + i, slot + offset + i)
        for number in range(len(stretches))
        for epoch in range(4)
        for slot in (0, 20, 41)
        for consumed, offset, length in order.uses(number, epoch, slot, 12)
        for i in range(length)
    ]
    positions = order.positions(np.array([consumed for consumed, _ in found], np.int64))
    assert positions.tolist() == [slot % 53 for _, slot in found]
    assert len({consumed for consumed, _ in found}) == len(found) == 4 * 36


# --- a draw: only some of the source's rows, in every epoch the same ones


def drawn(n_tokens: int, seq_len: int, kept: int) -> tuple[Stretch, ...]:
    return (Stretch(0, 0, seq_len, epoch_slots=kept * seq_len, drawn_from=(n_tokens - 1) // seq_len),)


DRAWS = [(1000, 10, 1), (1000, 10, 7), (997, 13, 40), (1000, 10, 99), (8, 7, 1)]


def rows_by_five_lines(n_tokens: int, seq_len: int, kept: int, epoch: int, seed: int) -> list[int]:
    """Where the rows of an epoch begin: the reference, without a stretch or a stream."""
    n_rows = (n_tokens - 1) // seq_len
    rows = permute(np.arange(n_rows, dtype=np.int64), n_rows, key_of(f"{seed}/draw/0"))[:kept]
    shuffled = permute(np.arange(kept, dtype=np.int64), kept, order_key(seed, epoch))
    return (rows[shuffled] * seq_len).tolist()


@pytest.mark.parametrize(("n_tokens", "seq_len", "kept"), DRAWS)
def test_a_draw_is_that_of_the_five_line_reference_in_every_epoch(n_tokens: int, seq_len: int, kept: int):
    order = Order(drawn(n_tokens, seq_len, kept), seed=5)
    for epoch in range(4):
        consumed = (epoch * kept + np.arange(kept, dtype=np.int64)) * seq_len
        assert order.positions(consumed).tolist() == rows_by_five_lines(n_tokens, seq_len, kept, epoch, seed=5)
        assert order.epochs(int(consumed[-1]) + seq_len) == epoch + 1


@pytest.mark.parametrize(("n_tokens", "seq_len", "kept"), DRAWS)
def test_every_epoch_of_a_draw_uses_each_of_its_slots_once_and_no_other(n_tokens: int, seq_len: int, kept: int):
    order = Order(drawn(n_tokens, seq_len, kept), seed=5)
    size = kept * seq_len
    for epochs in (1, 2, 5):
        counts = np.bincount(order.positions(np.arange(epochs * size, dtype=np.int64)), minlength=n_tokens)
        assert sorted(np.unique(counts)) == ([0, epochs] if size < n_tokens else [epochs])
        assert (counts > 0).sum() == size
        assert counts[(n_tokens - 1) // seq_len * seq_len :].sum() == 0  # no row runs over the end of the source


def test_a_smaller_draw_is_contained_in_a_larger_one_and_another_seed_draws_others():
    def rows(kept: int, seed: int) -> set[int]:
        order = Order(drawn(10_000, 10, kept), seed)
        return set(order.positions(np.arange(kept, dtype=np.int64) * 10).tolist())

    draws = [rows(kept, 5) for kept in (1, 10, 100, 500, 999)]
    for smaller, larger in itertools.pairwise(draws):
        assert smaller < larger
    assert len(rows(100, 5) & rows(100, 6)) < 30  # of two independent tenths one row in ten is in both
    assert abs(np.mean(list(draws[3])) - 5000) < 500  # from the whole source: the standard error of the mean is 91


def test_the_order_inside_a_draw_is_not_that_of_the_draw():
    """Rows of a smaller draw are spread over an epoch of a larger one."""
    order = Order(drawn(10_000, 10, 500), seed=5)
    ten = set(Order(drawn(10_000, 10, 10), seed=5).positions(np.arange(10, dtype=np.int64) * 10).tolist())
    for epoch in range(3):
        rows = order.positions((epoch * 500 + np.arange(500, dtype=np.int64)) * 10).tolist()
        places = [at for at, row in enumerate(rows) if row in ten]
        assert len(places) == 10
        assert max(places) - min(places) > 150


@pytest.mark.parametrize(("n_tokens", "seq_len", "kept"), DRAWS)
def test_the_uses_of_a_slot_of_a_draw_are_where_it_is_used(n_tokens: int, seq_len: int, kept: int):
    order = Order(drawn(n_tokens, seq_len, kept), seed=3)
    found = {
        (consumed + i, offset + i)
        for epoch in range(3)
        for consumed, offset, length in order.uses(0, epoch, 0, n_tokens)
        for i in range(length)
    }
    positions = order.positions(np.arange(3 * kept * seq_len, dtype=np.int64))
    assert found == set(enumerate(positions.tolist()))
    parts = [
        (consumed, start + offset, length)
        for start in range(0, n_tokens, 17)
        for consumed, offset, length in order.uses(0, 1, start, min(17, n_tokens - start))
    ]
    assert sum(length for _, _, length in parts) == kept * seq_len
    for consumed, slot, length in parts:
        assert positions[consumed : consumed + length].tolist() == list(range(slot, slot + length))


def test_a_draw_from_a_trillion_needs_no_table():
    order = Order((Stretch(0, 0, 2048, epoch_slots=10**6 * 2048, drawn_from=10**12 // 2048),), seed=1)
    consumed = np.arange(3 * 10**6, 3 * 10**6 + 1000, dtype=np.int64) * 2048
    positions = order.positions(consumed)
    assert len(np.unique(positions)) == 1000
    assert positions.max() > 10**11
    (use,) = order.uses(0, 3, int(positions[7]), 2048)
    assert use == (int(consumed[7]), 0, 2048)

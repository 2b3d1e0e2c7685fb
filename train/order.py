"""How much of a source is consumed → where in it the next predictions lie, and back: computed, never stored.

A source is an endless stream of slots, its epochs one after the other; a slot holds one prediction. The stream is cut
into blocks of one row's length, and the blocks that begin inside one epoch are visited in an order drawn anew for each
epoch: a keyed permutation (a Feistel network). Where an epoch is not a whole number of blocks, its last block runs into
the next epoch's beginning. So when all blocks that begin in an epoch are consumed, the count of slots consumed equals
the slot number that the next block begins at, and a source's whole state is that one count.

When the row length changes, the epoch in hand is finished in its old blocks (rows of the new length are cut from their
sequence), and from its end on a new `Stretch` has blocks of the new length: nothing is repeated, nothing dropped.

An epoch may also be a *draw*: some of the source's whole blocks, the same ones in every epoch, chosen by a permutation
of their own.
"""

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
_ROUNDS = 6


@dataclass(frozen=True)
class Stretch:
    """A part of a source's consumption with one block length; it begins and ends between epochs."""

    begins: int
    """slots consumed before it"""
    shift: int
    """slot number in the endless stream = slots consumed - shift (0 unless the size of an epoch has changed)"""
    block: int
    """slots of one block"""
    epoch_slots: int
    drawn_from: int | None = None
    """the source's whole blocks, of which the epoch's are drawn; None where an epoch is all of the source"""

    @property
    def first_slot(self) -> int:
        return self.begins - self.shift

    @property
    def source_slots(self) -> int:
        """Positions are below this."""
        return self.epoch_slots if self.drawn_from is None else self.drawn_from * self.block

    def first_block(self, epoch: int) -> int:
        """The first block, counted from the stretch's own beginning, that begins in this epoch or later."""
        return max(0, -(-(epoch * self.epoch_slots - self.first_slot) // self.block))

    def epoch_end(self, consumed: int) -> tuple[int, int]:
        """(count, epoch): the next moment from `consumed` on at which all blocks before `epoch` are consumed."""
        epoch = (consumed - self.shift) // self.epoch_slots
        while (end := self.begins + self.first_block(epoch) * self.block) < consumed:
            epoch += 1
        return end, epoch


def changed(stretches: Sequence[Stretch], consumed: int, *, block: int, epoch_slots: int) -> tuple[Stretch, ...]:
    """The stretches of a source of which `consumed` slots were used and whose rows now are `block` long. A change that
    was still to come is given up for this one."""
    kept = [stretch for stretch in stretches if stretch.begins <= consumed]
    last = kept[-1]
    if (last.block, last.epoch_slots) == (block, epoch_slots):
        return tuple(kept)
    end, epoch = last.epoch_end(consumed)
    new = Stretch(end, last.shift - epoch * (epoch_slots - last.epoch_slots), block, epoch_slots)
    return (*(stretch for stretch in kept if stretch.begins < end), new)


class Order:
    """The order in which one source's slots are consumed."""

    def __init__(self, stretches: Sequence[Stretch], seed: int, ordinal: int = 0):
        """ordinal: which of a run's sources; each has an order of its own."""
        self.stretches = tuple(stretches)
        self._seed, self._ordinal = seed, ordinal
        self._begins = [stretch.begins for stretch in self.stretches]
        self._draw_key = key_of(f"{seed}/draw/{ordinal}")

    def runs(self, consumed: Int64Array, count: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """The next `count` slots after each of the given counts, as runs of neighbours.

        Returns (row, position, length) of each run, in order: `row` indexes `consumed`, `position` is the slot of the
        source at which the run begins. A run may go over the end of the epoch, round to its beginning.
        """
        cuts: list[int] = []
        rows: list[int] = []
        lengths: list[int] = []
        for row, at in enumerate(consumed.tolist()):
            end = at + count
            while at < end:
                stop = min(end, self._next_border(at))
                rows.append(row)
                cuts.append(at)
                lengths.append(stop - at)
                at = stop
        return np.array(rows, np.int64), self.positions(np.array(cuts, np.int64)), np.array(lengths, np.int64)

    def positions(self, consumed: Int64Array) -> Int64Array:
        """The slot of the source that is used when `consumed` slots were used before it."""
        out = np.empty_like(consumed)
        of_stretch = np.searchsorted(self._begins, consumed, side="right") - 1
        for i in np.unique(of_stretch):
            inside = of_stretch == i
            out[inside] = self._positions(self.stretches[i], consumed[inside])
        return out

    def uses(self, stretch_number: int, epoch: int, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Where slots start ... start + count - 1 of the source are used in one epoch of one stretch, run by run:
        (slots consumed before, slots from `start` to the run, length). The inverse of `positions`."""
        for slot, skipped, length in self._in_epoch(self.stretches[stretch_number], start, count):
            for consumed, offset, run in self._uses(stretch_number, epoch, slot, length):
                yield consumed, skipped + offset, run

    def _uses(self, stretch_number: int, epoch: int, slot: int, count: int) -> Iterator[tuple[int, int, int]]:
        stretch = self.stretches[stretch_number]
        first = epoch * stretch.epoch_slots + slot
        end = self._begins[stretch_number + 1] - stretch.shift if stretch_number + 1 < len(self._begins) else None
        at, stop = max(first, stretch.first_slot), min(first + count, first + count if end is None else end)
        while at < stop:
            border = min(stop, at + stretch.block - (at - stretch.first_slot) % stretch.block)
            yield int(self._consumed(stretch, np.array([at], np.int64))[0]), at - first, border - at
            at = border

    def epochs(self, consumed: int) -> float:
        """How often the source was gone through."""
        stretch = self._at(consumed)
        return (consumed - stretch.shift) / stretch.epoch_slots

    def block_at(self, consumed: int) -> int:
        """Slots of the block that is in use at this point."""
        return self._at(consumed).block

    def _at(self, consumed: int) -> Stretch:
        return self.stretches[bisect.bisect_right(self._begins, consumed) - 1]

    def _next_border(self, consumed: int) -> int:
        stretch = self._at(consumed)
        return consumed + stretch.block - (consumed - stretch.begins) % stretch.block

    def _positions(self, stretch: Stretch, consumed: Int64Array) -> Int64Array:
        blocks, offsets = np.divmod(consumed - stretch.begins, stretch.block)
        epochs = (stretch.first_slot + blocks * stretch.block) // stretch.epoch_slots
        for epoch in np.unique(epochs).tolist():
            inside = epochs == epoch
            first, size, key = self._epoch(stretch, epoch)
            blocks[inside] = permute(blocks[inside] - first, size, key) + first
        return self._of_source(stretch, (stretch.first_slot + blocks * stretch.block + offsets) % stretch.epoch_slots)

    def _of_source(self, stretch: Stretch, slots: Int64Array) -> Int64Array:
        """Slots of an epoch → of the source. Block i of a draw is image i of a permutation of the source's blocks that
        no epoch changes: so a smaller draw is contained in a larger one."""
        if stretch.drawn_from is None:
            return slots
        blocks, offsets = np.divmod(slots, stretch.block)
        return permute(blocks, stretch.drawn_from, self._draw_key) * stretch.block + offsets

    def _in_epoch(self, stretch: Stretch, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """The inverse: of slots start ... start + count - 1 of the source, those that an epoch has, run by run: (slot
        of the epoch, slots from `start` to the run, length)."""
        if stretch.drawn_from is None:
            yield start, 0, count
            return
        size, stop = stretch.block, min(start + count, stretch.drawn_from * stretch.block)
        blocks = np.arange(start // size, -(-stop // size), dtype=np.int64)
        for block, drawn in zip(blocks.tolist(), unpermute(blocks, stretch.drawn_from, self._draw_key), strict=True):
            at, end = max(start, block * size), min(stop, (block + 1) * size)
            if drawn * size < stretch.epoch_slots:
                yield int(drawn) * size + at - block * size, at - start, end - at

    def _consumed(self, stretch: Stretch, slots: Int64Array) -> Int64Array:
        blocks, offsets = np.divmod(slots - stretch.first_slot, stretch.block)
        epochs = (stretch.first_slot + blocks * stretch.block) // stretch.epoch_slots
        for epoch in np.unique(epochs).tolist():
            inside = epochs == epoch
            first, size, key = self._epoch(stretch, epoch)
            blocks[inside] = unpermute(blocks[inside] - first, size, key) + first
        return stretch.begins + blocks * stretch.block + offsets

    def _epoch(self, stretch: Stretch, epoch: int) -> tuple[int, int, tuple[int, ...]]:
        """(first block, number of blocks, key) of an epoch."""
        first = stretch.first_block(epoch)
        return first, stretch.first_block(epoch + 1) - first, order_key(self._seed, epoch, self._ordinal)


def permute(indices: Int64Array, size: int, key: Sequence[int]) -> Int64Array:
    """The images of `indices` under a permutation of range(size) that `key` chooses.

    A balanced Feistel network on the next even number of bits (Luby and Rackoff 1988), applied again to every image
    that falls outside (cycle walking; Black and Rogaway 2002): at most four applications are needed on average.
    """
    return _walk(_feistel, indices, size, key)


def unpermute(images: Int64Array, size: int, key: Sequence[int]) -> Int64Array:
    """The inverse of `permute`."""
    return _walk(_inverse_feistel, images, size, key)


def _walk(network, values: Int64Array, size: int, key: Sequence[int]) -> Int64Array:
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    images = network(values.astype(np.uint64), half_bits, key)
    while (outside := images >= size).any():
        images[outside] = network(images[outside], half_bits, key)
    return images.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, key: Sequence[int]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in key:
        left, right = right, left ^ (_mix(right ^ np.uint64(round_key)) & mask)
    return left << shift | right


def _inverse_feistel(values: NDArray[np.uint64], half_bits: int, key: Sequence[int]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in reversed(key):
        left, right = right ^ (_mix(left ^ np.uint64(round_key)) & mask), left
    return left << shift | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each input bit reaches each output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def order_key(seed: int, epoch: int, ordinal: int = 0) -> tuple[int, ...]:
    return key_of(f"{seed}/{epoch}/{ordinal}" if ordinal else f"{seed}/{epoch}")


def key_of(text: str) -> tuple[int, ...]:
    digest = hashlib.sha512(text.encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))

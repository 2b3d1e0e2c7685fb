"""Step number → token rows, as a pure function of (dataset, seed, sequence number): the loader's whole state is the
step.

The train split is read as one endless stream: all shards in manifest order, again and again. Sequence g, counted over
the whole run, predicts the T tokens that follow position g·T of that stream, and reads T + 1 ids: every border id is
shared with the next sequence, and the end of an epoch runs into its beginning, so no prediction is ever lost. The
sequences that start inside one epoch are visited in an order drawn anew for each epoch: a keyed permutation (a Feistel
network) that is computed, not stored. Start-up therefore does not depend on the size of the corpus, and neither the
number of ranks, nor the micro-batch, nor a restart changes which sequences a step contains.

Shapes: B micro_batch_size, T seq_len.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.files import DataError
from data_prep.manifest import Manifest
from data_prep.shards import ShardReader
from model.loss import IGNORED_TARGET
from train.batch import BatchPlan

Int64Array = NDArray[np.int64]
_ROUNDS = 6


class TokenStream:
    """The tokens of one split as one long array, read through memory maps that are opened on first use."""

    def __init__(self, folder: Path, manifest: Manifest, split: str):
        shards = [shard for shard in manifest.shards_of(split) if shard.tokens]
        self._paths = [folder / shard.name for shard in shards]
        self._readers: dict[int, ShardReader] = {}
        self._ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self.n_tokens = int(self._ends[-1]) if shards else 0

    def read(self, start: int, count: int) -> Int64Array:
        """`count` ids from position `start` on; past the end it goes on at the beginning."""
        out = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            position = (start + filled) % self.n_tokens
            shard = int(np.searchsorted(self._ends, position, side="right"))
            first = int(self._ends[shard - 1]) if shard else 0
            taken = min(count - filled, int(self._ends[shard]) - position)
            out[filled : filled + taken] = self._reader(shard).tokens(position - first, position - first + taken)
            filled += taken
        return out

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._readers:
            self._readers[shard] = ShardReader(self._paths[shard])
        return self._readers[shard]


class TrainBatches:
    """The rows that one data-parallel rank trains on, for any step, in any order of asking."""

    def __init__(self, stream: TokenStream, plan: BatchPlan, seed: int, dp_rank: int):
        if stream.n_tokens < plan.seq_len + 1:
            raise DataError(
                f"the train split holds {stream.n_tokens} tokens; one sequence needs data.seq_len + 1 = "
                f"{plan.seq_len + 1}. Prepare more text, or lower data.seq_len."
            )
        self._stream, self._plan, self._seed, self._dp_rank = stream, plan, seed, dp_rank

    def micro_batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(tokens, targets) of each forward of the step that follows `step` completed ones; each (B, T) int64."""
        first = step * self._plan.global_batch_size + self._dp_rank * self._plan.sequences_per_rank
        starts = sequence_starts(
            np.arange(first, first + self._plan.sequences_per_rank, dtype=np.int64),
            n_tokens=self._stream.n_tokens,
            seq_len=self._plan.seq_len,
            seed=self._seed,
        )
        size = self._plan.micro_batch_size
        for i in range(0, len(starts), size):
            rows = np.stack([self._stream.read(int(start), self._plan.seq_len + 1) for start in starts[i : i + size]])
            ids = torch.from_numpy(rows)
            yield ids[:, :-1], ids[:, 1:]


def sequence_starts(sequences: Int64Array, *, n_tokens: int, seq_len: int, seed: int) -> Int64Array:
    """Where in the split each of these sequences begins. `sequences` count from the start of the run, over all
    epochs.
    """
    starts = np.empty_like(sequences)
    epochs = sequences * seq_len // n_tokens
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        first = -(-int(epoch) * n_tokens // seq_len)  # the first sequence that begins in this epoch
        after = -(-(int(epoch) + 1) * n_tokens // seq_len)
        shuffled = permute(sequences[inside] - first, after - first, _key(seed, int(epoch)))
        starts[inside] = (shuffled + first) * seq_len - int(epoch) * n_tokens
    return starts


def permute(indices: Int64Array, size: int, key: Sequence[int]) -> Int64Array:
    """The images of `indices` under a permutation of range(size) that `key` chooses.

    A balanced Feistel network on the next even number of bits (Luby and Rackoff 1988), applied again to every image
    that falls outside (cycle walking; Black and Rogaway 2002): at most four applications are needed on average.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    images = _feistel(indices.astype(np.uint64), half_bits, key)
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], half_bits, key)
    return images.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, key: Sequence[int]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in key:
        left, right = right, left ^ (_mix(right ^ np.uint64(round_key)) & mask)
    return left << shift | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each input bit reaches each output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.sha512(f"{seed}/{epoch}".encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))


class ValidationBatches:
    """The first `max_sequences` rows of the val split, the same ones each time, in order; the last may be short.

    Positions without a target are IGNORED_TARGET; every rank gets the same number of batches (ZeRO-3 needs that), some
    possibly without any target.
    """

    def __init__(self, stream: TokenStream, *, seq_len: int, max_sequences: int, batch_size: int, dp_size: int):
        if stream.n_tokens < 2:
            raise DataError("the val split holds no prediction; prepare the data with a larger val_fraction")
        self._stream, self._seq_len = stream, seq_len
        self._batch_size, self._dp_size = batch_size, dp_size
        self.n_sequences = min(max_sequences, -(-(stream.n_tokens - 1) // seq_len))

    def batches(self, dp_rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(tokens, targets), each (B, T) int64, for this rank; rows are dealt round the ranks."""
        rows_per_rank = -(-self.n_sequences // self._dp_size)
        n_batches = -(-rows_per_rank // self._batch_size)
        mine = list(range(dp_rank, self.n_sequences, self._dp_size))
        for i in range(n_batches):
            rows = mine[i * self._batch_size : (i + 1) * self._batch_size]
            pairs = [self._row(row) for row in rows] or [self._no_row()]
            yield torch.stack([tokens for tokens, _ in pairs]), torch.stack([targets for _, targets in pairs])

    def _row(self, row: int) -> tuple[Tensor, Tensor]:
        start = row * self._seq_len
        ids = torch.from_numpy(self._stream.read(start, min(self._seq_len + 1, self._stream.n_tokens - start)))
        tokens, targets = self._no_row()
        tokens[: len(ids) - 1], targets[: len(ids) - 1] = ids[:-1], ids[1:]
        return tokens, targets

    def _no_row(self) -> tuple[Tensor, Tensor]:
        shape = (self._seq_len,)
        return torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED_TARGET, dtype=torch.int64)

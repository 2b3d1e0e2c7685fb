"""Step number → token rows, as a pure function of (datasets, seed, step): the loader's whole state is the step and the
phases of the run (`train/lineage.py`), a few integers.

Sample g of a phase is row g of its batches in turn; `train/rows.py` says which pieces of which documents it holds, and
here they are read. Neither the number of ranks, nor the micro-batch, nor a restart changes which rows a step contains.

With document masking each row also has *segments*: a number for each position, equal inside one document. Attention
stays inside a segment, and the last position of a document has no target. Rotary positions need no reset: attention
depends on the distance of two positions only, and inside a segment that is the same wherever it begins.

Shapes: B micro_batch_size, T seq_len.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from data_prep.files import DataError
from train.account import Account, account_of
from train.batch import BatchPlan
from train.filling import empty, fill, filled
from train.order import Int64Array
from train.rows import PADDING, PhaseRows
from train.stream import TokenStream

Batch = tuple[Tensor, ...]
"""(tokens, targets), each (B, T) int64, and with document masking (B, T) int32 segments"""


class TrainBatches:
    """The rows that one data-parallel rank trains on, for any step of the phase, in any order of asking."""

    def __init__(self, rows: PhaseRows, plan: BatchPlan, dp_rank: int):
        self._rows, self._plan, self._dp_rank = rows, plan, dp_rank

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """The batch of each forward of the step that follows `step` completed ones."""
        rows = self._rows.pieces(self._samples(step))
        size = self._plan.micro_batch_size
        for i in range(0, len(rows), size):
            yield tuple(torch.from_numpy(part) for part in filled(self._rows, rows[i : i + size]))

    def account(self, step: int, window: int | None, n_sources: int) -> Account:
        """Of the same rows (see `account_of`)."""
        return account_of(self._rows, self._samples(step), window, n_sources)

    def documents(self, step: int, row: int) -> list[str]:
        """SHARD:NUMBER of each document in a row of the step that follows `step` completed ones."""
        sample = self._rows.phase.first_sample(step) + row
        ((source, pieces),) = self._rows.pieces(np.array([sample], dtype=np.int64))
        stream = self._rows.stream(source)
        return [
            f"{passage.shard}:{passage.document}"
            for position, pairs in pieces
            if position != PADDING
            for passage in stream.passages(position, pairs)
        ]

    def _samples(self, step: int) -> Int64Array:
        """Numbers, in the phase, of this rank's rows."""
        first = self._rows.phase.first_sample(step) + self._dp_rank * self._plan.sequences_per_rank
        return np.arange(first, first + self._plan.sequences_per_rank, dtype=np.int64)


class ValidationBatches:
    """The first rows of the val splits, the same ones each time, in order; `max_sequences` in all, dealt out evenly to
    the sources. The last row of a split may be short.

    Positions without a target are IGNORED_TARGET; every rank gets the same number of batches (ZeRO-3 needs that), some
    possibly without any target.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        *,
        seq_len: int,
        max_sequences: int,
        batch_size: int,
        dp_size: int,
        mask_documents: bool = False,
    ):
        with_rows = [(i, stream) for i, stream in enumerate(streams) if stream.n_tokens >= 2]
        self._sources, self._streams = [i for i, _ in with_rows], [stream for _, stream in with_rows]
        if not self._streams:
            raise DataError(
                "the val split holds no prediction: prepare the data with a larger val_fraction or, where they were "
                "imported, import them anew with some files held out (peer.val=[GLOB])"
            )
        self._seq_len, self._batch_size, self._dp_size, self._mask = seq_len, batch_size, dp_size, mask_documents
        self._rows = _dealt([-(-(stream.n_tokens - 1) // seq_len) for stream in self._streams], max_sequences)

    @property
    def n_sequences(self) -> int:
        return len(self._rows)

    def batches(self, dp_rank: int) -> Iterator[Batch]:
        """This rank's batches; rows are dealt round the ranks."""
        for rows in self._dealt_out(dp_rank):
            batch = empty(len(rows), self._seq_len, self._mask)
            for at, (source, row) in enumerate(rows):
                stream = self._streams[source]
                start = 0 if row is None else row * self._seq_len
                pairs = 0 if row is None else min(self._seq_len, stream.n_tokens - 1 - start)
                rest = [(PADDING, self._seq_len - pairs)] if pairs < self._seq_len else []
                fill([part[at] for part in batch], stream, [(start, pairs), *rest] if pairs else rest, self._mask)
            yield tuple(torch.from_numpy(part) for part in batch)

    def sources(self, dp_rank: int) -> list[list[int]]:
        """Of each row of each of this rank's batches, counted as the streams were given."""
        return [[self._sources[source] for source, _ in rows] for rows in self._dealt_out(dp_rank)]

    def _dealt_out(self, dp_rank: int) -> list[list[tuple[int, int | None]]]:
        """(stream, row) of each row of each of this rank's batches; a batch has one at least, if only an empty one."""
        rows_per_rank = -(-self.n_sequences // self._dp_size)
        mine, size = self._rows[dp_rank :: self._dp_size], self._batch_size
        return [list(mine[i * size : (i + 1) * size]) or [(0, None)] for i in range(-(-rows_per_rank // size))]


def _dealt(available: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """(source, row): the first rows of each source in turn, until there are `wanted` or no more."""
    found: list[tuple[int, int]] = []
    for row in range(max(available)):
        found += [(source, row) for source, n in enumerate(available) if row < n]
        if len(found) >= wanted:
            break
    return found[:wanted]

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
from train.batch import BatchPlan
from train.filling import empty, fill, filled
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
        first = self._rows.phase.first_sample(step) + self._dp_rank * self._plan.sequences_per_rank
        rows = self._rows.pieces(np.arange(first, first + self._plan.sequences_per_rank, dtype=np.int64))
        size = self._plan.micro_batch_size
        for i in range(0, len(rows), size):
            yield tuple(torch.from_numpy(part) for part in filled(self._rows, rows[i : i + size]))

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
        self._streams = [stream for stream in streams if stream.n_tokens >= 2]
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
        rows_per_rank = -(-self.n_sequences // self._dp_size)
        n_batches = -(-rows_per_rank // self._batch_size)
        mine = self._rows[dp_rank :: self._dp_size]
        for i in range(n_batches):
            rows = mine[i * self._batch_size : (i + 1) * self._batch_size]
            batch = empty(max(1, len(rows)), self._seq_len, self._mask)
            for at, (source, row) in enumerate(rows or [(0, None)]):
                stream = self._streams[source]
                start = 0 if row is None else row * self._seq_len
                pairs = 0 if row is None else min(self._seq_len, stream.n_tokens - 1 - start)
                rest = [(PADDING, self._seq_len - pairs)] if pairs < self._seq_len else []
                fill([part[at] for part in batch], stream, [(start, pairs), *rest] if pairs else rest, self._mask)
            yield tuple(torch.from_numpy(part) for part in batch)


def _dealt(available: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """(source, row): the first rows of each source in turn, until there are `wanted` or no more."""
    found: list[tuple[int, int]] = []
    for row in range(max(available)):
        found += [(source, row) for source, n in enumerate(available) if row < n]
        if len(found) >= wanted:
            break
    return found[:wanted]

"""Pieces of documents → the numbers of rows: tokens, targets and segments, read from the shards. No torch, so that what
a run was fed can be looked at without one (`train/audit.py`).

Shapes: B rows, T seq_len.
"""

from collections.abc import Sequence

import numpy as np

from model.config import IGNORED_TARGET
from train.data_config import Packing
from train.rows import PADDING, PhaseRows, Pieces
from train.stream import Int64Array, TokenStream


def filled(rows: PhaseRows, located: Sequence[tuple[int, Pieces]]) -> list[Int64Array]:
    """[tokens, targets], each (B, T) int64, and with document masking (B, T) int32 segments, of rows of a phase that
    `rows.pieces` has located."""
    phase = rows.phase
    look_inside = phase.mask_documents and phase.packing == Packing.concat
    batch = empty(len(located), phase.seq_len, phase.mask_documents)
    for row, (source, pieces) in enumerate(located):
        fill([part[row] for part in batch], rows.stream(source), pieces, look_inside)
    return batch


def fill(row: Sequence[Int64Array], stream: TokenStream, pieces: Pieces, look_inside: bool) -> None:
    """Reads a row's pieces into (tokens, targets) or (tokens, targets, segments), each (T,).

    look_inside: documents may end inside a piece, so boundaries are looked up.
    """
    tokens, targets = row[:2]
    segments = row[2] if len(row) > 2 else None
    at = segment = 0
    for position, pairs in pieces:
        end = at + pairs
        if position == PADDING:
            tokens[at:end], targets[at:end] = 0, IGNORED_TARGET
        else:
            ids = stream.read(position, pairs + 1)
            tokens[at:end], targets[at:end] = ids[:-1], ids[1:]
        if segments is not None:
            segments[at:end] = segment
            if look_inside and position != PADDING:
                starts = stream.document_starts(position, pairs + 1)
                starts = starts[starts > 0]
                targets[at + starts - 1] = IGNORED_TARGET
                for start in starts.tolist():
                    segment += 1
                    segments[at + start : end] = segment
            segment += 1
        at = end


def empty(n_rows: int, seq_len: int, with_segments: bool) -> list[Int64Array]:
    shape = (n_rows, seq_len)
    parts = [np.empty(shape, np.int64), np.empty(shape, np.int64)]
    return [*parts, np.empty(shape, np.int32)] if with_segments else parts  # type: ignore[list-item]

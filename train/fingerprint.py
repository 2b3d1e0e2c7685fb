"""One number for all ids and targets of a step, to prove that two runs saw the same data.

Each row gives 64 bits from its ids, its targets and its place in the global batch; the batch's number is their sum
modulo 2^64. So it does not depend on how rows are dealt out to ranks and micro-batches, and ranks may add up in any
order: the sum travels as four pieces of 16 bits, which no sum over ranks can overflow.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_MODULUS = 1 << 64


def fingerprint(batches: Iterable[Sequence[Any]], first_row: int) -> int:
    """Of this rank's (tokens, targets, ...) micro-batches, whose first row is row `first_row` of the global batch. They
    are arrays, or tensors of the host."""
    total, row = 0, first_row
    for tokens, targets, *_ in batches:
        for ids, following in zip(np.asarray(tokens), np.asarray(targets), strict=True):
            content = np.concatenate([ids, following]).astype("<i4").tobytes()
            digest = hashlib.blake2b(content, digest_size=8, salt=row.to_bytes(8, "little")).digest()
            total += int.from_bytes(digest, "little")
            row += 1
    return total % _MODULUS


def pieces_of(number: int) -> list[int]:
    return [number >> shift & 0xFFFF for shift in (0, 16, 32, 48)]


def from_pieces(pieces: Iterable[int]) -> str:
    """16 hex digits from the pieces, each summed over ranks."""
    return f"{sum(piece << shift for piece, shift in zip(pieces, (0, 16, 32, 48), strict=True)) % _MODULUS:016x}"

"""Indexes of any length, block by block: our .idx read without holding it, and written from a row of document ends.

A row of ends is an int64 array (documents,), usually mapped from a file: the token position after each document.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data_prep.files import DataError
from data_prep.shards import DTYPE_CODES, HEADER, MAGIC, Sidecar, file_of

BLOCK_DOCUMENTS = 1 << 18
Ends = npt.NDArray[np.int64]


class Index:
    """The .idx of one of our shards, mapped: `lengths` (documents,) in tokens, `offsets` (documents,) in bytes."""

    def __init__(self, stem: Path, sidecar: Sidecar):
        """Raises DataError when the file is missing or is not the index of this shard."""
        file = file_of(stem, ".idx")
        self.documents, self.tokens = sidecar.documents, sidecar.tokens
        self.itemsize = np.dtype(sidecar.dtype).itemsize
        try:
            with file.open("rb") as stream:
                head = stream.read(HEADER.size)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from error
        if head != HEADER.pack(MAGIC, 1, DTYPE_CODES[sidecar.dtype], self.documents, self.documents + 1):
            raise DataError(f"{file} does not describe {file_of(stem, '.bin').name}: it was altered or exchanged")
        self.lengths: npt.NDArray[np.int32] = mapped(file, "<i4", HEADER.size, self.documents)
        self.offsets: Ends = mapped(file, "<i8", HEADER.size + 4 * self.documents, self.documents)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """(number of the first document, lengths (n,)) of consecutive documents."""
        for first in range(0, self.documents, BLOCK_DOCUMENTS):
            yield first, np.asarray(self.lengths[first : first + BLOCK_DOCUMENTS])

    def end_blocks(self) -> Iterator[Ends]:
        """Token positions after consecutive documents, (n,)."""
        total = 0
        for _, lengths in self.blocks():
            ends = total + np.cumsum(lengths, dtype=np.int64)
            total = int(ends[-1])
            yield ends
        if total != self.tokens:
            raise DataError(f"an index adds up to {total} tokens where its sidecar says {self.tokens}")

    def bounds(self, document: int) -> tuple[int, int]:
        """Token positions [start, stop) of one document."""
        start = int(self.offsets[document]) // self.itemsize
        return start, start + int(self.lengths[document])

    def document_at(self, position: int) -> int:
        """The document that holds the token at `position`; a binary search in the file."""
        return int(np.searchsorted(self.offsets, np.int64(position * self.itemsize), side="right")) - 1


def mapped(file: Path, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
    """Read-only view (count,) of a part of a file; an empty part cannot be mapped."""
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=(count,)) if count else np.empty(0, dtype)


def write_megatron_index(stream: IO[bytes], ends: Ends, dtype: str) -> str:
    """Writes the .idx for one sequence per document; returns its SHA-256. Memory: one block."""
    sha256 = hashlib.sha256()

    def put(content: bytes) -> None:
        stream.write(content)
        sha256.update(content)

    n, itemsize = len(ends), np.dtype(dtype).itemsize
    put(HEADER.pack(MAGIC, 1, DTYPE_CODES[dtype], n, n + 1))
    for block, before in _blocks_with_starts(ends):
        put((block - before).astype("<i4").tobytes())
    for _, before in _blocks_with_starts(ends):
        put((before * itemsize).astype("<i8").tobytes())
    for first in range(0, n + 1, BLOCK_DOCUMENTS):
        put(np.arange(first, min(n + 1, first + BLOCK_DOCUMENTS), dtype="<i8").tobytes())
    return sha256.hexdigest()


def _blocks_with_starts(ends: Ends) -> Iterator[tuple[Ends, Ends]]:
    """(ends, starts) of consecutive documents."""
    start = np.zeros(1, np.int64)
    for first in range(0, len(ends), BLOCK_DOCUMENTS):
        block = np.asarray(ends[first : first + BLOCK_DOCUMENTS])
        yield block, np.concatenate([start, block[:-1]])
        start = block[-1:]

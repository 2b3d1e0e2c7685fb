"""Indexes of any length, block by block: our .idx read without holding it, and written from a row of document ends.

Files are read, not mapped: mapped pages would count as memory of the process, which is to stay flat.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data_prep.blocks import BlockSums
from data_prep.files import DataError
from data_prep.shards import DTYPE_CODES, HEADER, MAGIC, Sidecar, file_of

BLOCK_DOCUMENTS = 1 << 18


class Row:
    """A row of integers in a file: `row[i]` is an int, `row[i:j]` an array, and bisect can search it."""

    def __init__(self, stream: IO[bytes], dtype: str, offset: int, count: int):
        self._stream, self._dtype, self._offset, self._count = stream, np.dtype(dtype), offset, count

    @staticmethod
    def of(file: Path, dtype: str, offset: int, count: int) -> "Row":
        """Raises DataError when the file cannot be opened."""
        try:
            return Row(file.open("rb"), dtype, offset, count)
        except OSError as error:
            raise DataError(f"{file} is missing or out of reach: {error.strerror}") from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        start, stop, _ = place.indices(self._count) if isinstance(place, slice) else (place, place + 1, 1)
        if not 0 <= start <= self._count or stop > self._count:
            raise IndexError(f"{place} of {self._count}")
        n, size = max(0, stop - start), self._dtype.itemsize
        row = np.frombuffer(os.pread(self._stream.fileno(), n * size, self._offset + start * size), self._dtype)
        return row if isinstance(place, slice) else int(row[0])

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """(place of the first, consecutive numbers) of the whole row."""
        for first in range(0, self._count, BLOCK_DOCUMENTS):
            yield first, self[first : first + BLOCK_DOCUMENTS]


class Index:
    """The .idx of one of our shards: `lengths` (documents,) in tokens, `offsets` (documents,) in bytes."""

    def __init__(self, stem: Path, sidecar: Sidecar):
        """Raises DataError when the file is missing or is not the index of this shard."""
        file = file_of(stem, ".idx")
        self.documents, self.tokens = sidecar.documents, sidecar.tokens
        self.itemsize = np.dtype(sidecar.dtype).itemsize
        self.lengths = Row.of(file, "<i4", HEADER.size, self.documents)
        self.offsets = Row.of(file, "<i8", HEADER.size + 4 * self.documents, self.documents)
        with file.open("rb") as stream:
            head = stream.read(HEADER.size)
        if head != HEADER.pack(MAGIC, 1, DTYPE_CODES[sidecar.dtype], self.documents, self.documents + 1):
            raise DataError(f"{file} does not describe {file_of(stem, '.bin').name}: it was altered or exchanged")

    def end_blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """Token positions after consecutive documents, (n,)."""
        total = 0
        for _, lengths in self.lengths.blocks():
            ends = total + np.cumsum(lengths, dtype=np.int64)
            total = int(ends[-1])
            yield ends
        if total != self.tokens:
            raise DataError(f"an index adds up to {total} tokens where its sidecar says {self.tokens}")

    def bounds(self, document: int) -> tuple[int, int]:
        """Token positions [start, stop) of one document."""
        start = self.offsets[document] // self.itemsize
        return start, start + self.lengths[document]

    def document_at(self, position: int) -> int:
        """The document that holds the token at `position`; a binary search in the file."""
        return bisect_right(self.offsets, position * self.itemsize) - 1


def ids_of(stem: Path, sidecar: Sidecar) -> Row:
    """All ids of a shard."""
    return Row.of(file_of(stem, ".bin"), np.dtype(sidecar.dtype).newbyteorder("<").str, 0, sidecar.tokens)


def write_megatron_index(stream: IO[bytes], ends: Row, dtype: str, sums: BlockSums) -> str:
    """Writes the .idx for one sequence per document, from the token positions after each; returns its SHA-256."""
    sha256 = hashlib.sha256()

    def put(content: bytes) -> None:
        stream.write(content)
        sha256.update(content)
        sums.update(content)

    n, itemsize = len(ends), np.dtype(dtype).itemsize
    put(HEADER.pack(MAGIC, 1, DTYPE_CODES[dtype], n, n + 1))
    for block, before in _blocks_with_starts(ends):
        put((block - before).astype("<i4").tobytes())
    for _, before in _blocks_with_starts(ends):
        put((before * itemsize).astype("<i8").tobytes())
    for first in range(0, n + 1, BLOCK_DOCUMENTS):
        put(np.arange(first, min(n + 1, first + BLOCK_DOCUMENTS), dtype="<i8").tobytes())
    return sha256.hexdigest()


def _blocks_with_starts(ends: Row) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(ends, starts) of consecutive documents."""
    start = np.zeros(1, np.int64)
    for _, block in ends.blocks():
        yield block, np.concatenate([start, block[:-1]])
        start = block[-1:]

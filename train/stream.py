"""The tokens of one split (or of one label inside it) as one long array, and where its documents begin.

Everything is read at the place where it is needed, from files that are opened on first use: start-up opens nothing, and
a bounded number of files is kept open, however many shards there are. Every block that a read touches is compared with
its checksum, each time: no altered id or boundary is ever given out. Boundaries of documents come from the shards'
indexes, by bisection; nothing is ever found by looking for an end-of-text id.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.blocks import BLOCK, BlockFiles, OpenFiles
from data_prep.files import DataError
from data_prep.manifest import Manifest, ShardEntry, sums_sha256
from data_prep.shards import BIN, DTYPE_CODES, HEADER, IDX, block_files

Int64Array = NDArray[np.int64]
_BLOCK = BLOCK // 8
"""index entries that are read at once"""

_FILES = OpenFiles()  # one for the process: the limit on descriptors is the process's too


@dataclass(frozen=True)
class Passage:
    """A part of one document."""

    shard: str
    document: int
    """its number in the shard"""
    first: int
    """tokens of the document before the passage"""
    tokens: int


class TokenStream:
    """Positions 0 ... n_tokens - 1 run through all shards of a split in the manifest's order."""

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, label: str | None = None, files: OpenFiles = _FILES
    ):
        self.shards = shards_of(manifest, split, label)
        self._folder, self._opened = Path(folder), files
        self._sums = sums_sha256(self._folder, manifest)
        self._files: dict[int, BlockFiles] = {}
        self._seen: tuple[int, int, Int64Array] = (-1, 0, np.empty(0, np.int64))  # shard, first, index entries
        self._dtypes = [_dtype_of(self._folder, shard) for shard in self.shards]
        self._ends = np.cumsum([shard.tokens for shard in self.shards], dtype=np.int64)
        self._end_list: list[int] = self._ends.tolist()
        self.n_tokens = self._end_list[-1] if self.shards else 0

    def read(self, start: int, count: int) -> Int64Array:
        """`count` ids from position `start` on; past the end it goes on at the beginning."""
        out = np.empty(count, dtype=np.int64)
        filled = 0
        for shard, first, taken in self._parts(start, count):
            dtype = self._dtypes[shard]
            content = self._bin(shard, taken * dtype.itemsize, first * dtype.itemsize)
            out[filled : filled + taken] = np.frombuffer(content, dtype=dtype)
            filled += taken
        return out

    def document_starts(self, start: int, count: int) -> Int64Array:
        """Offsets, 0 ... count - 1, from position `start` on at which a document begins."""
        found: list[Int64Array] = []
        offset = 0
        for shard, first, taken in self._parts(start, count):
            low = self._documents_before(shard, first)
            high = self._documents_before(shard, first + taken)
            if high > low:
                found.append(self._starts(shard, low, high) - first + offset)
            offset += taken
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def passages(self, start: int, count: int) -> Iterator[Passage]:
        """The documents that `count` tokens from position `start` on are of, in order."""
        for shard, first, taken in self._parts(start, count):
            low = self._documents_before(shard, first + 1) - 1
            high = self._documents_before(shard, first + taken)
            starts = self._starts(shard, low, high).tolist()
            ends = [*starts[1:], first + taken]
            for i, (begin, end) in enumerate(zip(starts, ends, strict=True)):
                inside = max(begin, first)
                yield Passage(self.shards[shard].name, low + i, inside - begin, end - inside)

    def document(self, shard_name: str, number: int) -> tuple[int, int]:
        """(position, tokens) of a document. Raises KeyError for an unknown shard, IndexError for a wrong number."""
        shard = next((i for i, entry in enumerate(self.shards) if entry.name == shard_name), None)
        if shard is None:
            raise KeyError(shard_name)
        entry = self.shards[shard]
        if not 0 <= number < entry.documents:
            raise IndexError(f"{shard_name} holds documents 0 ... {entry.documents - 1}; {number} is none of them")
        starts = self._starts(shard, number, min(number + 2, entry.documents)).tolist()
        end = starts[1] if len(starts) == 2 else entry.tokens
        return self._end_list[shard] - entry.tokens + starts[0], end - starts[0]

    def document_lengths(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """(position of the first, tokens of each) for the documents of one shard after the other."""
        for shard, entry in enumerate(self.shards):
            content = self._idx(shard, 4 * entry.documents, HEADER.size)
            yield self._end_list[shard] - entry.tokens, np.frombuffer(content, dtype="<i4")

    def _parts(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first token in it, tokens) of each stretch of neighbours on disk."""
        filled = 0
        while filled < count:
            position = (start + filled) % self.n_tokens
            shard = int(self._ends.searchsorted(position, side="right"))
            end = self._end_list[shard]
            taken = min(count - filled, end - position)
            yield shard, position - (end - self.shards[shard].tokens), taken
            filled += taken

    def _documents_before(self, shard: int, token: int) -> int:
        """How many of the shard's documents begin before this token. Looks at the entries that were read last, then
        where documents of like length would put it, then in the middle of what is left."""
        entry, at = self.shards[shard], token * self._dtypes[shard].itemsize
        low, high, guess = 0, entry.documents, token * entry.documents // entry.tokens
        seen, first, offsets = self._seen
        last = first + len(offsets) if seen == shard else first
        while True:
            if first < last:
                before = int(self._offsets(shard, first, last).searchsorted(at))
                if before == 0 and first > low:
                    high = first
                elif before == last - first and last < high:
                    low = last
                else:
                    return first + before
            if not low <= guess < high:
                guess = (low + high) // 2
            first = max(low, min(guess - _BLOCK // 2, high - _BLOCK))
            last = min(high, first + _BLOCK)

    def _starts(self, shard: int, low: int, high: int) -> Int64Array:
        """Token at which each of documents low ... high - 1 begins, in its shard."""
        return self._offsets(shard, low, high) // self._dtypes[shard].itemsize

    def _offsets(self, shard: int, low: int, high: int) -> Int64Array:
        """The same in bytes, as the index has it."""
        seen, first, offsets = self._seen
        if seen != shard or low < first or high > first + len(offsets):
            at = HEADER.size + 4 * self.shards[shard].documents + 8 * low
            first, offsets = low, np.frombuffer(self._idx(shard, 8 * (high - low), at), dtype="<i8")
            self._seen = shard, first, offsets
        return offsets[low - first : high - first]

    def _idx(self, shard: int, count: int, offset: int) -> memoryview:
        return self._file(shard).read(IDX, count, offset)

    def _bin(self, shard: int, count: int, offset: int) -> memoryview:
        return self._file(shard).read(BIN, count, offset)

    def _file(self, shard: int) -> BlockFiles:
        found = self._files.get(shard)
        if found is None:
            entry = self.shards[shard]
            stem, sizes = self._folder / entry.name, (entry.bin_bytes, entry.idx_bytes)
            found = self._files[shard] = block_files(stem, sizes, self._sums[entry.name], self._opened)
        return found


def shards_of(manifest: Manifest, split: str, label: str | None) -> list[ShardEntry]:
    """The shards of a split that hold tokens; only those of the source called `label` where one is given."""
    return list(manifest.shards_of(split, label))


def _dtype_of(folder: Path, shard: ShardEntry) -> np.dtype[np.integer]:
    """Of the ids in a shard: an import may hold shards of both widths. Raises DataError where its size fits neither."""
    for name in DTYPE_CODES:
        dtype = np.dtype(name)
        if shard.bin_bytes == shard.tokens * dtype.itemsize:
            return dtype.newbyteorder("<")
    raise DataError(
        f"{folder / shard.name}: {shard.tokens} tokens in {shard.bin_bytes} bytes, which are neither 2 nor 4 a token; "
        "the manifest is damaged. Make the dataset anew."
    )

"""The tokens of one split (or of one label inside it) as one long array, and where its documents begin.

Everything is read at the place where it is needed, with `pread` on a file that is opened on first use: start-up opens
nothing, and a bounded number of files is kept open, however many shards there are. Boundaries of documents come from
the shards' indexes, by bisection; nothing is ever found by looking for an end-of-text id.
"""

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.files import DataError
from data_prep.manifest import Manifest, ShardEntry
from data_prep.shards import DTYPE_CODES, HEADER, MAGIC, file_of

Int64Array = NDArray[np.int64]
_BLOCK = 512
"""index entries that are read at once"""


class OpenFiles:
    """Descriptors of files opened for reading, the least recently used one closed beyond `limit` (None: half of what
    the process may open), or when the process may open no more."""

    def __init__(self, limit: int | None = None):
        self._limit, self._open = limit or _allowed(), OrderedDict[Path, int]()

    def __len__(self) -> int:
        return len(self._open)

    def pread(self, file: Path, count: int, offset: int, check: Callable[[Path, int], None]) -> bytes:
        """Exactly `count` bytes. `check(file, descriptor)` is called when the file is opened. Raises DataError."""
        descriptor = self._open.get(file)
        if descriptor is None:
            descriptor = self._add(file, check)
        else:
            self._open.move_to_end(file)
        try:
            content = os.pread(descriptor, count, offset)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from error
        if len(content) != count:
            raise DataError(f"{file} ends before byte {offset + count}; it was truncated while in use")
        return content

    def _add(self, file: Path, check: Callable[[Path, int], None]) -> int:
        descriptor = self._opened(file)
        try:
            check(file, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._open[file] = descriptor
        if len(self._open) > self._limit:
            self._close_oldest()
        return descriptor

    def _opened(self, file: Path) -> int:
        while True:
            try:
                return os.open(file, os.O_RDONLY)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise DataError(f"cannot read {file}: {error.strerror}") from error
                self._close_oldest()

    def _close_oldest(self) -> None:
        os.close(self._open.popitem(last=False)[1])


def _allowed() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 2))


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
        self._folder, self._files = Path(folder), files
        self._dtypes = [_dtype_of(self._folder, shard) for shard in self.shards]
        self._bins = [file_of(self._folder / shard.name, ".bin") for shard in self.shards]
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
            high = self._documents_before(shard, first + taken, guess=low)
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

    def _documents_before(self, shard: int, token: int, guess: int | None = None) -> int:
        """How many of the shard's documents begin before this token. Looks around a guess first: documents of like
        length would put it there."""
        entry = self.shards[shard]
        low, high = 0, entry.documents
        guess = token * entry.documents // entry.tokens if guess is None else guess
        while True:
            first = max(low, min(guess - _BLOCK // 2, high - _BLOCK))
            last = min(high, first + _BLOCK)
            before = int(self._offsets(shard, first, last).searchsorted(token * self._dtypes[shard].itemsize))
            if before == 0 and first > low:
                high = first
            elif before == last - first and last < high:
                low = last
            else:
                return first + before
            guess = (low + high) // 2

    def _starts(self, shard: int, low: int, high: int) -> Int64Array:
        """Token at which each of documents low ... high - 1 begins, in its shard."""
        return self._offsets(shard, low, high) // self._dtypes[shard].itemsize

    def _offsets(self, shard: int, low: int, high: int) -> Int64Array:
        """The same in bytes, as the index has it."""
        at = HEADER.size + 4 * self.shards[shard].documents + 8 * low
        return np.frombuffer(self._idx(shard, 8 * (high - low), at), dtype="<i8")

    def _idx(self, shard: int, count: int, offset: int) -> bytes:
        entry = self.shards[shard]

        def check(file: Path, descriptor: int) -> None:
            code = DTYPE_CODES[self._dtypes[shard].name]
            expected = HEADER.pack(MAGIC, 1, code, entry.documents, entry.documents + 1)
            if os.pread(descriptor, HEADER.size, 0) != expected:
                raise DataError(f"{file} is not the index that the manifest tells of: altered or exchanged")

        return self._files.pread(file_of(self._folder / entry.name, ".idx"), count, offset, check)

    def _bin(self, shard: int, count: int, offset: int) -> bytes:
        def check(file: Path, descriptor: int) -> None:
            found, expected = os.fstat(descriptor).st_size, self.shards[shard].bin_bytes
            if found != expected:
                raise DataError(f"{file} has {found} bytes, the manifest tells of {expected}")

        return self._files.pread(self._bins[shard], count, offset, check)


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

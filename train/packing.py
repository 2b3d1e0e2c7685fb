"""Best-fit packing: whole documents into rows of T predictions, as few rows and as few cuts as possible.

In: a stream's document lengths and T. Out: a *pack*: which pieces of which documents each row holds, made once for a
(shards, T) and kept on disk, where any row is found by its number. After Ding et al., "Fewer Truncations Improve
Language Modeling" (arXiv 2404.10830): a document of n ids (its end-of-text id included) has n - 1 predictions; one
that is longer than T is cut into pieces of T predictions that share their border id, so none is lost; then pieces
go, the longest first, into the fullest row that still has room (best-fit decreasing). Documents are taken in windows of
WINDOW pieces in stream order, so memory stays flat. A document of one id predicts nothing and is in no row.

The pack's folder: `rows.bin` int64, pieces before each row (rows + 1); `starts.bin` int64, stream position of each
piece's first input; `pairs.bin` int32, its predictions; `windows.bin` int64 pairs (first stream position, first row);
`blocks.crc`, checksums of the blocks of these four, with which all that is read is compared; `pack.json` last: what
made it, counts and checksums.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data_prep.blocks import BlockFiles, BlockSums, OpenFiles, sha256_through, sums_bytes
from data_prep.files import DataError, publish_json, sha256_file, sync_folder, write_error
from data_prep.shards import size_problem
from train.stream import Int64Array, TokenStream

SCHEMA_VERSION = 2
WINDOW = 65_536
_WORD = 512
"""bits of one long integer: shifting one costs little up to some hundred bits, more with every further one"""
FILES = ("rows.bin", "starts.bin", "pairs.bin", "windows.bin")
_ROWS, _STARTS, _PAIRS, _WINDOWS = range(len(FILES))
_DTYPES = tuple(map(np.dtype, ("<i8", "<i8", "<i4", "<i8")))
SUMS = "blocks.crc"
HINT = " (data.pack_folder names another place)"
Int32Array = NDArray[np.int32]


@dataclass(frozen=True)
class PackFacts:
    """Content of pack.json."""

    schema_version: int
    source_digest: str
    seq_len: int
    window: int
    rows: int
    pieces: int
    pairs: int
    """predictions in all rows: tokens less documents"""
    windows: int
    sha256: dict[str, str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        counts = (self.rows + 1, self.pieces, self.pieces, 2 * self.windows)
        sizes = [n * dtype.itemsize for n, dtype in zip(counts, _DTYPES, strict=True)]
        return dict(zip(FILES, sizes, strict=True)) | {SUMS: sums_bytes(sizes)}

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a prediction."""
        return self.pairs / max(1, self.rows * self.seq_len)


def pack_folder(base: Path, source_digest: str, seq_len: int) -> Path:
    return base / f"{source_digest[:16]}-{seq_len}"


def identity(folder: Path) -> tuple[int, int] | None:
    """Of the pack that lies there now, whatever it holds: changes when it is made anew; None if there is none."""
    try:
        with (folder / "pack.json").open("rb") as stream:  # opening asks a network's server, where a look-up may be old
            state = os.fstat(stream.fileno())
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


class Pack:
    """A finished pack. Open it with `Pack.open`."""

    def __init__(self, folder: Path, facts: PackFacts):
        self.facts, self.identity = facts, identity(folder)
        sizes, opened = facts.sizes, OpenFiles(len(FILES) + 1)
        files = [(folder / name, sizes[name]) for name in FILES]
        self._files = BlockFiles(files, folder / SUMS, facts.sha256[SUMS], opened)

    @staticmethod
    def open(folder: Path, source_digest: str, seq_len: int, *, verify: bool) -> "Pack":
        """Checks that it belongs to these shards and that its files are whole; with `verify` every byte of them.

        Raises DataError; FileNotFoundError if there is no pack yet.
        """
        facts = _facts(folder / "pack.json")
        if (facts.source_digest, facts.seq_len) != (source_digest, seq_len):
            raise DataError(f"{folder} is a pack of other shards or of another data.seq_len. {_again(folder)}")
        for name, size in facts.sizes.items():
            if problem := size_problem(folder / name, size):
                raise DataError(f"{problem}. {_again(folder)}")
            if verify and sha256_file(folder / name) != facts.sha256[name]:
                raise DataError(f"{folder / name} was altered after it was written. {_again(folder)}")
        return Pack(folder, facts)

    @property
    def n_rows(self) -> int:
        return self.facts.rows

    def pieces(self, row: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(stream position, predictions) of the pieces in places start ... stop - 1 of a row; what is cut off at
        either end is left out, and so is the padding at the row's end."""
        first, last = self._numbers(_ROWS, row, row + 2).tolist()
        found: list[tuple[int, int]] = []
        place = 0
        starts, lengths = self._numbers(_STARTS, first, last), self._numbers(_PAIRS, first, last)
        for position, pairs in zip(starts.tolist(), lengths.tolist(), strict=True):
            low, high = max(start, place), min(stop, place + pairs)
            if low < high:
                found.append((position + low - place, high - low))
            place += pairs
        return found

    def places(self, position: int, pairs: int) -> Iterator[tuple[int, int, int]]:
        """(first input's stream position, slot, predictions) of each piece among `pairs` predictions from `position`
        on, slot counting places over all rows."""
        window = int(np.searchsorted(self._windows[:, 0], position, side="right")) - 1
        while 0 <= window < len(self._windows) and self._windows[window, 0] < position + pairs:
            first_row, end_row = (self._window_row(window), self._window_row(window + 1))
            bounds = self._numbers(_ROWS, first_row, end_row + 1)
            starts, lengths = (self._numbers(nth, bounds[0], bounds[-1]) for nth in (_STARTS, _PAIRS))
            for i in np.flatnonzero((starts < position + pairs) & (starts + lengths > position)).tolist():
                row = int(np.searchsorted(bounds - bounds[0], i, side="right")) - 1
                place = int(lengths[bounds[row] - bounds[0] : i].sum())
                yield int(starts[i]), (first_row + row) * self.facts.seq_len + place, int(lengths[i])
            window += 1

    @cached_property
    def _windows(self) -> Int64Array:
        return self._numbers(_WINDOWS, 0, 2 * self.facts.windows).reshape(-1, 2)

    def _numbers(self, nth: int, low: int, high: int) -> NDArray[np.signedinteger]:
        """Numbers low ... high - 1 of the nth file. Raises DataError where they are not what was written."""
        dtype = _DTYPES[nth]
        content = self._files.read(nth, int(high - low) * dtype.itemsize, int(low) * dtype.itemsize)
        return np.frombuffer(content, dtype)

    def _window_row(self, window: int) -> int:
        return int(self._windows[window, 1]) if window < len(self._windows) else self.n_rows


def best_fit(pairs: Int32Array, capacity: int) -> tuple[Int64Array, int]:
    """(row of each item, number of rows) for items of 1 ... capacity, by best-fit decreasing.

    Open rows are kept in stacks by the room they have left; of equally full ones the latest is taken.
    """
    order = np.argsort(-pairs.astype(np.int64), kind="stable")
    lengths: list[int] = pairs[order].tolist()
    full = int((pairs == capacity).sum())  # each alone in its row
    rows, n_rows = list(range(full)), full
    stacks: dict[int, list[int]] = {}
    rooms = _Rooms(capacity)
    for length in lengths[full:]:
        room = rooms.at_least(length)
        if room is None:
            row, left = n_rows, capacity - length
            n_rows += 1
        else:
            stack = stacks[room]
            row, left = stack.pop(), room - length
            if not stack:
                rooms.flip(room)
        rows.append(row)
        if left:
            stack = stacks.setdefault(left, [])
            if not stack:
                rooms.flip(left)
            stack.append(row)
    out = np.empty(len(pairs), np.int64)
    out[order] = rows
    return out, n_rows


class _Rooms:
    """A set of numbers 0 ... capacity in which the least one from a number on is found in the same time, however large
    the capacity: a bit for each number in words of _WORD bits, and a bit for each word that is not 0."""

    def __init__(self, capacity: int):
        self._words = [0] * (capacity // _WORD + 1)
        self._filled = 0

    def flip(self, number: int) -> None:
        """Puts a number in, or takes it out."""
        at, bit = divmod(number, _WORD)
        before = self._words[at]
        self._words[at] = after = before ^ (1 << bit)
        if not before or not after:
            self._filled ^= 1 << at

    def at_least(self, number: int) -> int | None:
        at, bit = divmod(number, _WORD)
        if here := self._words[at] >> bit:
            return number + (here & -here).bit_length() - 1
        above = self._filled >> (at + 1)
        if not above:
            return None
        at += (above & -above).bit_length()
        word = self._words[at]
        return at * _WORD + (word & -word).bit_length() - 1


def pieces_of(first: int, lengths: Int32Array, seq_len: int) -> tuple[Int64Array, Int32Array]:
    """(stream position, predictions) of the pieces of neighbouring documents; the first document begins at `first`."""
    tokens = lengths.astype(np.int64)
    starts = first + np.cumsum(tokens) - tokens
    pairs = tokens - 1
    n_pieces = -(-pairs // seq_len)
    document = np.repeat(np.arange(len(tokens)), n_pieces)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    return starts[document] + nth * seq_len, np.minimum(seq_len, pairs[document] - nth * seq_len).astype(np.int32)


def build(
    folder: Path, stream: TokenStream, source_digest: str, seq_len: int, say: Callable[[str], None] | None = None
) -> PackFacts:
    """Makes the pack at `folder`, whole or not at all, instead of one that was there and of what killed builds left.
    No other process may build it at the same time. Raises DataError when it cannot be written."""
    temporary = folder.with_name(f".{folder.name}.tmp{os.getpid()}")
    try:
        for old in (folder, *folder.parent.glob(f".{folder.name}.tmp*")):
            shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
        facts = _write(temporary, stream, source_digest, seq_len, say or _progress)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise DataError(f"{write_error(error, folder)}{HINT}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _write(
    folder: Path, stream: TokenStream, source_digest: str, seq_len: int, say: Callable[[str], None]
) -> PackFacts:
    rows = pieces = pairs = n_windows = 0
    expected = stream.n_tokens - sum(shard.documents for shard in stream.shards)
    started = last = time.monotonic()
    with _files(folder) as files:
        files["rows.bin"].write(np.zeros(1, "<i8").tobytes())
        for starts, lengths in _windows(stream, seq_len):
            row_of, n_rows = best_fit(lengths, seq_len)
            by_row = np.argsort(row_of, kind="stable")
            ends = pieces + np.cumsum(np.bincount(row_of, minlength=n_rows))
            files["rows.bin"].write(ends.astype("<i8").tobytes())
            files["starts.bin"].write(starts[by_row].astype("<i8").tobytes())
            files["pairs.bin"].write(lengths[by_row].astype("<i4").tobytes())
            files["windows.bin"].write(np.array([starts[0], rows], "<i8").tobytes())
            rows, pieces, n_windows = rows + n_rows, pieces + len(starts), n_windows + 1
            pairs += int(lengths.sum(dtype=np.int64))
            if time.monotonic() - last > 5:
                last = time.monotonic()
                rate = pieces / (last - started)
                say(f"packing rows of {seq_len}: {pairs / expected:.0%}, {rate:,.0f} pieces/s")
    if pairs != expected:
        raise DataError(f"packing found {pairs} predictions where the manifest's counts make {expected}; nothing kept")
    sums = _checksums(folder)
    facts = PackFacts(SCHEMA_VERSION, source_digest, seq_len, WINDOW, rows, pieces, pairs, n_windows, sums)
    publish_json(folder / "pack.json", asdict(facts))
    return facts


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, of which the last is written here."""
    with (folder / SUMS).open("wb") as stream:
        sums = BlockSums(stream)
        found = {name: sha256_through(folder / name, sums) for name in FILES}
        stream.flush()
        os.fsync(stream.fileno())
    return found | {SUMS: sha256_file(folder / SUMS)}


def _windows(stream: TokenStream, seq_len: int) -> Iterator[tuple[Int64Array, Int32Array]]:
    """Pieces in stream order, WINDOW at a time."""
    starts, pairs = np.empty(0, np.int64), np.empty(0, np.int32)
    for first, lengths in stream.document_lengths():
        for at, some in _slices(first, lengths):
            more = pieces_of(at, some, seq_len)
            starts, pairs = np.concatenate([starts, more[0]]), np.concatenate([pairs, more[1]])
            while len(starts) >= WINDOW:
                yield starts[:WINDOW], pairs[:WINDOW]
                starts, pairs = starts[WINDOW:], pairs[WINDOW:]
    if len(starts):
        yield starts, pairs


def _slices(first: int, lengths: Int32Array) -> Iterator[tuple[int, Int32Array]]:
    """A shard's documents WINDOW at a time, with the position of the first."""
    for i in range(0, len(lengths), WINDOW):
        some = lengths[i : i + WINDOW]
        yield first, some
        first += int(some.sum(dtype=np.int64))


@contextlib.contextmanager
def _files(folder: Path) -> Iterator[dict[str, IO[bytes]]]:
    """The pack's four files, open for writing; on disk when the block ends."""
    with contextlib.ExitStack() as stack:
        streams: dict[str, IO[bytes]] = {name: stack.enter_context((folder / name).open("wb")) for name in FILES}
        yield streams
        for stream in streams.values():
            stream.flush()
            os.fsync(stream.fileno())


def _facts(file: Path) -> PackFacts:
    try:
        facts = PackFacts(**json.loads(file.read_bytes()))
        if facts.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema version {facts.schema_version}, this program reads {SCHEMA_VERSION}")
        return facts
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be used: {error}. {_again(file.parent)}") from error


def _again(folder: Path) -> str:
    return f"Remove {folder}: the next start makes it anew."


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

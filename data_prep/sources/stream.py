"""Stored bytes to uncompressed blocks, and blocks to lines, with memory that does not grow with either.

In: an open file and a part of it. Out: blocks of at most 256 KiB; lines with their newline. gzip (several members),
Zstandard (several frames, skippable ones too) and bzip2 (several streams) are known by the file's ending. A file that
is cut short, damaged, or expands beyond all reason raises BrokenFileError after what could be read of it was given.
"""

import bz2
import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_prep.document import Reason
from data_prep.sources.stored import StoredFile

STORED_BLOCK = 1 << 16
BLOCK = 1 << 18
EXPANSION_FLOOR = 64 << 20
"""Bytes of output below which a file may expand as it likes: a small log of equal lines is no bomb."""


class BrokenFileError(Exception):
    """The rest of the file cannot be used."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def blocks(file: StoredFile, start: int, stop: int, max_expansion: int) -> Iterator[bytes]:
    """The bytes [start, stop) of the file, uncompressed by its ending."""
    given = 0
    for block in _uncompressed(file, start, stop):
        given += len(block)
        if given > EXPANSION_FLOOR and given > max_expansion * (file.furthest - start):
            raise BrokenFileError(
                Reason.zip_bomb,
                f"{file.furthest - start:,} stored bytes became {given:,} so far, more than source.max_expansion="
                f"{max_expansion} times as many",
            )
        yield block


def lines(body: Iterator[bytes], rest: Iterator[bytes], from_the_start: bool, limit: int) -> Iterator[bytes | int]:
    """The lines that belong to a part of a file, with their newlines; for one above `limit` bytes its size instead.

    `body` are the blocks of the part, `rest` those after it. A line belongs to the part that holds the byte before it,
    the file's first line to the first part: so a part skips through its first newline, and reads on through the first
    one after its end. Every line is then in exactly one part, wherever the borders lie.
    """
    stream = BlockStream(body, rest)
    reader = io.BufferedReader(stream, BLOCK)  # whose readline was measured faster than to split blocks into lists
    position = 0 if from_the_start else _skip_line(reader.readline, stream)
    while position <= stream.border:
        line = reader.readline(limit + 1)
        if len(line) <= limit or line.endswith(b"\n"):
            if not line:
                return
            position += len(line)
            yield line
        else:
            size = len(line)
            del line
            while not (piece := reader.readline(BLOCK)).endswith(b"\n") and piece:
                size += len(piece)
            position += size + len(piece)
            yield size + len(piece.removesuffix(b"\n"))


class BlockStream(io.RawIOBase):
    """Blocks, then more blocks, as a file; `border` is where the second ones begin, infinite until that is known."""

    def __init__(self, body: Iterable[bytes], rest: Iterable[bytes] = ()):
        self._body, self._rest = iter(body), iter(rest)
        self._left = memoryview(b"")
        self._position = 0
        self.border = math.inf

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        if not self._left:
            self._left = memoryview(self._next())
        n = min(len(buffer), len(self._left))
        buffer[:n] = self._left[:n]
        self._left = self._left[n:]
        self._position += n
        return n

    def _next(self) -> bytes:
        block = next(self._body, b"")
        if not block:
            self.border = min(self.border, self._position)
            block = next(self._rest, b"")
        return block


def _skip_line(readline: Callable[[int], bytes], stream: BlockStream) -> int:
    """Through the first newline, or to a place beyond the border; bytes skipped."""
    skipped = 0
    while skipped <= stream.border and (piece := readline(BLOCK)):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


# --- compression -----------------------------------------------------------------------------------------------------


def _uncompressed(file: StoredFile, start: int, stop: int) -> Iterator[bytes]:
    match file.url.rsplit(".", 1)[-1]:
        case "gz":
            yield from _members(_Window(file, start, stop), lambda: zlib.decompressobj(16 + zlib.MAX_WBITS))
        case "bz2":
            yield from _members(_Window(file, start, stop), bz2.BZ2Decompressor)
        case "zst":
            yield from _zstd(lambda: _Window(file, start, stop))
        case _:
            window = _Window(file, start, stop)
            while block := window.read(BLOCK):
                yield block


class _Window(io.RawIOBase):
    """The bytes [start, stop) of a file, read from here on by nobody else."""

    def __init__(self, file: StoredFile, start: int, stop: int):
        file.seek(start)
        self._file = file
        self._stop = stop

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = self._stop - self._file.tell()
        return self._file.read(left if size < 0 else min(size, left))


def _members(window: _Window, decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """gzip members or bzip2 streams, one after another. Bytes after the last one are damage, zeros (padding) excepted:
    Python's own readers pass over garbage there without a word."""
    current, begun, stored = decompressor(), False, window.read(STORED_BLOCK)
    try:
        while stored or begun:
            begun = True
            block = current.decompress(stored, BLOCK)
            if block:
                yield block
            if current.eof:
                stored = _after_padding(current.unused_data, window)
                current, begun = decompressor(), False
                continue
            stored = getattr(current, "unconsumed_tail", b"")  # zlib gives back what it did not need, bz2 keeps it
            if not stored and len(block) < BLOCK:
                stored = window.read(STORED_BLOCK)
                if not stored and not block:
                    raise EOFError("the file ends inside compressed data")
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(error) from error


def _after_padding(unused: bytes, window: _Window) -> bytes:
    stored = unused.lstrip(b"\0")
    while not stored and (block := window.read(STORED_BLOCK)):
        stored = block.lstrip(b"\0")
    return stored


def _zstd(opened: Callable[[], _Window]) -> Iterator[bytes]:
    """pyarrow reads several frames as one stream. A read that meets the damage gives nothing at all: what lies between
    the last whole block and the damage is read again from the start, byte by byte."""
    given = 0
    try:
        stream = _zstd_stream(opened())
        while block := stream.read(STORED_BLOCK):
            given += len(block)
            yield block
    except OSError as error:
        if found := _up_to_damage(_zstd_stream(opened()), given):
            yield found
        raise _damaged(error) from error


def _zstd_stream(window: _Window) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(window, mode="r"), "zstd")


def _up_to_damage(stream: Any, given: int) -> bytes:
    found: list[bytes] = []
    try:
        while given:
            given -= len(stream.read(min(given, STORED_BLOCK)))
        while byte := stream.read(1):
            found.append(byte)
    except OSError:
        pass
    return b"".join(found)


def _damaged(error: Exception) -> BrokenFileError:
    return BrokenFileError(Reason.broken_archive, f"the compressed file is damaged or cut short ({error})")

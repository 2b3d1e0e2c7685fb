"""Stored bytes to uncompressed blocks, and blocks to lines, with memory that does not grow with either.

In: an open file and a part of it. Out: blocks of at most 256 KiB; lines without their newline. gzip (several members),
Zstandard (several frames, skippable ones too) and bzip2 (several streams) are known by the file's ending. A file that is
cut short, damaged, or expands beyond all reason raises BrokenFileError after what could be read of it was given.
"""

import bz2
import io
import zlib
from collections.abc import Callable, Iterator
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
    """The lines that belong to a part of a file, without their newlines; for one above `limit` bytes its size instead.

    `body` are the blocks of the part, `rest` those after it. A line belongs to the part that holds the byte before it,
    the file's first line to the first part: so a part skips through its first newline, and reads on through the first
    one after its end. Every line is then in exactly one part, wherever the borders lie.
    """
    skipping = not from_the_start
    held: list[bytes] = []
    size = 0
    for block in body:
        first, *others = block.split(b"\n")
        size = _hold(held, size, first, limit)
        if others:
            if not skipping:
                yield _line(held, size, limit)
            skipping = False
            last = others.pop()
            yield from others if len(block) <= limit else (_line([line], len(line), limit) for line in others)
            held, size = [], 0
            size = _hold(held, size, last, limit)
    if skipping:
        return
    for block in rest:
        first, newline, _ = block.partition(b"\n")
        size = _hold(held, size, first, limit)
        if newline:
            yield _line(held, size, limit)
            return
    if size:
        yield _line(held, size, limit)


def _hold(held: list[bytes], size: int, piece: bytes, limit: int) -> int:
    """Adds a piece to the line in hand, or drops all of it once it is too long; the size of the line so far."""
    size += len(piece)
    if size > limit:
        held.clear()
    elif piece:
        held.append(piece)
    return size


def _line(held: list[bytes], size: int, limit: int) -> bytes | int:
    return b"".join(held) if size <= limit else size


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
        yield _up_to_damage(_zstd_stream(opened()), given)
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

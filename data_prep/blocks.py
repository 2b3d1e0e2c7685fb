"""Checksums block by block: made while files are written, compared whenever a part of one of them is read.

In: files that belong together, in a fixed order (a shard's .bin and .idx). Out: one small file of *sums*, the CRC-32 of
every BLOCK bytes as uint32 little-endian, file after file; the last block of a file may be short. `BlockFiles` gives
parts of the files, and no byte that was not compared. It reads, and maps nothing: a mapped file that is truncated kills
the process without a word. A block is a page: what is checked is what the system reads from the disk anyway.

A CRC-32 finds every damage that lies within 32 neighbouring bits, and all but one in 4 * 10^9 of any other kind. The
sums themselves are known by their SHA-256, so they cannot be exchanged together with the files.
"""

import contextlib
import errno
import hashlib
import os
import resource
import shutil
import struct
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO
from zlib import crc32

from data_prep.files import BLOCK_BYTES, DataError

BLOCK = 4096
SUM_BYTES = 4


def n_blocks(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK)


def sums_bytes(sizes: Iterable[int]) -> int:
    """Size of the sums of files that have these sizes."""
    return SUM_BYTES * sum(map(n_blocks, sizes))


def sums_of(content: bytes) -> bytes:
    """Sums of bytes that begin where a block does."""
    if len(content) <= BLOCK:
        return crc32(content).to_bytes(SUM_BYTES, "little") if content else b""
    view = memoryview(content)
    sums = [crc32(view[i : i + BLOCK]) for i in range(0, len(view), BLOCK)]
    return struct.pack(f"<{len(sums)}I", *sums)


class BlockSums:
    """Writes the sums of what passes by, in pieces of any size."""

    def __init__(self, stream: IO[bytes]):
        self._stream, self._rest = stream, b""

    def update(self, content: bytes) -> None:
        content = self._rest + content if self._rest else content
        whole = len(content) // BLOCK * BLOCK
        self._stream.write(sums_of(content[:whole]))
        self._rest = content[whole:]

    def end_file(self) -> None:
        """What follows is the next file's."""
        self._stream.write(sums_of(self._rest))
        self._rest = b""

    def copy_to(self, stream: IO[bytes]) -> None:
        """What was written so far, where its own stream is a file that can be read."""
        self._stream.seek(0)
        shutil.copyfileobj(self._stream, stream)


def sha256_through(file: Path, sums: BlockSums) -> str:
    """Of a file's content, all of which goes through `sums`."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            sums.update(block)
    sums.end_file()
    return digest.hexdigest()


class OpenFiles:
    """Descriptors of files opened for reading, the least recently used one closed beyond `limit` (None: half of what
    the process may open), or when the process may open no more."""

    def __init__(self, limit: int | None = None):
        self._limit, self._open = limit or _allowed(), OrderedDict[str, int]()
        weakref.finalize(self, _close, self._open)

    def __len__(self) -> int:
        return len(self._open)

    def pread(self, file: str, count: int, offset: int, check: Callable[[str, int], None]) -> bytes:
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
            raise DataError(f"{file} ends before byte {offset + count}: it was truncated while in use")
        return content

    def _add(self, file: str, check: Callable[[str, int], None]) -> int:
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

    def _opened(self, file: str) -> int:
        while True:
            try:
                return os.open(file, os.O_RDONLY)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise DataError(f"cannot read {file}: {error.strerror}") from error
                self._close_oldest()

    def _close_oldest(self) -> None:
        os.close(self._open.popitem(last=False)[1])


class BlockFiles:
    """Files with common sums, read in parts."""

    def __init__(self, files: Sequence[tuple[Path, int]], sums: Path, sums_sha256: str | None, opened: OpenFiles):
        """files: (path, bytes) of each, in the order of the sums. sums_sha256: the sums are compared with it when they
        are first opened; None where nobody knows it yet."""
        self._files, self._sums = [(str(file), size) for file, size in files], str(sums)
        self._sha256, self._opened = sums_sha256, opened
        self._before = [sum(n_blocks(size) for _, size in files[:i]) for i in range(len(files))]
        self._sums_bytes = sums_bytes(size for _, size in files)
        self._is_known = sums_sha256 is None

    def read(self, nth: int, count: int, offset: int) -> memoryview:
        """`count` bytes of the nth file. Raises DataError, naming the file and the place, when one of the blocks that
        they lie in is not what was written; when a file is missing, truncated or too long; or when it cannot be read.
        """
        if count == 0:
            return memoryview(b"")
        if not self._is_known:
            self._know()
        file, size = self._files[nth]
        first, last = offset // BLOCK, (offset + count - 1) // BLOCK + 1
        start = first * BLOCK
        at = SUM_BYTES * (self._before[nth] + first)
        sums = self._opened.pread(self._sums, SUM_BYTES * (last - first), at, self._check_size)
        content = self._opened.pread(file, min(last * BLOCK, size) - start, start, self._check_size)
        if sums_of(content) != sums:
            raise self._damage(file, start, content, sums)
        return memoryview(content)[offset - start : offset - start + count]

    def _know(self) -> None:
        """Compares the sums with their SHA-256, all of them; once is enough, for what is altered later fits nothing."""
        self._is_known = self._sha256 is None
        content = self._opened.pread(self._sums, self._sums_bytes, 0, self._check_size)
        if not self._is_known and hashlib.sha256(content).hexdigest() != self._sha256:
            raise DataError(f"{self._sums} was altered or exchanged after it was written: its checksum is another")
        self._is_known = True

    def _check_size(self, file: str, descriptor: int) -> None:
        found, expected = os.fstat(descriptor).st_size, dict(self._files).get(file, self._sums_bytes)
        if found != expected:
            problem = "truncated" if found < expected else "too long"
            raise DataError(f"{file} is {problem}: expected {expected} bytes, found {found}")

    def _damage(self, file: str, start: int, content: bytes, expected: bytes) -> DataError:
        """Names the file, unless it is the sums that are damaged: that is raised."""
        self._know()
        found = sums_of(content)
        wrong = next(i for i in range(0, len(found), SUM_BYTES) if found[i : i + 4] != expected[i : i + 4])
        first = start + wrong // SUM_BYTES * BLOCK
        last = min(first + BLOCK, start + len(content)) - 1
        is_now, was = (int.from_bytes(sums[wrong : wrong + SUM_BYTES], "little") for sums in (found, expected))
        return DataError(
            f"{file} was altered after it was written: between bytes {first} and {last} (CRC-32 {is_now:08x}, "
            f"{was:08x} was written). Nothing of it was used; put a whole copy there and start again."
        )


def _allowed() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 2))


def _close(descriptors: OrderedDict[str, int]) -> None:
    for descriptor in descriptors.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)

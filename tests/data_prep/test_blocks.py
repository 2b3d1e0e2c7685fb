"""Checksums block by block: the same however the content arrives, and compared at every read."""

import io
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from data_prep.blocks import BLOCK, BlockFiles, BlockSums, OpenFiles, n_blocks, sums_bytes
from data_prep.files import DataError

SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 7)


def content_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def written(contents: Sequence[bytes], step: int) -> bytes:
    stream = io.BytesIO()
    sums = BlockSums(stream)
    for content in contents:
        for i in range(0, len(content), step):
            sums.update(content[i : i + step])
        sums.end_file()
    return stream.getvalue()


def files_of(folder: Path, sizes: Sequence[int]) -> BlockFiles:
    files = [(folder / str(i), size) for i, size in enumerate(sizes)]
    for path, size in files:
        path.write_bytes(content_of(size))
    (folder / "sums").write_bytes(written([content_of(size) for size in sizes], 1 << 20))
    return BlockFiles(files, folder / "sums", None, OpenFiles(limit=2))


@pytest.mark.parametrize("step", [1, 100, BLOCK, BLOCK + 1, 1 << 20])
def test_sums_are_the_crc_32_of_each_block_however_the_content_arrives(step: int):
    contents = [content_of(size) for size in SIZES]
    blocks = [content[i : i + BLOCK] for content in contents for i in range(0, len(content), BLOCK)]
    found = np.frombuffer(written(contents, step), "<u4")
    assert found.tolist() == [crc32(block) for block in blocks]
    assert found.nbytes == sums_bytes(SIZES) == 4 * sum(map(n_blocks, SIZES))


def test_any_part_of_any_file_is_read_as_it_was_written(tmp_path: Path):
    files, rng = files_of(tmp_path, SIZES), np.random.default_rng(0)
    for nth, size in enumerate(SIZES):
        for _ in range(30):
            start, stop = sorted(rng.integers(0, size + 1, 2).tolist())
            assert files.read(nth, stop - start, start) == content_of(size)[start:stop]


def test_damage_is_found_in_the_blocks_that_are_read_and_in_no_other(tmp_path: Path):
    files = files_of(tmp_path, [3 * BLOCK, 3 * BLOCK])
    content = bytearray(content_of(3 * BLOCK))
    content[BLOCK + 9] ^= 16
    (tmp_path / "1").write_bytes(content)
    assert files.read(1, BLOCK, 0) == content[:BLOCK]
    assert files.read(1, 10, 2 * BLOCK) == content[2 * BLOCK : 2 * BLOCK + 10]
    for start, count in [(BLOCK, 1), (BLOCK - 1, 2), (2 * BLOCK - 1, 5), (0, 3 * BLOCK)]:
        with pytest.raises(DataError, match=rf"/1 was altered after it was written: between bytes {BLOCK} and 8191"):
            files.read(1, count, start)


def test_a_file_cut_while_it_is_read_is_named(tmp_path: Path):
    files = files_of(tmp_path, [3 * BLOCK])
    files.read(0, 10, 0)
    with (tmp_path / "0").open("r+b") as stream:
        stream.truncate(2 * BLOCK + 1)
    assert files.read(0, 10, BLOCK) == content_of(3 * BLOCK)[BLOCK : BLOCK + 10]
    with pytest.raises(DataError, match="/0 ends before byte 12288: it was truncated while in use"):
        files.read(0, 1, 2 * BLOCK)


def test_descriptors_are_closed_with_their_owner(tmp_path: Path):
    opened = len(list(Path("/proc/self/fd").iterdir()))
    files = files_of(tmp_path, [10, 20, 30])
    for nth in range(3):
        files.read(nth, 5, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == opened + 2
    del files
    assert len(list(Path("/proc/self/fd").iterdir())) == opened

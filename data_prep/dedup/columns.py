"""Named arrays in one file, written in one pass and read by memory map.

In: arrays, or pieces of arrays, under names. Out: a file that appears whole or not at all: the arrays' bytes, each
aligned to 64, then a table of contents (JSON: names, dtypes, shapes, offsets, the writer's facts), its length, a mark.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.files import DataError, published

VERSION = 2
MARK = b"CRISOL01"
ALIGN = 64
_CHECKED: set[tuple[int, int, int, str]] = set()
TAIL_BYTES = 8 + len(MARK)


class Writer:
    """Columns are written one after the other; a column may come in pieces as long as no other comes between."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self._columns: dict[str, dict[str, Any]] = {}
        self._open = ""

    def write(self, name: str, piece: NDArray[Any]) -> None:
        """Appends `piece` along the first axis to the column."""
        piece = np.ascontiguousarray(piece)
        if name != self._open:
            if name in self._columns:
                raise ValueError(f"column {name} was closed when column {self._open} began")
            self._stream.write(b"\0" * (-self._stream.tell() % ALIGN))
            self._columns[name] = {
                "dtype": piece.dtype.str,
                "shape": [0, *piece.shape[1:]],
                "at": self._stream.tell(),
                "crc32": 0,
            }
            self._open = name
        self._columns[name]["shape"][0] += len(piece)
        self._columns[name]["crc32"] = zlib.crc32(piece.data, self._columns[name]["crc32"])
        self._stream.write(piece.data)

    def close(self, facts: dict[str, Any]) -> None:
        contents = json.dumps({"version": VERSION, "columns": self._columns, "facts": facts}).encode()
        self._stream.write(contents + len(contents).to_bytes(8, "little") + MARK)


@contextlib.contextmanager
def writing(path: Path, facts: dict[str, Any]) -> Iterator[Writer]:
    """`facts` may be filled until the block ends."""
    with published(path) as stream:
        writer = Writer(stream)
        yield writer
        writer.close(facts)


class Columns:
    """`columns[name]` is a read-only memory map; the file is closed when the last of them is forgotten.

    Raises DataError when the file is missing, or is not such a file to its last byte.
    """

    def __init__(self, path: Path, check: bool = False):
        """`check`: compare the checksum of a column when it is first asked for. Without it, for tables that are looked
        up here and there and whose candidates are verified anyway."""
        self._must_check = check
        self._path, self._bytes = path, _mapped(path)
        state = path.stat()
        self._identity = (state.st_dev, state.st_ino, state.st_mtime_ns)
        try:
            if bytes(self._bytes[-len(MARK) :]) != MARK:
                raise ValueError("it does not end with its mark")
            size = int.from_bytes(bytes(self._bytes[-TAIL_BYTES : -len(MARK)]), "little")
            contents = json.loads(bytes(self._bytes[-TAIL_BYTES - size : -TAIL_BYTES]))
            if contents["version"] != VERSION:
                raise ValueError(f"its version is {contents['version']}, not {VERSION}")
        except (ValueError, KeyError) as error:
            raise DataError(f"{path} is damaged: {error}. Remove it and run again.") from error
        self._columns: dict[str, dict[str, Any]] = contents["columns"]
        self.facts: dict[str, Any] = contents["facts"]

    def __getitem__(self, name: str) -> NDArray[Any]:
        column = self._columns[name]
        dtype, shape = np.dtype(column["dtype"]), tuple(column["shape"])
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        content = self._bytes[column["at"] : column["at"] + n_bytes]
        if self._must_check:
            self._check(name, content, column["crc32"])
        return content.view(dtype).reshape(shape)

    def _check(self, name: str, content: NDArray[np.uint8], expected: int) -> None:
        """Once a process for each file as it lies there: a flipped bit would let another document go."""
        key = (*self._identity, name)
        if key not in _CHECKED:
            if zlib.crc32(content.data) != expected:
                raise DataError(f"{self._path} is damaged: the checksum of {name} differs. Remove it and run again.")
            _CHECKED.add(key)


def _mapped(path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; the sub-stage that makes it has to run first") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}. Remove it and run again.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error

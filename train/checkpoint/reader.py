"""A checkpoint on disk → any part of any of its tensors, under any layout.

Only the numbers that are asked for are read, a few MiB at a time, so a rank that holds a shard reads a shard, however
the tensor was cut when it was saved; no whole tensor is put together unless a whole one is asked for. Files are never
mapped into memory, where a bad disk is a signal that kills instead of an error that names the file. Nothing is ever
unpickled. Open one with `train/checkpoint/verify.py`: nothing is checked here but that every number asked for is there,
and the same wherever it is there twice.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint import cuts
from train.checkpoint.index import Entry, Index, Stored, check_index, read_index, title
from train.checkpoint.peers import Peers
from train.errors import CheckpointError, StateError
from train.fragment import Fragment

BLOCK_BYTES = 32 * 2**20
OPEN_FILES = 200
"""at a time: a checkpoint may have more files than a process may open"""

Read = Callable[[str, Fragment], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int
    state: dict[str, Any]
    hashes: dict[str, dict[str, str]]
    """kind → parameter name → the tensor's hash (`train/checkpoint/tensor_hash.py`)"""
    _files: dict[str, "_File"] = field(default_factory=dict[str, "_File"])

    def read(self, kind: str, fragment: Fragment) -> Tensor:
        """The fragment's numbers, (stop - start,), in the dtype in which they were saved.

        Raises StateError if the checkpoint has no such tensor or one of another shape, CheckpointError if a number is
        in no file, or in two that disagree.
        """
        cuts.check(fragment)
        entry = self._entry(kind, fragment)
        numbers = torch.empty(cuts.size(fragment), dtype=entry.dtype)
        filled = torch.zeros(cuts.size(fragment), dtype=torch.bool)
        for stored in entry.stored:
            for mine, theirs in cuts.common(fragment, stored.fragment):
                seen_there, room_there = mine.of(filled), mine.of(numbers)
                for rows, columns, found in self._blocks(stored, theirs, entry.dtype):
                    seen, room = seen_there[rows, columns], room_there[rows, columns]
                    if bool(seen.any()) and not _equal_bits(found[seen], room[seen]):
                        raise CheckpointError(self._disagreement(kind, entry, stored))
                    room.copy_(found)
                    seen.fill_(True)
        if not bool(filled.all()):
            raise CheckpointError(
                f"{self.path}: {int((~filled).sum())} of {cuts.size(fragment)} numbers of "
                f"{title(kind, fragment.name)} are in none of its files"
                f" ({', '.join(stored.file for stored in entry.stored[:8])})"
            )
        return numbers

    def give(self, load: Callable[[Read], None], peers: Peers) -> None:
        """Has every rank `load` its part by `read`. A collective, and so may `load` be: a rank that cannot read goes on
        with zeros, and then all raise CheckpointError with the first of its reasons.
        """
        problems: list[str] = []

        def read(kind: str, fragment: Fragment) -> Tensor:
            try:
                return self.read(kind, fragment)
            except (CheckpointError, StateError) as error:
                problems.append(str(error))
                return torch.zeros(cuts.size(fragment))

        load(read)
        message = peers.first_message(problems[0] if problems else None)
        if message is not None:
            raise CheckpointError(message)

    def check(self, n_bytes: Mapping[str, int]) -> None:
        """Raises CheckpointError if the index does not fit its files (n_bytes: the size of each) and tensors."""
        check_index(self.path, self._index, n_bytes)

    def whole(self, kind: str, name: str) -> Tensor:
        """A whole tensor, in its shape."""
        shape = self._named(kind, name).shape
        return self.read(kind, cuts.whole(name, shape)).view(shape)

    def tensors(self, kinds: tuple[str, ...] | None = None) -> Iterator[tuple[str, str, Tensor]]:
        """(kind, parameter name, whole tensor) of these kinds, or of all; one tensor in memory at a time."""
        for kind, name in self._index:
            if kinds is None or kind in kinds:
                yield kind, name, self.whole(kind, name)

    def require(self, expected: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        """Compares with all (kind, name, shape) of a model's state. Raises StateError that names the differences."""
        asked = {(kind, name): tuple(shape) for kind, name, shape in expected}
        held = {key: entry.shape for key, entry in self._index.items()}
        differences = {
            "tensors of the model are missing": [title(*key) for key in asked if key not in held],
            "tensors have no place in the model": [title(*key) for key in held if key not in asked],
            "tensors have another shape": [
                f"{title(*key)} {held[key]}, in the model {asked[key]}"
                for key in asked
                if key in held and held[key] != asked[key]
            ],
        }
        found = [
            f"{len(titles)} {what}: {', '.join(titles[:3])}{', …' if len(titles) > 3 else ''}"
            for what, titles in differences.items()
            if titles
        ]
        if found:
            raise StateError("\n  ".join([f"{self.path} is a checkpoint of another model:", *found]))

    @cached_property
    def _index(self) -> Index:
        return read_index(self.path)

    def _named(self, kind: str, name: str) -> Entry:
        if (kind, name) not in self._index:
            raise StateError(f"{self.path} is a checkpoint of another model: it holds no {title(kind, name)}")
        return self._index[kind, name]

    def _entry(self, kind: str, fragment: Fragment) -> Entry:
        entry = self._named(kind, fragment.name)
        if entry.shape != fragment.shape:
            raise StateError(
                f"{self.path} is a checkpoint of another model: {title(kind, fragment.name)} is {entry.shape}, "
                f"in the model {fragment.shape}"
            )
        return entry

    def _blocks(self, stored: Stored, window: cuts.Window, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, their numbers) of the window, block by block."""
        file, grid = self._file(stored.file), window.rectangle
        for rows, columns in _split(window, BLOCK_BYTES // dtype.itemsize):
            first = grid.at + rows.start * grid.n_columns + columns.start
            n_rows, last = rows.stop - rows.start, (rows.stop - rows.start - 1) * grid.n_columns
            flat = file.read(stored.offset + first * dtype.itemsize, last + columns.stop - columns.start, dtype)
            found = flat.as_strided((n_rows, columns.stop - columns.start), (grid.n_columns, 1))
            yield _moved(rows, -window.rows.start), _moved(columns, -window.columns.start), found

    def _file(self, name: str) -> "_File":
        if name not in self._files:
            if len(self._files) == OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[name] = _File(self.path / name)
        return self._files[name]

    def _disagreement(self, kind: str, entry: Entry, stored: Stored) -> str:
        others = [s.file for s in entry.stored if s is not stored and any(cuts.common(s.fragment, stored.fragment))]
        return (
            f"{self.path / stored.file} and {', '.join(others)} hold the same numbers of "
            f"{title(kind, stored.fragment.name)}, and disagree about them"
        )


class _File:
    """Open for reading at any place."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def close(self) -> None:
        self._stream.close()

    def read(self, offset: int, n: int, dtype: torch.dtype) -> Tensor:
        """`n` numbers from this byte on. Raises CheckpointError if the file cannot be read or ends before."""
        numbers = torch.empty(n, dtype=dtype)
        room, done = numbers.view(torch.uint8).numpy().data, 0
        try:
            self._stream.seek(offset)
            while done < len(room):
                if not (got := self._stream.readinto(room[done:])):
                    raise CheckpointError(
                        f"{self._path} ends before byte {offset + len(room)}: it was cut after it was verified"
                    )
                done += got
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read at byte {offset + done}: {error}") from None
        return numbers


def _split(window: cuts.Window, n_block: int) -> Iterator[tuple[slice, slice]]:
    """Parts of the window, as rows and columns of its rectangle, that lie in at most about `n_block` numbers each."""
    rows, columns, n_columns = window.rows, window.columns, window.rectangle.n_columns
    n_rows = max(1, n_block // n_columns)
    for row in range(rows.start, rows.stop, n_rows):
        for column in range(columns.start, columns.stop, n_block):
            yield (
                slice(row, min(row + n_rows, rows.stop)),
                slice(column, min(column + n_block, columns.stop)),
            )


def _moved(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))

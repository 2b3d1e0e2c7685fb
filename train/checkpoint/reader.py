"""A checkpoint on disk → any part of any of its tensors, under any layout.

Files are mapped into memory and only the numbers that are asked for are copied, so a rank that holds a shard reads a
shard, however the tensor was cut when it was saved; no whole tensor is put together unless a whole one is asked for.
Nothing is ever unpickled. Open one with `train/checkpoint/verify.py`: nothing is checked here but that every number
asked for is there, and the same wherever it is there twice.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint import cuts
from train.checkpoint.share import DTYPES
from train.errors import CheckpointError, StateError
from train.fragment import Fragment


@dataclass(frozen=True)
class _Stored:
    """A fragment in a file."""

    file: str
    offset: int
    fragment: Fragment


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: list[_Stored]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int
    state: dict[str, Any]
    hashes: dict[str, dict[str, str]]
    """kind → parameter name → the tensor's hash (`train/checkpoint/tensor_hash.py`)"""
    _maps: dict[str, Tensor] = field(default_factory=dict)

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
                found, seen, room = theirs.of(self._numbers(stored, entry.dtype)), mine.of(filled), mine.of(numbers)
                if bool(seen.any()) and not _equal_bits(found[seen], room[seen]):
                    raise CheckpointError(self._disagreement(kind, entry, stored))
                room.copy_(found)
                seen.fill_(True)
        if not bool(filled.all()):
            raise CheckpointError(
                f"{self.path}: {int((~filled).sum())} of {cuts.size(fragment)} numbers of "
                f"{_title(kind, fragment.name)} are in none of its files"
                f" ({', '.join(stored.file for stored in entry.stored[:8])})"
            )
        return numbers

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
            "tensors of the model are missing": [_title(*key) for key in asked if key not in held],
            "tensors have no place in the model": [_title(*key) for key in held if key not in asked],
            "tensors have another shape": [
                f"{_title(*key)} {held[key]}, in the model {asked[key]}"
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
    def _index(self) -> dict[tuple[str, str], _Entry]:
        try:
            lines = (self.path / "index.jsonl").read_text().splitlines()
            return dict(_entry_of(json.loads(line)) for line in lines)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path / 'index.jsonl'} cannot be read: {error!r}") from None

    def _named(self, kind: str, name: str) -> _Entry:
        if (kind, name) not in self._index:
            raise StateError(f"{self.path} is a checkpoint of another model: it holds no {_title(kind, name)}")
        return self._index[kind, name]

    def _entry(self, kind: str, fragment: Fragment) -> _Entry:
        entry = self._named(kind, fragment.name)
        if entry.shape != fragment.shape:
            raise StateError(
                f"{self.path} is a checkpoint of another model: {_title(kind, fragment.name)} is {entry.shape}, "
                f"in the model {fragment.shape}"
            )
        return entry

    def _numbers(self, stored: _Stored, dtype: torch.dtype) -> Tensor:
        """A view of the file; no byte is read before it is used."""
        if stored.file not in self._maps:
            path = self.path / stored.file
            try:
                n_bytes = path.stat().st_size
                self._maps[stored.file] = torch.from_file(str(path), shared=False, size=n_bytes, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from None
        n_bytes = cuts.size(stored.fragment) * dtype.itemsize
        return self._maps[stored.file][stored.offset : stored.offset + n_bytes].view(dtype)

    def _disagreement(self, kind: str, entry: _Entry, stored: _Stored) -> str:
        others = [s.file for s in entry.stored if s is not stored and any(cuts.common(s.fragment, stored.fragment))]
        return (
            f"{self.path / stored.file} and {', '.join(others)} hold the same numbers of "
            f"{_title(kind, stored.fragment.name)}, and disagree about them"
        )


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _entry_of(line: dict[str, Any]) -> tuple[tuple[str, str], _Entry]:
    shape = tuple(line["shape"])
    stored = [
        _Stored(file, offset, Fragment(line["name"], shape, *place)) for file, offset, *place in line["fragments"]
    ]
    return (line["kind"], line["name"]), _Entry(shape, DTYPES[line["dtype"]], stored)


def _title(kind: str, name: str) -> str:
    return f"{kind} of {name}"

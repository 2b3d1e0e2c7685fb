"""`index.jsonl`: a line for each tensor of a checkpoint, with shape, dtype, and where each of its fragments lies.

A line names files of the same folder only, and places inside them: whoever opens a checkpoint has this checked.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.checkpoint import cuts
from train.checkpoint.share import DTYPES
from train.errors import CheckpointError
from train.fragment import Fragment

NAME = "index.jsonl"


@dataclass(frozen=True)
class Stored:
    """A fragment in a file."""

    file: str
    offset: int
    """the byte where its numbers begin"""
    fragment: Fragment


@dataclass(frozen=True)
class Entry:
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: list[Stored]


Index = dict[tuple[str, str], Entry]
"""(kind, parameter name) → where it is"""


def read_index(folder: Path) -> Index:
    """Raises CheckpointError if it cannot be read."""
    path = folder / NAME
    try:
        with path.open(encoding="utf-8") as lines:
            return dict(_entry_of(json.loads(line)) for line in lines)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from None


def check_index(folder: Path, index: Index, n_bytes: Mapping[str, int]) -> None:
    """Raises CheckpointError if a fragment lies outside the files (n_bytes: the size of each) or its tensor, or if the
    fragments of a tensor do not hold each of its numbers once."""
    for (kind, name), entry in index.items():
        try:
            _check_entry(entry, n_bytes)
            problem = None
        except (TypeError, ValueError, OverflowError) as error:
            problem = str(error)
        if problem is not None:
            raise CheckpointError(f"{folder / NAME}: {title(kind, name)} is not as it was saved: {problem}")


def title(kind: str, name: str) -> str:
    return f"{kind} of {name}"


def _entry_of(line: dict[str, Any]) -> tuple[tuple[str, str], Entry]:
    shape = tuple(line["shape"])
    stored = [Stored(file, offset, Fragment(line["name"], shape, *place)) for file, offset, *place in line["fragments"]]
    return (line["kind"], line["name"]), Entry(shape, DTYPES[line["dtype"]], stored)


def _check_entry(entry: Entry, n_bytes: Mapping[str, int]) -> None:
    for stored in entry.stored:
        if stored.file not in n_bytes:
            raise ValueError(f"the manifest names no file {stored.file!r}")
        place = cuts.place(stored.fragment)
        if not _are_counts([*entry.shape, stored.offset, *place[1:]]) or not _are_counts([place[0] or 0]):
            raise ValueError(f"no whole numbers: {stored}")
        cuts.check(stored.fragment)
        end = stored.offset + cuts.size(stored.fragment) * entry.dtype.itemsize
        if end > n_bytes[stored.file]:
            raise ValueError(f"{stored.file} ends at {n_bytes[stored.file]}, before byte {end}")
    if problem := cuts.uncovered(entry.shape, [stored.fragment for stored in entry.stored]):
        raise ValueError(f"{problem} ({', '.join(dict.fromkeys(stored.file for stored in entry.stored[:8]))})")


def _are_counts(numbers: Iterable[Any]) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)

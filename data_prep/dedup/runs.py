"""Sorted pairs of document numbers on disk, more than memory holds.

In: pairs in any order. Out: files of sorted runs, and from any number of such files the distinct pairs whose first
number lies in a range, in pieces of bounded size. `ranges` is how any table is cut into such pieces.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.columns import Columns, Writer
from data_prep.dedup.words import Ints

PAIR_BYTES = 64  # held for one pair while pairs are sorted


def ranges(low: int, high: int, rows: Callable[[int, int], int], limit: int) -> Iterator[tuple[int, int]]:
    """[low, high) in ranges of at most `limit` rows each; a range of a single value may hold more. Empty ones are
    left out.
    """
    n = rows(low, high)
    if n <= limit or high - low == 1:
        if n:
            yield low, high
        return
    middle = (low + high) // 2
    yield from ranges(low, middle, rows, limit)
    yield from ranges(middle, high, rows, limit)


def run_of(keys: Any, low: int, high: int) -> slice:
    """Where the keys in [low, high) lie among ascending unsigned 64-bit keys; high may be 2^64."""
    return slice(
        int(np.searchsorted(keys, np.uint64(low))), int(np.searchsorted(keys, np.uint64(high - 1), side="right"))
    )


class PairWriter:
    """Collects pairs and writes a sorted run whenever `limit` of them are there."""

    def __init__(self, out: Writer, limit: int):
        self._out, self._limit = out, limit
        self._first: list[Ints] = []
        self._second: list[Ints] = []
        self._held = 0
        self.runs = 0
        self.pairs = 0

    def add(self, first: Ints, second: Ints) -> None:
        self._first.append(first)
        self._second.append(second)
        self._held += len(first)
        if self._held >= self._limit:
            self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        first, second = distinct(np.concatenate(self._first), np.concatenate(self._second))
        self._out.write(f"first{self.runs}", first.astype(np.uint64))
        self._out.write(f"second{self.runs}", second.astype(np.uint64))
        self._out.write(f"both{self.runs}", ascending(np.concatenate([first, second])).astype(np.uint64))
        self.runs, self.pairs, self._held = self.runs + 1, self.pairs + len(first), 0
        self._first.clear()
        self._second.clear()


def pairs_in(paths: Sequence[Path], low: int, high: int, limit: int) -> Iterator[tuple[Ints, Ints]]:
    """Distinct pairs with low <= first < high, ascending; at most `limit` at a time, or all those of one first."""
    runs = [_narrowed(run, low, high) for path in paths for run in _runs(path)]

    def rows(start: int, stop: int) -> int:
        spans = (run_of(first, start, stop) for first, _ in runs)
        return sum(span.stop - span.start for span in spans)

    for start, stop in ranges(low, high, rows, limit) if high > low else ():
        spans = [run_of(first, start, stop) for first, _ in runs]
        firsts = [first[span] for (first, _), span in zip(runs, spans, strict=True)]
        seconds = [second[span] for (_, second), span in zip(runs, spans, strict=True)]
        yield distinct(np.concatenate(firsts).astype(np.int64), np.concatenate(seconds).astype(np.int64))


def members_in(paths: Sequence[Path], low: int, high: int) -> NDArray[np.bool_]:
    """(high - low,) bool: which numbers of [low, high) occur in any pair, on either side."""
    occurs = np.zeros(high - low, np.bool_)
    for path in paths:
        columns = Columns(path)
        for run in range(columns.facts["runs"]):
            both = columns[f"both{run}"]
            occurs[both[run_of(both, low, high)].astype(np.int64) - low] = True
    return occurs


def ascending(values: NDArray[Any]) -> NDArray[Any]:
    """The distinct values in order, by sorting: `np.unique` of NumPy 2.4 hashes, some fifty times slower at 2·10^6."""
    values = np.sort(values)
    new = np.ones(len(values), np.bool_)
    new[1:] = values[1:] != values[:-1]
    return values[new]


def distinct(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.ones(len(first), np.bool_)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[new], second[new]


def _runs(path: Path) -> Iterator[tuple[Any, Any]]:
    columns = Columns(path)
    for run in range(columns.facts["runs"]):
        yield columns[f"first{run}"], columns[f"second{run}"]


def _narrowed(run: tuple[Any, Any], low: int, high: int) -> tuple[Any, Any]:
    span = run_of(run[0], low, high) if high > low else slice(0, 0)
    return run[0][span], run[1][span]

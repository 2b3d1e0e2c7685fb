"""Where a fragment's numbers lie in the whole tensor, and which numbers two fragments of any two cuts have in common.

A tensor is seen as rows of one length, the *period*: a slice along dimension 1 takes the same columns of every row,
and everything else (a whole tensor, a slice along dimension 0) is one run of numbers, for which every period will do.
A flat range inside such columns begins and ends in mid-row, so it is at most three rectangles: the rest of a row, whole
rows, the beginning of a row. Two fragments overlap where their rectangles do.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from train.fragment import Fragment


@dataclass(frozen=True)
class Rectangle:
    """Rows and columns of a tensor whose numbers follow each other in the fragment."""

    row: int
    column: int
    n_rows: int
    n_columns: int
    at: int
    """position of its first number in the fragment's flat tensor"""


def size(fragment: Fragment) -> int:
    return fragment.stop - fragment.start


def whole(name: str, shape: tuple[int, ...]) -> Fragment:
    """The whole tensor as one fragment."""
    return Fragment(name, shape, None, 0, 0, 0, math.prod(shape))


def place(fragment: Fragment) -> tuple[int | None, int, int, int, int]:
    """What distinguishes fragments of one tensor."""
    return (fragment.tp_dim, fragment.tp_start, fragment.tp_stop, fragment.start, fragment.stop)


def check(fragment: Fragment) -> None:
    """Raises ValueError unless slice and range lie inside the tensor."""
    inner, dim = math.prod(fragment.shape), fragment.tp_dim
    if dim is None:
        fits = fragment.tp_start == fragment.tp_stop == 0
    else:
        fits = dim in (0, 1) and dim < len(fragment.shape)
        fits = fits and 0 <= fragment.tp_start <= fragment.tp_stop <= fragment.shape[dim]
        inner = inner // max(1, fragment.shape[dim]) * (fragment.tp_stop - fragment.tp_start) if fits else 0
    if not fits or not 0 <= fragment.start <= fragment.stop <= inner:
        raise ValueError(f"no such part of a tensor, or one cut along a dimension other than 0 and 1: {fragment}")


def period(fragment: Fragment) -> int:
    """Length of the rows in which the fragment's columns repeat; that of the whole tensor if it is one run."""
    return math.prod(fragment.shape[1:] if fragment.tp_dim == 1 else fragment.shape)


def rectangles(fragment: Fragment, row_length: int) -> list[Rectangle]:
    """At most three; none of an empty fragment. `row_length` is its own period, or any if its own is one run."""
    if fragment.tp_dim == 1:
        inner = math.prod(fragment.shape[2:])
        left, width, base = fragment.tp_start * inner, (fragment.tp_stop - fragment.tp_start) * inner, 0
    else:
        base = fragment.tp_start * math.prod(fragment.shape[1:]) if fragment.tp_dim == 0 else 0
        left, width = 0, row_length
    at, found = 0, []
    for row, column, n_rows, n_columns in _split(base + fragment.start, base + fragment.stop, width):
        found.append(Rectangle(row, left + column, n_rows, n_columns, at))
        at += n_rows * n_columns
    return found


@dataclass(frozen=True)
class Window:
    """Some rows and columns of a rectangle."""

    rectangle: Rectangle
    rows: slice
    columns: slice

    def of(self, numbers: Tensor) -> Tensor:
        """Its view, (rows, columns), into the fragment's flat tensor."""
        grid = self.rectangle
        flat = numbers[grid.at : grid.at + grid.n_rows * grid.n_columns]
        return flat.view(grid.n_rows, grid.n_columns)[self.rows, self.columns]


def common(mine: Fragment, theirs: Fragment) -> Iterator[tuple[Window, Window]]:
    """Pairs of windows of equal size, one into either, for all numbers that both hold."""
    row_length = min(period(mine), period(theirs))
    others = rectangles(theirs, row_length)
    for a in rectangles(mine, row_length):
        for b in others:
            row, last_row = max(a.row, b.row), min(a.row + a.n_rows, b.row + b.n_rows)
            column, last_column = max(a.column, b.column), min(a.column + a.n_columns, b.column + b.n_columns)
            if row < last_row and column < last_column:
                spot = (row, last_row, column, last_column)
                yield _window(a, *spot), _window(b, *spot)


def uncovered(shape: tuple[int, ...], fragments: Iterable[Fragment]) -> str | None:
    """Why these fragments do not hold each number of their tensor exactly once; None if they do.

    Slices tile the dimension that is cut, and ranges tile their slice: so layouts cut, and to sort both is cheap
    however many fragments there are. Every fragment has passed `check`.
    """
    ranges: dict[tuple[int | None, int, int], list[tuple[int, int]]] = {}
    for fragment in fragments:
        if fragment.start < fragment.stop:
            where = (fragment.tp_dim, fragment.tp_start, fragment.tp_stop)
            ranges.setdefault(where, []).append((fragment.start, fragment.stop))
    dims = {dim for dim, _, _ in ranges}
    if len(dims) > 1:
        return f"it is cut along dimensions {sorted(dims, key=str)} at once"
    dim = next(iter(dims), None)
    if dim is not None and (problem := _untiled([(low, high) for _, low, high in ranges], shape[dim])):
        return f"of dimension {dim}, {problem}"
    for (_, low, high), found in (ranges or {(None, 0, 0): []}).items():
        n = math.prod(shape) if dim is None else math.prod(shape) // shape[dim] * (high - low)
        if problem := _untiled(found, n):
            return problem if dim is None else f"of the slice {low} to {high} of dimension {dim}, {problem}"
    return None


def _untiled(ranges: list[tuple[int, int]], n: int) -> str | None:
    """Where ranges [low, high) that are not empty do not fill [0, n) without overlap."""
    end = 0
    for low, high in [*sorted(ranges), (n, n)]:
        if low < end:
            return f"numbers {low} to {min(end, high)} are there twice"
        if low > end:
            return f"numbers {end} to {low} are nowhere"
        end = high
    return None


def _split(first: int, last: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(row, column, rows, columns) of the flat range [first, last) in rows of `width`."""
    if first < last and (column := first % width):
        n_columns = min(width - column, last - first)
        yield first // width, column, 1, n_columns
        first += n_columns
    if n_rows := (last - first) // width if first < last else 0:
        yield first // width, 0, n_rows, width
        first += n_rows * width
    if first < last:
        yield first // width, 0, 1, last - first


def _window(of: Rectangle, row: int, last_row: int, column: int, last_column: int) -> Window:
    return Window(of, slice(row - of.row, last_row - of.row), slice(column - of.column, last_column - of.column))

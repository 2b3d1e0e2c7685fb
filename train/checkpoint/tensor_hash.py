"""A hash of a tensor that does not depend on how it is cut: equal hashes, equal bits.

The sum modulo 2**64 over all elements of mix(G · index + bits), where index is the element's place in the whole tensor
and bits its bit pattern as an unsigned number. Each rank adds up its own fragments, rank 0 adds up the ranks. `mix` is
the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a
bijection, so that one altered element always alters the sum.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from train.checkpoint.cuts import Rectangle, period, rectangles
from train.fragment import Fragment

MODULUS = 2**64
GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_BLOCK = 2**16
"""elements mixed at a time: scratch memory that stays in the cache"""


def hex_of(total: int) -> str:
    return f"{total % MODULUS:016x}"


class TensorHash:
    """Hashes fragment after fragment in the same scratch memory: for one thread."""

    def __init__(self) -> None:
        self._mixed = np.empty(_BLOCK, np.uint64)
        self._shifted = np.empty(_BLOCK, np.uint64)
        self._run = _steps(np.arange(_BLOCK, dtype=np.uint64))

    def __call__(self, fragment: Fragment, numbers: NDArray[np.uint8]) -> int:
        """numbers: the bytes of the fragment's elements. Returns its share of the tensor's sum."""
        bits = numbers.view(f"u{numbers.size // max(1, fragment.stop - fragment.start)}") if numbers.size else numbers
        row_length = period(fragment)
        return (
            sum(
                self._block(first, steps, bits[low:high])
                for rectangle in rectangles(fragment, row_length)
                for first, steps, low, high in self._blocks(rectangle, row_length)
            )
            % MODULUS
        )

    def _blocks(self, rectangle: Rectangle, row_length: int) -> Iterator[tuple[int, NDArray[np.uint64], int, int]]:
        """(index of the first element, G · (index - first index) of all, range in the fragment) of each block."""
        n_rows, n_columns = rectangle.n_rows, rectangle.n_columns
        rows = _BLOCK // n_columns if n_columns < row_length else 0
        if n_rows > 1 and rows > 0:
            grid = np.arange(min(rows, n_rows), dtype=np.uint64)[:, None] * np.uint64(row_length)
            steps = _steps((grid + np.arange(n_columns, dtype=np.uint64)).reshape(-1))
            for row in range(0, n_rows, rows):
                low = rectangle.at + row * n_columns
                high = min(low + rows * n_columns, rectangle.at + n_rows * n_columns)
                yield (rectangle.row + row) * row_length + rectangle.column, steps, low, high
            return
        if n_columns == row_length:
            n_rows, n_columns = 1, n_rows * n_columns
        for row in range(n_rows):
            first, at = (rectangle.row + row) * row_length + rectangle.column, rectangle.at + row * n_columns
            for column in range(0, n_columns, _BLOCK):
                yield first + column, self._run, at + column, at + min(column + _BLOCK, n_columns)

    def _block(self, first: int, steps: NDArray[np.uint64], bits: NDArray[np.unsignedinteger]) -> int:
        mixed, shifted = self._mixed[: bits.size], self._shifted[: bits.size]
        np.add(steps[: bits.size], np.uint64(first * GOLDEN % MODULUS), out=mixed)
        np.add(mixed, bits, out=mixed)
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            np.right_shift(mixed, np.uint64(shift), out=shifted)
            np.bitwise_xor(mixed, shifted, out=mixed)
            np.multiply(mixed, factor, out=mixed)
        np.right_shift(mixed, np.uint64(31), out=shifted)
        np.bitwise_xor(mixed, shifted, out=mixed)
        return int(mixed.sum(dtype=np.uint64))


def _steps(indices: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return indices * np.uint64(GOLDEN)

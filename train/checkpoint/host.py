"""A copy of a rank's fragments in host memory, so that training may go on while it is written.

Memory is taken in chunks of one size, page-locked where the tensors are on a GPU, and used again by the next save:
after the first one a copy allocates nothing. A fragment may be spread over several chunks, hence *pieces*.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.checkpoint import cuts
from train.fragment import Fragment

CHUNK_BYTES = 64 * 2**20
_ALIGNMENT = 64


@dataclass(frozen=True)
class Part:
    """One fragment, copied."""

    kind: str
    fragment: Fragment
    dtype: torch.dtype
    pieces: list[tuple[Fragment, NDArray[np.uint8]]]
    """consecutive parts of the fragment, with the bytes of their numbers"""

    @property
    def n_bytes(self) -> int:
        return cuts.size(self.fragment) * self.dtype.itemsize


class HostCopy:
    """The memory of one rank."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._chunk = 0
        self._used = 0

    def clear(self) -> None:
        """Makes all memory free for new parts; the old ones are void."""
        self._chunk = self._used = 0

    def take(self, kind: str, fragment: Fragment, tensor: Tensor) -> Part:
        """Starts to copy (n,) numbers; they are there after `settle`. Raises RuntimeError if there is no memory."""
        cuts.check(fragment)
        if tensor.shape != (cuts.size(fragment),):
            raise ValueError(f"{kind} of {fragment.name}: {tuple(tensor.shape)} numbers for {fragment}")
        pieces, start = [], fragment.start
        while start < fragment.stop:
            room = self._room(tensor)
            stop = min(fragment.stop, start + room.numel() // tensor.element_size())
            piece = room[: (stop - start) * tensor.element_size()]
            source = tensor[start - fragment.start : stop - fragment.start]
            piece.view(tensor.dtype).copy_(source, non_blocking=True)
            pieces.append((replace(fragment, start=start, stop=stop), piece.numpy()))
            self._used += -(-piece.numel() // _ALIGNMENT) * _ALIGNMENT
            start = stop
        return Part(kind, fragment, tensor.dtype, pieces)

    def settle(self) -> None:
        """Waits until all copies are complete."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _room(self, tensor: Tensor) -> Tensor:
        """What is left of the chunk in use, or all of the next one."""
        if self._used >= CHUNK_BYTES:
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            self._chunks.append(torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=tensor.is_cuda))
        return self._chunks[self._chunk][self._used :]

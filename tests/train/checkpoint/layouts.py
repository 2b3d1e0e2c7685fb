"""Made-up layouts: how N ranks cut the tensors of a small model, and saves by ranks that exist in one process only."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint.commit import commit
from train.checkpoint.cuts import whole
from train.checkpoint.folders import folder_name, hidden_name
from train.checkpoint.host import HostCopy
from train.checkpoint.reader import Checkpoint
from train.checkpoint.share import write_share
from train.checkpoint.verify import verify
from train.fragment import Fragment

SHAPES = {"embedding.weight": (16, 12), "q.weight": (8, 12), "o.weight": (12, 8), "norm.weight": (13,), "bias": (8,)}
TP_DIMS = {"embedding.weight": 0, "q.weight": 0, "bias": 0, "o.weight": 1}
"""norm.weight is equal on all tensor-parallel ranks, so it belongs to the first of them"""
KINDS = {"master": torch.float32, "exp_avg": torch.bfloat16}

Tensors = dict[tuple[str, str], Tensor]
Cut = Callable[[], list[list[Fragment]]]


def tensors(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        (kind, name): torch.randn(shape, generator=generator).to(dtype)
        for kind, dtype in KINDS.items()
        for name, shape in SHAPES.items()
    }


def slices(tp_size: int) -> list[list[Fragment]]:
    """What each tensor-parallel rank owns: its slices, and the first one what is not cut."""
    return [[part for name in SHAPES if (part := slice_of(name, rank, tp_size))] for rank in range(tp_size)]


def slice_of(name: str, rank: int, tp_size: int) -> Fragment | None:
    shape, dim = SHAPES[name], TP_DIMS.get(name)
    if dim is None or tp_size == 1:
        return whole(name, shape) if rank == 0 else None
    width = shape[dim] // tp_size
    n = math.prod(shape) // tp_size
    return Fragment(name, shape, dim, rank * width, (rank + 1) * width, 0, n)


def zero_12(tp_size: int, dp_size: int) -> list[list[Fragment]]:
    """All slices of a rank one after the other, cut into equal flat ranges whatever tensor they hit."""
    ranks: list[list[Fragment]] = []
    for mine in slices(tp_size):
        share = -(-sum(part.stop for part in mine) // dp_size)
        for dp_rank in range(dp_size):
            ranks.append(list(ranges(mine, dp_rank * share, (dp_rank + 1) * share)))
    return ranks


def ranges(parts: list[Fragment], low: int, high: int) -> Iterator[Fragment]:
    before = 0
    for part in parts:
        start, stop = max(low - before, 0), min(high - before, part.stop)
        if start < stop:
            yield Fragment(part.name, part.shape, part.tp_dim, part.tp_start, part.tp_stop, start, stop)
        before += part.stop


def zero_3(tp_size: int, dp_size: int) -> list[list[Fragment]]:
    """Every slice in equal parts; the last one is ragged, or empty."""
    ranks: list[list[Fragment]] = []
    for mine in slices(tp_size):
        for dp_rank in range(dp_size):
            cut = []
            for part in mine:
                share = -(-part.stop // dp_size)
                cut += ranges([part], dp_rank * share, (dp_rank + 1) * share)
            ranks.append(cut)
    return ranks


LAYOUTS: dict[str, list[list[Fragment]]] = {
    "one process": slices(1),
    "zero 1, dp 2": zero_12(1, 2),
    "zero 1, dp 5": zero_12(1, 5),
    "zero 3, dp 3": zero_3(1, 3),
    "zero 3, dp 4": zero_3(1, 4),
    "tp 2": slices(2),
    "tp 4": slices(4),
    "zero 2, dp 3 x tp 2": zero_12(2, 3),
    "zero 3, dp 3 x tp 4": zero_3(4, 3),
}


def numbers(tensor: Tensor, fragment: Fragment) -> Tensor:
    """The fragment's numbers, by torch's own slicing."""
    if fragment.tp_dim is not None:
        tensor = tensor.narrow(fragment.tp_dim, fragment.tp_start, fragment.tp_stop - fragment.tp_start)
    return tensor.reshape(-1)[fragment.start : fragment.stop]


def fragments_of(rank: list[Fragment], values: Tensors) -> Iterator[tuple[str, Fragment, Tensor]]:
    for kind in KINDS:
        for fragment in rank:
            yield kind, fragment, numbers(values[kind, fragment.name], fragment)


def written(folder: Path, layout: list[list[Fragment]], values: Tensors, step: int = 1) -> Checkpoint:
    """A checkpoint as the ranks of this layout write it, one after the other."""
    for rank, fragments in enumerate(layout):
        host = HostCopy()
        parts = [host.take(*one) for one in fragments_of(fragments, values)]
        write_share(folder / hidden_name(step), rank, parts)
    commit(folder, step, len(layout), "{}")
    return verify(folder / folder_name(step))


def same_bits(a: Tensor, b: Tensor) -> bool:
    same: Any = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))

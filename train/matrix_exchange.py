"""Matrices that lie in fragments on many ranks → each whole on one rank, and its fragments back where they came from.

`plan` knows which fragments each rank holds and deals the matrices out: every rank gets about the same work, and where
that leaves a choice, a matrix that it holds much of already. It answers with rounds. In a round each rank receives at
most one matrix (`gather`), computes with it, and sends the fragments of the result back (`scatter`): two all-to-all
exchanges, in which each number travels once each way. A rank needs memory for one whole matrix and for what it holds of
the other ranks' matrices of the round.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from train.fragment import Fragment


@dataclass(frozen=True)
class Round:
    own: list[Fragment]
    """what this rank holds of the matrices of the round, in the order of the ranks that put them together"""
    own_counts: list[int]
    """numbers in it, for each of these ranks"""
    matrix: list[Fragment]
    """the matrix that this rank puts together, in the order of the ranks that hold it; empty if it has none"""
    matrix_counts: list[int]
    """numbers in it, from each of these ranks"""

    def gather(self, parts: Sequence[Tensor], like: Tensor) -> Tensor | None:
        """The numbers of `own`, flat, to this rank's whole matrix (rows, columns). A collective of all ranks.

        like: an empty tensor of the device and the type that travel.
        """
        sent = torch.cat([like, *parts])
        received = _exchange(sent, self.own_counts, self.matrix_counts)
        return _joined(self.matrix, received.split([_size(f) for f in self.matrix])) if self.matrix else None

    def scatter(self, matrix: Tensor | None, like: Tensor) -> Sequence[Tensor]:
        """The inverse of `gather`: the flat numbers of `own`, cut from the matrices of all ranks."""
        parts = [] if matrix is None else [_cut(matrix, fragment) for fragment in self.matrix]
        received = _exchange(torch.cat([like, *parts]), self.matrix_counts, self.own_counts)
        return received.split([_size(f) for f in self.own])


def plan(held: Sequence[Sequence[Fragment]], rank: int) -> list[Round]:
    """The rounds of `rank`, as many as every other rank has; held: the fragments of each rank.

    Raises ValueError if the fragments of a matrix are not all of it.
    """
    _check_whole(held)
    queues = deal(held)
    rounds = []
    for turn in range(max(map(len, queues))):
        names = [queue[turn] if turn < len(queue) else None for queue in queues]
        own = [[f for f in held[rank] if f.name == name] for name in names]
        matrix = [[f for f in fragments if f.name == names[rank]] for fragments in held]
        rounds.append(Round([*chain(*own)], _counts(own), [*chain(*matrix)], _counts(matrix)))
    return rounds


def deal(held: Sequence[Sequence[Fragment]]) -> list[list[str]]:
    """The names of each rank's matrices, dearest first, so that those of one round cost about the same.

    Each goes, dearest first, to the rank that holds most of it among those that stay below an even share of the work
    with it, or to the idlest if there is none.
    """
    counts = _counts_by_name(held)
    costs = {f.name: cost(f.shape) for fragments in held for f in fragments}
    even = sum(costs.values()) / len(held)
    load, queues = [0] * len(held), [[] for _ in held]
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        free = [rank for rank, work in enumerate(load) if work + costs[name] <= even]
        owner = max(free, key=lambda rank: (counts[name][rank], -load[rank])) if free else load.index(min(load))
        load[owner] += costs[name]
        queues[owner].append(name)
    return queues


def cost(shape: Sequence[int]) -> int:
    """Multiply-adds, up to a factor, of a Newton-Schulz step: X X^T, its square, and the product with X."""
    small, large = sorted(shape)
    return 2 * small * small * large + small**3


def _exchange(sent: Tensor, sent_counts: list[int], received_counts: list[int]) -> Tensor:
    if len(sent_counts) == 1:
        return sent
    received = sent.new_empty(sum(received_counts))
    dist.all_to_all_single(received, sent, received_counts, sent_counts)
    return received


def _joined(fragments: Sequence[Fragment], parts: Iterable[Tensor]) -> Tensor:
    """The whole matrix from all its fragments. Equal ones (of tensor-parallel ranks that hold the same) overwrite."""
    slices: dict[tuple[int, int], Tensor] = {}
    for fragment, part in zip(fragments, parts, strict=True):
        where = (fragment.tp_start, fragment.tp_stop)
        if where not in slices:
            slices[where] = part.new_empty(math.prod(_slice_shape(fragment)))
        slices[where][fragment.start : fragment.stop] = part
    shape = list(fragments[0].shape)
    dim = fragments[0].tp_dim or 0
    shape[dim] = -1
    return torch.cat([slices[where].view(shape) for where in sorted(slices)], dim)


def _cut(matrix: Tensor, fragment: Fragment) -> Tensor:
    if fragment.tp_dim is not None:
        matrix = matrix.narrow(fragment.tp_dim, fragment.tp_start, fragment.tp_stop - fragment.tp_start)
    return matrix.flatten()[fragment.start : fragment.stop]


def _slice_shape(fragment: Fragment) -> list[int]:
    shape = list(fragment.shape)
    if fragment.tp_dim is not None:
        shape[fragment.tp_dim] = fragment.tp_stop - fragment.tp_start
    return shape


def _check_whole(held: Sequence[Sequence[Fragment]]) -> None:
    found: dict[str, int] = {}
    distinct = {fragment for fragments in held for fragment in fragments}
    for fragment in distinct:
        found[fragment.name] = found.get(fragment.name, 0) + _size(fragment)
    for fragment in distinct:
        if found[fragment.name] != math.prod(fragment.shape):
            raise ValueError(
                f"{fragment.name} {fragment.shape} has {math.prod(fragment.shape)} numbers, but all ranks together "
                f"hold fragments of {found[fragment.name]}"
            )


def _counts_by_name(held: Sequence[Sequence[Fragment]]) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {}
    for rank, fragments in enumerate(held):
        for fragment in fragments:
            counts.setdefault(fragment.name, [0] * len(held))[rank] += _size(fragment)
    return counts


def _counts(groups: Iterable[Iterable[Fragment]]) -> list[int]:
    return [sum(map(_size, group)) for group in groups]


def _size(fragment: Fragment) -> int:
    return fragment.stop - fragment.start

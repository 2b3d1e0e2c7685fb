"""Copies that must be equal → which rank holds an odd one.

Data-parallel ranks hold the same weights of forward (ZeRO 1 and 2), tensor-parallel ranks the same masters of what is
not cut between them. A bit that flips in one copy spoils its rank's gradients, and through them every rank: nothing
looks wrong. So each rank adds up the bits of its copies, as integers, for each parameter group; the sums travel with
its report (`train/engine/exchange.py`), and unequal ones are found before the update. At ZeRO 3 no rank holds a copy of
another's part, and only the second kind remains.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from train.engine.state import MASTER, TrainingState
from train.parallel import RankGrid

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORD = 8


class Replicas:
    """What this rank holds that others hold too."""

    def __init__(self, optimizer: Any, state: TrainingState, parameters: Sequence[tuple[str, Any]], grid: RankGrid):
        self._forward = _forward_flats(optimizer)
        self._names = [name for name, _ in parameters]
        self._parameters = [parameter for _, parameter in parameters]
        self._grid = grid
        whole = [piece for piece in state.pieces if piece.fragment.tp_dim is None] if grid.tp_size > 1 else []
        self._masters = [
            state.tensor(MASTER, piece.flat).narrow(0, piece.offset, piece.fragment.stop - piece.fragment.start)
            for piece in whole
        ]

    def bit_sums(self) -> Tensor | None:
        """(n,) int64 on the device: one for each parameter group of forward weights, and with tensor parallelism one of
        masters. None where no other rank holds the same."""
        held = [*self._forward, *([torch.cat(self._masters)] if self._masters else [])]
        return torch.stack([_bit_sum(numbers) for numbers in held]) if held else None

    def odd_ranks(self, bit_sums: Sequence[tuple[int, ...]]) -> list[int]:
        """Ranks whose copies are not those of most; where there is no majority, all that differ. [] if all agree.

        bit_sums: of each rank.
        """
        if len(set(bit_sums)) == 1:
            return []
        found: set[int] = set()
        n_forward = len(self._forward)
        for number in range(len(bit_sums[0])):
            of_rank = {rank: sums[number] for rank, sums in enumerate(bit_sums)}
            for holders in self._holders(of_rank, is_forward=number < n_forward):
                found |= odd_ones(holders)
        return sorted(found)

    def odd_parameters(self) -> list[str]:
        """Names of the weights of forward whose copies differ. A collective."""
        if not self._forward or self._grid.world_size == 1:
            return []
        mine = torch.stack([_bit_sum(parameter.detach()) for parameter in self._parameters])
        received = [torch.empty_like(mine) for _ in range(self._grid.world_size)]
        torch.distributed.all_gather(received, mine)
        columns = torch.stack(received).T.tolist()
        return [name for name, column in zip(self._names, columns, strict=True) if self._differs(column)]

    def _differs(self, column: list[int]) -> bool:
        return any(odd_ones(holders) for holders in self._holders(dict(enumerate(column)), is_forward=True))

    def _holders(self, of_rank: Mapping[int, int], *, is_forward: bool) -> Iterable[dict[int, int]]:
        """The ranks in sets that hold the same: equal tp_rank for weights of forward, else one tensor-parallel
        group."""
        tp = self._grid.tp_size
        sets: dict[int, dict[int, int]] = {}
        for rank, value in of_rank.items():
            sets.setdefault(rank % tp if is_forward else rank // tp, {})[rank] = value
        return sets.values()


def odd_ones(values: Mapping[int, int]) -> set[int]:
    """rank → value: the ranks that do not have the value of more than half of them; all if there is none such."""
    value, count = Counter(values.values()).most_common(1)[0]
    if count == len(values):
        return set()
    return {rank for rank, own in values.items() if own != value} if 2 * count > len(values) else set(values)


def _forward_flats(optimizer: Any) -> list[Tensor]:
    """The weights of forward, one flat tensor for each parameter group, where each rank holds all of them."""
    match type(optimizer).__name__:
        case "DeepSpeedZeroOptimizer":
            return list(optimizer.bit16_groups_flat)
        case "BF16_Optimizer":
            return list(optimizer.bf16_groups_flat)
        case _:
            return []


def _bit_sum(tensor: Tensor) -> Tensor:
    """The sum modulo 2^64 of the bits read as integers of 64 bits, and of what is left over as smaller ones: one
    flipped bit always changes it. Of a wider type than its own, torch would first make a copy of the whole tensor."""
    flat, size = tensor.detach().flatten(), tensor.element_size()
    if flat.storage_offset() * size % _WORD:
        flat = flat.clone()
    whole = flat.numel() * size // _WORD * _WORD // size
    return flat[:whole].view(torch.int64).sum() + flat[whole:].view(_BITS[size]).sum(dtype=torch.int64)

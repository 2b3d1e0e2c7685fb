"""The process groups of a rank grid, once torch.distributed is up; DeepSpeed is handed it as its `mpu`.

DeepSpeed's "data parallel" group is every rank with the same tensor-parallel rank, dp x sp of them: sequence-parallel
ranks hold equal weights and see different positions, so their gradients are averaged like those of different rows.
There are no `get_sequence_*` methods on purpose: with them DeepSpeed 0.19.8 scales the loss differently in each ZeRO
stage.
"""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from train.parallel import RankGrid


class Mesh:
    """This rank's three groups. Making it is a collective."""

    def __init__(self, grid: RankGrid, sequence_parallel_norms: bool = True):
        """sequence_parallel_norms: with tp_size > 1, each tensor-parallel rank holds the residual stream, and runs its
        norms, for its own part of the positions only."""
        self.grid = grid
        self.tp_size, self.tp_rank = grid.tp_size, grid.tp_rank
        self.sp_size, self.sp_rank = grid.sp_size, grid.sp_rank
        self.dp_size, self.dp_rank = grid.dp_size, grid.dp_rank
        self.cuts_norms = sequence_parallel_norms and grid.tp_size > 1
        tp, together = grid.tp_size, grid.tp_size * grid.sp_size
        first = grid.dp_rank * together
        self.tp_group = _group(range(grid.rank - grid.tp_rank, grid.rank - grid.tp_rank + tp))
        self.sp_group = _group(range(first + grid.tp_rank, first + together, tp))
        self.data_group = _group(range(grid.tp_rank, grid.world_size, tp))

    @property
    def sequence_multiple(self) -> int:
        """The length of a row must divide by this."""
        return self.sp_size * (self.tp_size if self.cuts_norms else 1)

    def own_part(self, x: Tensor) -> Tensor:
        """(B, T, ...) of a whole row to (B, T / sp_size, ...): the positions that this rank predicts. What
        `Objective.own_part` becomes. Raises ValueError if T does not divide."""
        return sequence_part(x, 1, self.sp_rank, self.sp_size)

    # --- DeepSpeed's mpu --------------------------------------------------------------------------------------------

    def get_model_parallel_rank(self) -> int:
        return self.tp_rank

    def get_model_parallel_world_size(self) -> int:
        return self.tp_size

    def get_model_parallel_group(self) -> ProcessGroup:
        return self.tp_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self.dp_rank * self.sp_size + self.sp_rank

    def get_data_parallel_world_size(self) -> int:
        return self.dp_size * self.sp_size

    def get_data_parallel_group(self) -> ProcessGroup:
        return self.data_group


def sequence_part(x: Tensor, dim: int, part: int, n_parts: int) -> Tensor:
    """Part number `part` of `n_parts` equal ones of x along `dim`. Raises ValueError if the length does not divide."""
    length = x.shape[dim]
    if length % n_parts:
        raise ValueError(f"a row of {length} positions does not divide into {n_parts} parts")
    return x.narrow(dim, part * (length // n_parts), length // n_parts)


def _group(ranks: range) -> ProcessGroup:
    """Made by its members alone, each rank three groups, whatever the number of ranks."""
    group = dist.new_group(list(ranks), use_local_synchronization=True)
    assert isinstance(group, ProcessGroup)
    return group

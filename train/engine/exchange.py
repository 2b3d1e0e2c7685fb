"""What each rank tells all others once a step, when its gradients are ready: one small all-gather, before the update.

So loss, verdict, wish to stop, times and the state of the replicas are known to all ranks alike, at the price of one
collective. Numbers travel as bits: floats as the integers of their representation. Beside it, sums of integers. All
here end with the numbers on the host: a rank whose stack ends in this file waits for other ranks, also where a
collective itself returns at once and only its result is waited for (`train/evidence.py` goes by that).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Report(NamedTuple):
    """One rank's."""

    nats: float
    """summed over the targets that this rank predicts"""
    grad_norm: float
    """global norm before clipping, as this rank knows it; infinite if it is no number"""
    stop: int
    """what has told this rank to stop, as a code of `train/stop.py`; 0 if nothing has"""
    data_seconds: float
    """spent on reading the step's rows"""
    communication_seconds: float
    """of them spent in collectives, waiting for others included"""
    step_seconds: float
    """from the report before to this one"""
    bit_sums: tuple[int, ...] = ()
    """of what other ranks hold too: see `train/engine/replicas.py`"""

    @property
    def work_seconds(self) -> float:
        """What this rank itself took, whatever it waited for."""
        return self.step_seconds - self.communication_seconds


_N_FLOATS = 6


def exchange(mine: Report, world_size: int, device: str) -> list[Report]:
    """The reports of all ranks, in their order. A collective; every rank has the same number of bit sums."""
    if world_size == 1:
        return [mine]
    sent = torch.tensor(_packed(mine), device=device)
    received = sent.new_empty(world_size * len(sent))
    torch.distributed.all_gather_into_tensor(received, sent)
    return _unpacked(received.cpu().view(world_size, -1).numpy())


def sum_over_ranks(numbers: list[int], device: str) -> list[int]:
    """Element by element, over all ranks. A collective, valid after `join_ranks`."""
    sums = torch.tensor(numbers, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def largest(number: int, device: str) -> int:
    """Of the ranks' numbers. A collective."""
    value = torch.tensor(number, device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)


def _packed(report: Report) -> list[int]:
    *scalars, bit_sums = report
    return [*np.array(scalars, np.float64).view(np.int64).tolist(), *bit_sums]


def _unpacked(numbers: NDArray[np.int64]) -> list[Report]:
    """numbers: a row for each rank."""
    floats = np.ascontiguousarray(numbers[:, :_N_FLOATS]).view(np.float64).tolist()
    return [
        Report(nats, grad_norm, int(stop), data, communication, step, tuple(bit_sums))
        for (nats, grad_norm, stop, data, communication, step), bit_sums in zip(
            floats, numbers[:, _N_FLOATS:].tolist(), strict=True
        )
    ]

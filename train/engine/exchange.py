"""What each rank tells all others once a step, when its gradients are ready: one small all-gather, before the update.

So loss, verdict, wish to stop, times and the state of the replicas are known to all ranks alike, at the price of one
collective. Numbers travel as bits: floats as the integers of their representation.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Report:
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
    received = [torch.empty_like(sent) for _ in range(world_size)]
    torch.distributed.all_gather(received, sent)
    return [_unpacked(numbers) for numbers in torch.stack(received).tolist()]


def _packed(report: Report) -> list[int]:
    *scalars, bit_sums = astuple(report)
    return [*np.array(scalars, np.float64).view(np.int64).tolist(), *bit_sums]


def _unpacked(numbers: Sequence[int]) -> Report:
    floats = np.array(numbers[:_N_FLOATS], np.int64).view(np.float64).tolist()
    nats, grad_norm, stop, data, communication, step = floats
    return Report(nats, grad_norm, int(stop), data, communication, step, tuple(numbers[_N_FLOATS:]))

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
from torch import Tensor


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
    source_nats: tuple[float, ...] = ()
    """summed over the targets of each source's rows; () where there is a single source"""
    allocated_bytes: int = 0
    """of the device at the most since it was last told; this and the next two are told now and then, else 0"""
    reserved_bytes: int = 0
    resident_bytes: int = 0
    """of the host"""

    @property
    def work_seconds(self) -> float:
        """What this rank itself took, whatever it waited for."""
        return self.step_seconds - self.communication_seconds


_N_FLOATS, _N_INTEGERS = 6, 3


def exchange(mine: Report, world_size: int, device: str) -> list[Report]:
    """The reports of all ranks, in their order. A collective; every rank has the same number of bit sums and
    sources."""
    if world_size == 1:
        return [mine]
    sent = torch.tensor(_packed(mine), device=device)
    received = sent.new_empty(world_size * len(sent))
    torch.distributed.all_gather_into_tensor(received, sent)
    return _unpacked(received.cpu().view(world_size, -1).numpy(), len(mine.source_nats))


def gathered(numbers: Tensor, world_size: int) -> list[list[float]]:
    """(n, m) float64 of each rank, added up over all of them, the same to the bit on each. A collective."""
    received = numbers.flatten()
    if world_size > 1:
        received = numbers.new_empty(world_size * numbers.numel())
        torch.distributed.all_gather_into_tensor(received, numbers.flatten())
    return received.cpu().view(world_size, *numbers.shape).sum(0).tolist()


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


def on_host(floats: Tensor, integers: Tensor | None) -> tuple[list[float], list[int]]:
    """(n,) float64 and (m,) int64 of the device, in one transfer: each would let the host wait for it."""
    bits = floats.view(torch.int64)
    numbers = (bits if integers is None else torch.cat([bits, integers])).cpu().numpy()
    return numbers[: len(floats)].view(np.float64).tolist(), numbers[len(floats) :].tolist()


def _packed(report: Report) -> list[int]:
    floats = np.array([*report[:_N_FLOATS], *report.source_nats], np.float64).view(np.int64).tolist()
    return [*floats, report.allocated_bytes, report.reserved_bytes, report.resident_bytes, *report.bit_sums]


def _unpacked(numbers: NDArray[np.int64], n_sources: int = 0) -> list[Report]:
    """numbers: a row for each rank."""
    n_floats = _N_FLOATS + n_sources
    floats = np.ascontiguousarray(numbers[:, :n_floats]).view(np.float64).tolist()
    return [
        Report(nats, grad_norm, int(stop), data, communication, step, tuple(bit_sums), tuple(source_nats), *n_bytes)
        for (nats, grad_norm, stop, data, communication, step, *source_nats), n_bytes, bit_sums in zip(
            floats,
            numbers[:, n_floats : n_floats + _N_INTEGERS].tolist(),
            numbers[:, n_floats + _N_INTEGERS :].tolist(),
            strict=True,
        )
    ]

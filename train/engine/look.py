"""A second look at one step: which rows, which parameters and which rank its loss and gradients come from.

While it is entered, every micro-batch's gradient of every parameter is measured on its rank, before any rank's is added
to another's; `take` notes the loss of each row. `findings` brings them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from model.loss import IGNORED_TARGET
from train.parallel import RankGrid


@dataclass(frozen=True)
class Findings:
    rows: list[tuple[int, float]]
    """(row of the global batch, nats per target), the highest first"""
    layers: list[tuple[str, float, int]]
    """(parameter, the largest norm of a micro-batch's gradient, its rank), the largest first, of equals the one nearest
    to the end of the model; infinite where the norm is no number"""


class Look:
    """On every rank; `findings` is a collective."""

    def __init__(self, parameters: Sequence[tuple[str, Any]], grid: RankGrid, n_rows: int, device: str):
        self._parameters, self._grid, self._device = parameters, grid, device
        self._norms = torch.zeros(len(parameters), dtype=torch.float64, device=device)
        self._rows = torch.zeros(2, n_rows, dtype=torch.float64, device=device)  # nats, targets
        self._next_row = grid.dp_rank * (n_rows // grid.dp_size)
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for number, (_, parameter) in enumerate(self._parameters):
            self._hooks.append(parameter.register_hook(lambda gradient, number=number: self._measure(number, gradient)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self, losses: Tensor, targets: Tensor) -> None:
        """losses: (B, T) of this rank's part of the rows; targets: (B, T) of whole rows."""
        rows = slice(self._next_row, self._next_row + len(losses))
        if self._grid.tp_rank == 0:
            self._rows[0, rows] += losses.detach().double().sum(1)
        if self._grid.tp_rank == self._grid.sp_rank == 0:
            self._rows[1, rows] += (targets != IGNORED_TARGET).sum(1)
        self._next_row += len(losses)

    def findings(self, n_shown: int = 5) -> Findings:
        """The highest of each. A collective."""
        norms = [torch.empty_like(self._norms) for _ in range(self._grid.world_size)]
        if self._grid.world_size > 1:
            torch.distributed.all_reduce(self._rows)
            torch.distributed.all_gather(norms, self._norms)
        else:
            norms = [self._norms]
        largest, rank = torch.stack(norms).max(dim=0)
        layers = [
            (name, norm, of_rank)
            for (name, _), norm, of_rank in zip(self._parameters, largest.tolist(), rank.tolist(), strict=True)
        ][::-1]  # of equals the last one comes first: what is no number spreads from there to all before it
        nats, targets = _numbers(self._rows).tolist()
        rows = [(row, total / n) for row, (total, n) in enumerate(zip(nats, targets, strict=True)) if n]
        return Findings(
            sorted(rows, key=lambda row: -row[1])[:n_shown], sorted(layers, key=lambda layer: -layer[1])[:n_shown]
        )

    def _measure(self, number: int, gradient: Tensor) -> None:
        norm = _numbers(torch.linalg.vector_norm(gradient, dtype=torch.float32).double())
        self._norms[number] = torch.maximum(self._norms[number], norm)


def _numbers(values: Tensor) -> Tensor:
    """What is no number is infinite: it sorts first, and a maximum keeps it."""
    return values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)

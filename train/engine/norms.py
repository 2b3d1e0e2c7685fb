"""Norms of gradients and weights by layer: the embedding, each block, the last norm, the head.

Each rank adds up the squares of what it alone answers for (`train/engine/state.py`): its part of the gradients, reduced
over all rows, in the moment before they are applied, and its part of the masters after that. One small all-gather
brings them together. Only in steps that ask for it is anything computed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.engine.exchange import gathered
from train.engine.state import TrainingState


@dataclass(frozen=True)
class Norms:
    gradients: dict[str, float]
    """of each layer, before clipping: their squares add up to that of the step's norm"""
    weights: dict[str, float]
    """of each layer, after the update"""


class LayerNorms:
    """names: of all parameters, in the order of the model."""

    def __init__(self, state: TrainingState, names: Sequence[str], world_size: int, device: str):
        self._state, self._world_size, self._device = state, world_size, device
        self._layers = list(dict.fromkeys(map(layer_of, names)))
        self._gradients = torch.zeros(len(self._layers), dtype=torch.float64, device=device)
        owned = [piece for piece in state.pieces if piece.owned]
        self._pieces = {
            flat: [(piece.offset, piece.fragment.stop - piece.fragment.start) for piece in owned if piece.flat is flat]
            for flat in state.flats
        }
        self._numbers: Mapping[Tensor, Tensor] = {
            flat: torch.tensor(
                [self._layers.index(layer_of(piece.fragment.name)) for piece in owned if piece.flat is flat],
                dtype=torch.int64,
            )
            for flat in state.flats
        }

    def begin(self) -> None:
        """A step that asks for norms."""
        self._gradients.zero_()

    def take_gradients(self, flats: Iterable[Tensor]) -> None:
        """flats: those that are about to be updated, each once in a step."""
        for flat in flats:
            if flat.grad is not None:
                self._add(self._gradients, flat, flat.grad)

    def norms(self, grad_norm: float) -> Norms:
        """grad_norm: of the whole step before clipping. What was taken may be clipped, which is undone by it. A
        collective."""
        weights = torch.zeros_like(self._gradients)
        for flat in self._state.flats:
            self._add(weights, flat, flat.detach())
        of_gradients, of_weights = gathered(torch.stack([self._gradients, weights]), self._world_size)
        clipped = sum(of_gradients) ** 0.5
        scale = grad_norm / clipped if clipped else 0.0
        return Norms(
            {layer: square**0.5 * scale for layer, square in zip(self._layers, of_gradients, strict=True)},
            {layer: square**0.5 for layer, square in zip(self._layers, of_weights, strict=True)},
        )

    def _add(self, sums: Tensor, flat: Tensor, numbers: Tensor) -> None:
        """Adds the squares of each layer's part of a flat tensor."""
        if not (pieces := self._pieces[flat]):
            return
        norms = [torch.linalg.vector_norm(numbers.narrow(0, *piece), dtype=torch.float32) for piece in pieces]
        squares = torch.stack(norms).double().square().cpu()
        by_layer = torch.zeros(len(self._layers), dtype=torch.float64).index_add_(0, self._numbers[flat], squares)
        sums += by_layer.to(self._device)


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: blocks.3.attention.q.weight to blocks.3, head.weight to head."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]

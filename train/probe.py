"""Trains one small model on one batch and reads off, before each step, how large its activations are and how far they
have moved: what train/coordinates.py compares over widths. Plain torch.

Shapes: B batch, T positions, H heads, D head_dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.attention import Context
from model.config import ModelConfig
from model.init import initialize
from model.loss import cross_entropy
from model.rope import rotate
from model.transformer import Block, Transformer
from train.optim import adamw
from train.optimizer_config import OptimizerConfig


class Reading(NamedTuple):
    size: float
    """mean absolute value over all layers, positions and units"""
    change: float
    """the same of the difference from step 0"""


def readings(
    config: ModelConfig, optimizer: OptimizerConfig, *, shape: tuple[int, int], steps: int, seed: int, device: str
) -> list[dict[str, Reading]]:
    """For step 0 (untrained) to `steps`: each kind of activation on the batch that is learned, (B, T) = `shape`."""
    model = Transformer(config).to(device)
    initialize(model, seed)
    tokens = _batch(config.vocab_size, shape, seed).to(device)
    update = adamw(model.named_parameters(), optimizer, width_ratio=config.width_ratio)
    seen: list[dict[str, Reading]] = []
    first: dict[str, list[Tensor]] = {}
    for step in range(steps + 1):
        with _recorded(model) as now:
            logits = model(tokens[:, :-1])
        first = first or now
        seen.append({kind: _reading(values, first[kind]) for kind, values in now.items()})
        if step < steps:
            _learn(model, update, logits, tokens[:, 1:], optimizer.max_grad_norm)
    return seen


def _batch(vocab_size: int, shape: tuple[int, int], seed: int) -> Tensor:
    """(B, T + 1) random ids, small ones frequent, as in text: half of them lie below an eighth of the vocabulary."""
    uniform = torch.rand(shape[0], shape[1] + 1, generator=torch.Generator().manual_seed(seed))
    return (vocab_size * uniform**3).long()


def _learn(
    model: Transformer, update: torch.optim.Optimizer, logits: Tensor, targets: Tensor, max_grad_norm: float
) -> None:
    nats, n_targets = cross_entropy(logits, targets)
    update.zero_grad()
    (nats / n_targets).backward()
    if max_grad_norm > 0:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    update.step()


def _reading(values: list[Tensor], before: list[Tensor]) -> Reading:
    """values: the tensor of each layer."""
    return Reading(_mean_size(values), _mean_size([new - old for new, old in zip(values, before, strict=True)]))


def _mean_size(values: list[Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in values]).abs().mean())


@contextmanager
def _recorded(model: Transformer) -> Iterator[dict[str, list[Tensor]]]:
    """Collects what passes through the model inside the block: {kind: [tensor of each layer]}."""
    found: dict[str, list[Tensor]] = {}

    def keep(kind: str, value: Tensor) -> None:
        found.setdefault(kind, []).append(value.detach().float())

    def output_of(kind: str) -> Any:
        return lambda module, inputs, output: keep(kind, output)

    handles = [model.embedding.register_forward_hook(output_of("embedding"))]
    for block in model.blocks:
        assert isinstance(block, Block)
        handles += [
            block.attention.core.register_forward_pre_hook(
                lambda core, inputs: keep("attention logits", _scores(core.scale, *inputs))
            ),
            block.attention.register_forward_hook(output_of("attention output")),
            block.mlp.register_forward_hook(output_of("MLP output")),
        ]
    handles.append(model.norm.register_forward_pre_hook(lambda norm, inputs: keep("residual stream", inputs[0])))
    handles.append(model.register_forward_hook(output_of("head logits")))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _scores(scale: Any, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    """What the softmax is given, of all pairs of positions that see each other, flat; before the softcap if any."""
    if context.cos is not None and context.sin is not None:
        q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT * scale  # (B, H, T, T)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return scores.masked_select(seen if context.mask is None else context.mask)

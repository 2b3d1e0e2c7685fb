"""Which parameters decay, and the optimizer that updates them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from train.config import OptimizerConfig


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices (two or more dimensions) with `weight_decay`, everything else without.

    The true shape decides: ZeRO-3 leaves every parameter one-dimensional and keeps its shape in `ds_shape`.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for _, parameter in named:
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (matrices if len(shape) >= 2 else others).append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def adamw(model: nn.Module, config: OptimizerConfig, *, fused: bool) -> torch.optim.AdamW:
    groups = parameter_groups(model.named_parameters(), config.weight_decay)
    return torch.optim.AdamW(
        groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused or None
    )

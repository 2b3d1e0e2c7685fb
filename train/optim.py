"""Which parameters decay, the optimizer that updates them, and what it remembers of each."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

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


def fresh_state(optimizer: torch.optim.Optimizer, group: dict[str, Any], flat: Tensor) -> dict[str, Tensor]:
    """What `optimizer` remembers of a tensor of `group` that it has never updated, as its first step would make it.

    Made beforehand, it can be filled from a checkpoint, and is known in full before the first step.
    """
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one of them
        raise TypeError(f"the state of {type(optimizer).__name__} is not known here")
    on_device = group["fused"] or group["capturable"]
    return {
        "step": torch.zeros((), device=flat.device if on_device else "cpu"),
        "exp_avg": torch.zeros_like(flat, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
    }

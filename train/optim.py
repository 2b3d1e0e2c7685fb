"""The optimizer of a model: its parameters in groups, each with its own weight decay and its own share of the
learning rate.

Matrices decay, everything else does not (the true shape decides: ZeRO-3 leaves every parameter one-dimensional and
keeps its shape in `ds_shape`). Under muP the width ratio m changes the numbers of a group as below (Yang et al., arXiv
2203.03466, table 8, column Adam); m = 1 under every other recipe.

|                    | learning rate | weight_decay | epsilon |
|--------------------|---------------|--------------|---------|
| hidden matrices    | lr / m        | decay x m    | eps / m |
| embedding, head, learned positions | lr | decay   | eps / m |
| norms, biases      | lr            | 0            | eps / m |

Decay: AdamW takes off lr x weight_decay of a weight each step, and it is this product that stays the same at every
width, as in the authors' own package and as transfer needs it (arXiv 2405.13698, arXiv 2510.19093). Epsilon: gradients
become m times smaller, so it must too, or it grows with the width (Everett et al., arXiv 2407.05872, section 4).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.init import is_hidden_matrix
from model.transformer import Transformer
from train.config import OptimizerConfig


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, width_ratio: float = 1.0
) -> list[dict[str, Any]]:
    """One group for each pair of weight decay and `lr_scale` that occurs, in the order in which they first do.

    The learning rate of a group is `lr_scale` times that of the schedule. `names` are those of `params`, in order.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        scale = 1 / width_ratio if is_hidden_matrix(name) else 1.0
        decay = weight_decay / scale if _is_matrix(parameter) else 0.0
        group = groups.setdefault((decay, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _is_matrix(parameter: nn.Parameter) -> bool:
    return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2


def adamw(model: Transformer, config: OptimizerConfig, *, fused: bool) -> torch.optim.AdamW:
    """Set the rate of each step with `set_learning_rate`."""
    ratio = model.config.width_ratio
    optimizer = torch.optim.AdamW(
        parameter_groups(model.named_parameters(), config.weight_decay, ratio),
        lr=config.peak_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps / ratio,
        fused=fused or None,
    )
    set_learning_rate(optimizer.param_groups, config.peak_lr)
    return optimizer


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Gives every group its share of the schedule's learning rate."""
    for group in groups:
        group["lr"] = lr * group["lr_scale"]

"""The optimizer of a model: its parameters in groups, each with its own weight decay and its own share of the learning
rate; and what it remembers of each.

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
from torch import Tensor, nn

from model.init import is_hidden_matrix
from train.muon import MuonAdamW, fresh_momentum
from train.optimizer_config import OptimizerConfig, OptimizerKind
from train.parallel_config import Precision


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


def adamw(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, *, width_ratio: float = 1.0, device: str = "cpu"
) -> torch.optim.AdamW:
    """named: parameters under their logical names; width_ratio: m of muP. Set the rate of each step with
    `set_learning_rate`."""
    optimizer = torch.optim.AdamW(
        parameter_groups(named, config.weight_decay, width_ratio),
        lr=config.peak_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps / width_ratio,
        fused=device != "cpu" or None,
    )
    set_learning_rate(optimizer.param_groups, config.peak_lr)
    return optimizer


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Gives every group its share of the schedule's learning rate."""
    for group in groups:
        group["lr"] = lr * group["lr_scale"]


def muon_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """The hidden matrices, for Muon, then what `parameter_groups` makes of the rest, for AdamW."""
    named = list(named)
    hidden = {name for name, _ in named if is_hidden_matrix(name)}
    matrices = {
        "params": [parameter for name, parameter in named if name in hidden],
        "names": [name for name, _ in named if name in hidden],
        "lr_scale": 1.0,
        "kind": OptimizerKind.muon,
        "weight_decay": config.weight_decay,
        "momentum": config.muon_momentum,
        "ns_steps": config.ns_steps,
    }
    rest = parameter_groups(((name, p) for name, p in named if name not in hidden), config.weight_decay)
    return [matrices, *({**group, "kind": OptimizerKind.adamw} for group in rest)]


def muon(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, *, precision: Precision, device: str
) -> MuonAdamW:
    """named: parameters under their logical names. Matrices are orthogonalised in bf16 on a GPU, as in the source,
    unless all else is fp32; on the CPU, where bf16 is no faster, in fp32."""
    in_bf16 = device != "cpu" and precision != Precision.fp32
    return MuonAdamW(
        muon_groups(named, config),
        matrix_dtype=torch.bfloat16 if in_bf16 else torch.float32,
        matrix_device=device,
        lr=config.peak_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device != "cpu" or None,
    )


def fresh_state(optimizer: torch.optim.Optimizer, group: dict[str, Any], flat: Tensor) -> dict[str, Tensor]:
    """What `optimizer` remembers of a tensor of `group` that it has never updated, as its first step would make it.

    Made beforehand, it can be filled from a checkpoint, and is known in full before the first step.
    """
    if group.get("kind") == OptimizerKind.muon:
        return {"momentum": fresh_momentum(flat)}
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one of them
        raise TypeError(f"the state of {type(optimizer).__name__} is not known here")
    on_device = group["fused"] or group["capturable"]
    return {
        "step": torch.zeros((), device=flat.device if on_device else "cpu"),
        "exp_avg": torch.zeros_like(flat, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
    }

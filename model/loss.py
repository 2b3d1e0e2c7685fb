"""Next-token cross-entropy, target by target: whoever adds up knows what to divide by. Shapes: B batch, T positions,
V vocab."""

import torch
from torch import Tensor

IGNORED_TARGET = -100  # a position without a target: padding


def token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(nats, log_z), each (B, T) fp32: the cross-entropy of each target, and the log of the sum of exponentials of its
    logits, which z-loss keeps small (PaLM, arXiv 2204.02311, section 5). Both are 0 where there is no target.

    logits: (B, T, V) of any float type, raised to fp32; targets: (B, T) int64, IGNORED_TARGET where there is none.
    """
    logits = logits.float()
    real = targets != IGNORED_TARGET
    log_z = logits.logsumexp(-1)
    nats = log_z - logits.gather(-1, targets.where(real, 0).unsqueeze(-1)).squeeze(-1)
    zero = torch.zeros_like(nats)
    return nats.where(real, zero), log_z.where(real, zero)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats summed over the targets (fp32 scalar) and the number of targets (int64 scalar)."""
    nats, _ = token_losses(logits, targets)
    return nats.sum(), (targets != IGNORED_TARGET).sum()

"""Next-token cross-entropy, target by target: whoever adds up knows what to divide by. Shapes: B batch, T positions,
V vocab."""

from typing import Any

import torch
from torch import Tensor

from model.config import IGNORED_TARGET


def token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(nats, log_z), each (B, T) fp32: the cross-entropy of each target, and the log of the sum of exponentials of its
    logits, which z-loss keeps small (PaLM, arXiv 2204.02311, section 5). Both are 0 where there is no target.

    logits: (B, T, V) of any float type, computed with in fp32; targets: (B, T) int64, IGNORED_TARGET where there is
    none.
    """
    return _TokenLosses.apply(logits, targets)  # pyright: ignore[reportReturnType]


class _TokenLosses(torch.autograd.Function):
    """Holds one fp32 tensor of B x T x V numbers at a time, the logits and their gradient in the dtype they came in:
    left to autograd, backward would hold five of them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        real = targets != IGNORED_TARGET
        index = targets.where(real, 0).unsqueeze(-1)
        largest = logits.amax(-1).float()
        log_z = (logits - largest.unsqueeze(-1)).exp_().sum(-1).log() + largest
        ctx.save_for_backward(logits, real, index, log_z)
        return (log_z - logits.gather(-1, index).squeeze(-1)).where(real, 0), log_z.where(real, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """d nats / d logits = softmax - one-hot of the target; d log_z / d logits = softmax."""
        d_nats, d_log_z = gradients
        logits, real, index, log_z = ctx.saved_tensors
        d = (logits - log_z.unsqueeze(-1)).exp_().mul_((d_nats + d_log_z).where(real, 0).unsqueeze(-1))
        d.scatter_add_(-1, index, -d_nats.where(real, 0).unsqueeze(-1))
        return d.to(logits.dtype), None


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats summed over the targets (fp32 scalar) and the number of targets (int64 scalar)."""
    nats, _ = token_losses(logits, targets)
    return nats.sum(), (targets != IGNORED_TARGET).sum()

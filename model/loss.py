"""Next-token cross-entropy as (sum, count): whoever divides knows by what. Shapes: B batch, T positions, V vocab."""

import torch.nn.functional as F
from torch import Tensor

IGNORED_TARGET = -100  # a position without a target: padding


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats summed over the targets (fp32 scalar) and the number of targets (int64 scalar).

    logits: (B, T, V) of any float type, raised to fp32; targets: (B, T) int64, IGNORED_TARGET where there is none.
    """
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_TARGET, reduction="sum"
    )
    return nats, (targets != IGNORED_TARGET).sum()

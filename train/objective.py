"""What DeepSpeed is given as the model: rows in, the loss of each target out (or the logits, to look at).

The head and the loss can go over the row in chunks, each run again in backward instead of kept, so that logits exist
for `chunk_tokens` positions at a time. Shapes: B batch, T positions, C d_model.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.loss import token_losses
from model.transformer import Transformer


class Objective(nn.Module):
    """Holds the places where parallelism is put in from outside: `model`'s layers, `token_losses`, `own_part`."""

    def __init__(self, model: Transformer, chunk_tokens: int | None = None):
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.token_losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = token_losses
        self.own_part: Callable[[Tensor], Tensor] = lambda targets: targets
        """(B, T) targets of a row to those of this rank's part of it"""

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | Tensor:
        """tokens, targets, segments: (B, T). Returns (nats, log_z) as `token_losses` does, of this rank's part; or
        without targets its logits."""
        hidden = self.model.hidden(tokens, segments)
        if targets is None:
            return self.model.logits(hidden)
        targets = self.own_part(targets)
        if self.chunk_tokens is None or self.chunk_tokens >= targets.numel():
            return self._losses(hidden, targets)
        shape = targets.shape
        parts = [
            checkpoint(self._losses, *part, use_reentrant=False)
            for part in zip(
                hidden.flatten(0, 1).split(self.chunk_tokens), targets.flatten().split(self.chunk_tokens), strict=True
            )
        ]
        nats, log_z = (torch.cat(column).view(shape) for column in zip(*parts, strict=True))
        return nats, log_z

    def _losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.token_losses(self.model.logits(hidden), targets)

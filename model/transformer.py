"""The network: tokens in, logits out. Plain torch; parallelism and precision are put on from outside.

Shapes: B batch, T positions, C d_model, V vocab.
"""

import torch
from torch import Tensor, nn

from model.attention import Attention, Context, make_context, softcap
from model.config import ModelConfig, Positions, Residual
from model.layers import mlp, residual_norm


class Block(nn.Module):
    """Attention and MLP on a residual stream, arranged as `ModelConfig.residual` says."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.residual = config.residual
        self.attention_norm = residual_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = residual_norm(config)
        self.mlp = mlp(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        match self.residual:
            case Residual.sequential:
                x = x + self.attention(self.attention_norm(x), context)
                return x + self.mlp(self.mlp_norm(x))
            case Residual.parallel:
                return x + self.attention(self.attention_norm(x), context) + self.mlp(self.mlp_norm(x))
            case Residual.post_norm:
                x = self.attention_norm(x + self.attention(x, context))
                return self.mlp_norm(x + self.mlp(x))


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position = None
        if config.positions == Positions.learned:
            assert config.max_positions is not None
            self.position = nn.Embedding(config.max_positions, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.Identity() if config.residual == Residual.post_norm else residual_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    @property
    def layers(self) -> list[Block]:
        """The blocks, with their type."""
        return list(self.blocks)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """tokens: (B, T) int64 in [0, vocab_size). Returns logits (B, T, V) in the dtype of the weights.

        segments: (B, T) integers, equal inside one document; attention then stays inside it, and learned positions
        begin anew in it. Rotary positions go on over borders, which changes nothing: they depend on distances only.
        """
        return self.logits(self.hidden(tokens, segments))

    def hidden(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) to (B, T, C): what the head is given."""
        context = make_context(self.config, tokens.shape[1], segments, tokens.device)
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(_positions(tokens, segments))
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) to (..., V)."""
        logits = self.head(hidden)
        if self.config.width_ratio != 1:
            logits = logits / self.config.width_ratio  # muP's output multiplier
        return logits if self.config.logit_softcap is None else softcap(logits, self.config.logit_softcap)


def _positions(tokens: Tensor, segments: Tensor | None) -> Tensor:
    """(B, T) or (T,): the place of each token in its document."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    if segments is None:
        return places
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values

"""The network: tokens in, logits out. Plain torch; parallelism and precision are put on from outside.

Shapes: B batch, T positions, C d_model, V vocab.
"""

from torch import Tensor, nn

from model.attention import Attention, document_mask
from model.config import ModelConfig
from model.layers import GatedMLP, RMSNorm
from model.rope import rotary_tables


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """tokens: (B, T) int64 in [0, vocab_size). Returns logits (B, T, V) in the dtype of the weights.

        segments: (B, T) integers, equal inside one document; attention then stays inside it. Positions go on over
        borders, which changes nothing: rotary attention depends on distances only.
        """
        cos, sin = rotary_tables(tokens.shape[1], self.config.head_width, self.config.rope_theta, tokens.device)
        mask = None if segments is None else document_mask(segments)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.head(self.norm(x))

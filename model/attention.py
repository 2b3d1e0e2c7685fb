"""Causal grouped-query attention. Shapes: B batch, T positions, C d_model, H query heads, K key/value heads, D
head_dim.

Head counts are inferred with -1 from the width of the projections, so that a shard with fewer heads passes through
unaware (DESIGN of tensor parallelism: layers are replaced from outside).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.rope import rotate


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over earlier positions, several query heads sharing one key/value head.

    After Ainslie et al., arXiv 2305.13245 (grouped queries).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_width
        self.q = nn.Linear(config.d_model, config.q_width, bias=False)
        self.k = nn.Linear(config.d_model, config.kv_width, bias=False)
        self.v = nn.Linear(config.d_model, config.kv_width, bias=False)
        self.o = nn.Linear(config.q_width, config.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B, T, C); cos, sin: (T, D); mask: (B, 1, T, T), True where the first position sees the second; None means
        every earlier one."""
        b, t, _ = x.shape
        q = self.q(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = self.v(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return self.o(_attended(q, k, v, mask).transpose(1, 2).reshape(b, t, -1))


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, T, D). With a mask, keys and values are repeated for their groups: the fused CUDA kernels that take a mask
    take no groups, and what is left without them keeps all (H, T, T) scores."""
    groups = q.shape[1] // k.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    if groups > 1:
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def document_mask(segments: Tensor) -> Tensor:
    """(B, T) segment numbers to the mask (B, 1, T, T) with which no position sees another segment or a later position.

    Simple and quadratic in memory; it keeps attention from its flash kernel.
    """
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return same.tril()

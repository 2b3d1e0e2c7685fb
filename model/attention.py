"""Causal grouped-query attention. Shapes: B batch, T positions, C d_model, H query heads, K key/value heads, D
head_dim.

Head counts are inferred with -1 from the width of the projections, and everything between the projections is in one
module, `core`: so a shard with fewer heads passes through unaware, and sequence parallelism can put its exchange round
the core from outside.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Bias, Init, ModelConfig, Positions
from model.layers import RMSNorm
from model.rope import rotary_tables, rotate


class Context(NamedTuple):
    """What every layer's attention shares in one forward."""

    cos: Tensor | None
    """(T, R) fp32; None without rotary positions"""
    sin: Tensor | None
    mask: Tensor | None
    """(B or 1, 1, T, T), True where the first position sees the second; None means itself and all earlier ones"""


def make_context(config: ModelConfig, n_positions: int, segments: Tensor | None, device: torch.device) -> Context:
    """segments: (B, T) integers, equal inside one document, or None for one document a row."""
    cos, sin = None, None
    if config.positions == Positions.rotary:
        cos, sin = rotary_tables(n_positions, config, device)
    return Context(cos, sin, attention_mask(n_positions, segments, config.sliding_window, device))


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over earlier positions, several query heads sharing one key/value head.

    After Ainslie et al., arXiv 2305.13245 (grouped queries).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_width
        bias = config.bias != Bias.none
        self.q = nn.Linear(config.d_model, config.q_width, bias=bias)
        self.k = nn.Linear(config.d_model, config.kv_width, bias=bias)
        self.v = nn.Linear(config.d_model, config.kv_width, bias=bias)
        self.o = nn.Linear(config.q_width, config.d_model, bias=config.bias == Bias.all)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.core: nn.Module = AttentionCore(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        b, t, _ = x.shape
        q = self.q_norm(self.q(x).view(b, t, -1, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self.k(x).view(b, t, -1, self.head_dim)).transpose(1, 2)  # (B, K, T, D)
        v = self.v(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        return self.o(self.core(q, k, v, context).transpose(1, 2).reshape(b, t, -1))


class AttentionCore(nn.Module):
    """(B, H, T, D), (B, K, T, D), (B, K, T, D) to (B, H, T, D): positions, scores, softmax, values. No parameters."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        # muP scales by 1/D (Yang et al., arXiv 2203.03466, definition 4.1): q and k grow alike when they have learned
        self.scale = 1 / config.head_width if config.init == Init.mup else 1 / math.sqrt(config.head_width)
        self.softcap = config.attention_softcap

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        if context.cos is not None and context.sin is not None:
            q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
        if self.softcap is not None:
            return _softcapped(q, k, v, context.mask, self.scale, self.softcap)
        return _attended(q, k, v, context.mask, self.scale)


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B, H, T, D). With a mask, keys and values are repeated for their groups: the fused CUDA kernels that take a mask
    take no groups, and what is left without them keeps all (H, T, T) scores."""
    groups = q.shape[1] // k.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups > 1)
    k, v = _repeated(k, groups), _repeated(v, groups)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float) -> Tensor:
    """The same by hand, for no fused kernel of torch caps scores: keeps all (B, H, T, T) of them."""
    groups = q.shape[1] // k.shape[1]
    k, v = _repeated(k, groups), _repeated(v, groups)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = softcap((q @ k.transpose(-2, -1)).float() * scale, cap).masked_fill(~mask, -math.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def _repeated(x: Tensor, groups: int) -> Tensor:
    return x.repeat_interleave(groups, dim=1) if groups > 1 else x


def softcap(x: Tensor, cap: float) -> Tensor:
    """x, pressed smoothly into (-cap, cap)."""
    return cap * torch.tanh(x / cap)


def attention_mask(n: int, segments: Tensor | None, window: int | None, device: torch.device) -> Tensor | None:
    """(B or 1, 1, T, T), or None where plain causality is all there is.

    Simple and quadratic in memory; it keeps attention from its flash kernel.
    """
    if segments is None and (window is None or window >= n):
        return None
    seen = torch.ones(n, n, dtype=torch.bool, device=device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    if segments is None:
        return seen[None, None]
    return (segments[:, None, :, None] == segments[:, None, None, :]) & seen

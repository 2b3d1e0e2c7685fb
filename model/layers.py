"""Norms and MLPs. Shapes: B batch, T positions, C d_model, F d_ff."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Bias, Mlp, ModelConfig, Norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32 (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


def residual_norm(config: ModelConfig) -> nn.Module:
    """The norm of the residual stream."""
    match config.norm:
        case Norm.rmsnorm:
            return RMSNorm(config.d_model, config.norm_eps)
        case Norm.layernorm:
            return nn.LayerNorm(config.d_model, config.norm_eps, bias=config.bias == Bias.all)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), called SwiGLU (Shazeer, arXiv 2002.05202). (B, T, C) to (B, T, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        bias = config.bias == Bias.all
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=bias)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PlainMLP(nn.Module):
    """down(gelu(up(x))) (Hendrycks and Gimpel, arXiv 1606.08415). (B, T, C) to (B, T, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        bias = config.bias == Bias.all
        self.up = nn.Linear(config.d_model, config.d_ff, bias=bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=bias)
        self.approximate = "tanh" if config.mlp == Mlp.gelu_tanh else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


def mlp(config: ModelConfig) -> nn.Module:
    return GatedMLP(config) if config.mlp == Mlp.swiglu else PlainMLP(config)

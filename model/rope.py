"""Rotary positions (Su et al., RoFormer, arXiv 2104.09864), in the half-split layout that Hugging Face's Llama uses."""

import torch
from torch import Tensor


def rotary_tables(n_positions: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each (T, D) fp32. Made anew for each forward: tables kept as buffers would be rounded to bf16."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    angles = torch.outer(torch.arange(n_positions, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i+D/2}) of x (B, H, T, D) by the angle of its position."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)

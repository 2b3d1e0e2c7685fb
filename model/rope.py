"""Rotary positions (Su et al., RoFormer, arXiv 2104.09864), in the half-split layout that Hugging Face's Llama uses,
and the four ways in use of stretching them to longer contexts. Without stretching, dimension i of D / 2 turns by
f = theta^(-2i/D) radians a position.

  linear   f / factor (Chen et al., arXiv 2306.15595)
  ntk      theta becomes theta · factor^(D / (D - 2)), so that the slowest dimension is stretched in full and the
           fastest not at all (Peng et al., YaRN, arXiv 2309.00071, section 3.1)
  yarn     f where a dimension turns often over the original context, f / factor where seldom, a ramp between them, and
           cos and sin times 0.1 ln(factor) + 1 (the same, sections 3.2 to 3.4)
  llama3   the same with a ramp in the number of turns, without the factor on cos and sin (Llama 3.1's published code)
"""

import math

import torch
from torch import Tensor

from model.config import ModelConfig, RopeScaling, Scaling


def rotary_tables(n_positions: int, config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each (T, R) fp32 with R = rotary_width. Made anew for each forward: tables kept as buffers would be
    rounded to bf16."""
    frequencies = rotary_frequencies(config.rotary_width, config.rope_theta, config.rope_scaling, device)
    angles = torch.outer(torch.arange(n_positions, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    size = _magnitude(config.rope_scaling)
    return angles.cos() * size, angles.sin() * size


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i+R/2}) of the first R columns of x (B, H, T, D) by the angle of its position."""
    width = cos.shape[-1]
    turning, still = x[..., :width], x[..., width:]
    first, second = turning.float().chunk(2, dim=-1)
    turned = turning.float() * cos + torch.cat((-second, first), dim=-1) * sin
    if not still.shape[-1]:
        return turned.to(x.dtype)
    # in the order (B, T, H, D) of the projections: attention gives its output in the order of q, and is spared a copy
    return torch.cat((turned.to(x.dtype).transpose(1, 2), still.transpose(1, 2)), dim=-1).transpose(1, 2)


def rotary_frequencies(width: int, theta: float, scaling: RopeScaling, device: torch.device | str = "cpu") -> Tensor:
    """(R / 2,) fp32, radians per position."""
    steps = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    match scaling.kind:
        case Scaling.none:
            return 1.0 / theta**steps
        case Scaling.linear:
            return 1.0 / theta**steps / scaling.factor
        case Scaling.ntk:
            return 1.0 / (theta * scaling.factor ** (width / (width - 2))) ** steps
        case Scaling.yarn:
            return _blend(1.0 / theta**steps, _yarn_share(width, theta, scaling, device), scaling.factor)
        case Scaling.llama3:
            frequencies = 1.0 / theta**steps
            return _blend(frequencies, _llama3_share(frequencies, scaling), scaling.factor)


def _blend(frequencies: Tensor, share: Tensor, factor: float) -> Tensor:
    """share 1 leaves a frequency alone, share 0 stretches it in full."""
    return frequencies * share + frequencies / factor * (1 - share)


def _yarn_share(width: int, theta: float, scaling: RopeScaling, device: torch.device | str) -> Tensor:
    """1 up to the dimension that turns beta_fast times over the original context, 0 from that of beta_slow."""

    def dimension(turns: float) -> float:
        return width * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, device=device, dtype=torch.float32) - low) / max(high - low, 0.001)
    return 1 - ramp.clamp(0, 1)


def _llama3_share(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def _magnitude(scaling: RopeScaling) -> float:
    return 0.1 * math.log(scaling.factor) + 1 if scaling.kind == Scaling.yarn else 1.0

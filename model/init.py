"""Initial weights: the same numbers whatever the device, the order or the layout. Three recipes, `ModelConfig.init`:

| parameter              | gpt2                | scaled                     | mup (m = d_model / mup_base_width) |
|------------------------|---------------------|----------------------------|------------------------------------|
| norm weights           | 1                   | 1                          | 1                                  |
| biases                 | 0                   | 0                          | 0                                  |
| embedding, positions   | std                 | 1 / sqrt(d_model)          | std                                |
| attention.o, mlp.down  | std / sqrt(2 L)     | 1 / sqrt(fan_in) / sqrt(2 L) | std / sqrt(m) / sqrt(2 L)        |
| other hidden matrices  | std                 | 1 / sqrt(fan_in)           | std / sqrt(m)                      |
| untied head            | std                 | 1 / sqrt(fan_in)           | std (its output is divided by m)   |

Normal distributions; std = init_std, L = n_layers. The factor 1 / sqrt(2 L) keeps the residual stream from growing with
depth (GPT-2 report, section 2.3).

muP: Yang et al., arXiv 2203.03466, table 8, the form in which embedding and head may be one matrix. Everything counts
from the base, so that at m = 1 muP *is* gpt2: the output multiplier is 1/m (model/transformer.py), scores are
multiplied by sqrt(base head_dim) / head_dim (`ModelConfig.attention_scale`). Learning rates, decay and epsilon that
belong to it: train/optim.py.
"""

import hashlib
import math

import torch
from torch import Tensor

from model.config import Init, ModelConfig
from model.transformer import Transformer


def initialize(model: Transformer, seed: int) -> None:
    """Fills every parameter in place. Raises no error and leaves the global random state alone."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(initial_value(name, parameter.shape, model.config, seed))


def initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The whole initial tensor of the parameter called `name`, fp32 on the CPU.

    Drawn from a generator of its own, keyed by seed and name, so that a rank that holds a slice can draw the same
    tensor as a rank that holds all of it.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    return torch.randn(shape, generator=generator) * initial_std(name, config)


def initial_std(name: str, config: ModelConfig) -> float:
    """Standard deviation of the matrix called `name`: a row of the table above."""
    depth = math.sqrt(2 * config.n_layers) if name.endswith(("attention.o.weight", "mlp.down.weight")) else 1.0
    match config.init:
        case Init.gpt2:
            return config.init_std / depth
        case Init.scaled:
            return 1 / math.sqrt(_fan_in(name, config)) / depth
        case Init.mup:
            return config.init_std / depth / (math.sqrt(config.width_ratio) if is_hidden_matrix(name) else 1.0)


def is_hidden_matrix(name: str) -> bool:
    """Whether both sides of the parameter called `name` grow with the width: q, k, v, o, gate, up, down."""
    return name.startswith("blocks.") and name.endswith(".weight") and not name.endswith("norm.weight")


def _fan_in(name: str, config: ModelConfig) -> int:
    if name.endswith("attention.o.weight"):
        return config.q_width
    return config.d_ff if name.endswith("mlp.down.weight") else config.d_model

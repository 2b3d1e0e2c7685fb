"""Initial weights: one function, the same numbers whatever the device, the order or the layout.

| parameter                         | value                                      |
|-----------------------------------|--------------------------------------------|
| norm weights                      | 1                                          |
| attention.o, mlp.down             | normal, std = init_std / sqrt(2 n_layers)  |
| every other matrix                | normal, std = init_std                     |

The depth scaling keeps the residual stream from growing with depth (GPT-2 report, section 2.3).
"""

import hashlib
import math

import torch
from torch import Tensor

from model.config import ModelConfig
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
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    std = config.init_std
    if name.endswith(("attention.o.weight", "mlp.down.weight")):
        std /= math.sqrt(2 * config.n_layers)
    return torch.randn(shape, generator=generator) * std

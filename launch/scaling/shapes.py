"""Parameters and FLOPs of published networks from their shapes, in plain numpy: what the tables are counted by.

Attention is heads x head size wide, which is not always the width of the network: six of Chinchilla's fifty differ.
"""

import numpy as np

from launch.scaling.minimum import Floats

CHINCHILLA_VOCABULARY = 32_000
"""Hoffmann et al. 2022 (arXiv 2203.15556), appendix: SentencePiece of 32,000"""
MPT = {
    "125m": (12, 768),
    "350m": (24, 1024),
    "760m": (24, 1536),
    "1b": (24, 2048),
    "3b": (32, 2560),
    "7b": (32, 4096),
    "13b": (40, 5120),
    "30b": (48, 7168),
    "65b": (80, 8192),
    "70b": (80, 8192),
}
"""(layers, width) of mosaicml/llm-foundry's networks, scripts/train/yamls/pretrain"""


def chinchilla_parameters(width: Floats, mlp: Floats, head: Floats, heads: Floats, layers: Floats) -> Floats:
    """Five matrices of attention (the fifth for relative positions), a plain MLP, one embedding."""
    return layers * (5 * width * head * heads + 2 * width * mlp) + CHINCHILLA_VOCABULARY * width


def open_lm_parameters(width: Floats, layers: Floats, vocabulary: Floats) -> Floats:
    """Gated MLP of 256·ceil(8d/3/256), embedding and head apart, norms with a weight and no bias."""
    mlp = 256 * np.ceil(8 * width / 3 / 256)
    return 2 * vocabulary * width + layers * (4 * width**2 + 3 * width * mlp + 2 * width) + width


def mpt_flops_per_token(model: str, params: float, seq_len: float) -> float | None:
    """6N + 12·layers·width·T (PaLM, arXiv 2204.02311, appendix B); None for another network."""
    shape = MPT.get(model.lower())
    return None if shape is None else 6 * params + 12 * shape[0] * shape[1] * seq_len

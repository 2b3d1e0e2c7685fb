"""Real networks to choose among: of every width, as deep as the sampled shapes would be, and such that they can be cut.

In: a network of the kind that is to be trained (only its proportions count), and how depth follows width. Out: shapes
with parameters and FLOPs by exact count. Heads keep their width, and queries share keys in the same groups; the MLP
keeps its proportion to the width, in whole heads and whole parts of tensor parallelism.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from conf.errors import ConfigError
from launch.scaling.rows import Convention, Counting
from model.arithmetic import count_parameters, flops_per_token
from model.config import ModelConfig
from train.config import TrainConfig
from train.layout_problems import layout_problems

WIDEST = 65_536
FINEST = 1.015
"""widths closer than this ratio are not told apart: between them the loss is flat"""
_DEPTHS = (0.8, 0.9, 1.0, 1.12, 1.25)
"""of the depth that the rule says: sizes between those of two widths"""


@dataclass(frozen=True)
class DepthRule:
    """n_layers = scale · d_model^power"""

    scale: float
    power: float
    source: str

    def layers(self, width: int) -> float:
        return max(1.0, self.scale * width**self.power)


@dataclass(frozen=True)
class Shape:
    model: ModelConfig
    n: float
    """as the fit counts"""
    flops_per_token: int
    """in the fit's convention"""
    flops_causal: int
    """of a token"""


def depth_rule(sampled: Sequence[tuple[int, int]], aspect: float | None) -> DepthRule:
    """sampled: (d_model, n_layers) of the rows. Depth is a power of width: of one sampled width, in proportion to it.

    Raises ConfigError where neither says anything.
    """
    if aspect is not None:
        return DepthRule(1 / aspect, 1.0, f"shape.aspect={aspect:g}")
    if not sampled:
        raise ConfigError(
            [
                "the rows do not say which shapes they are of (d_model, n_layers), so nothing says how deep a network "
                "of some width should be: give shape.aspect=D_MODEL/N_LAYERS, such as shape.aspect=64"
            ]
        )
    shapes = sorted(set(sampled))
    widths, depths = np.log(np.array(shapes, dtype=np.float64)).T
    if np.ptp(widths) < 1e-9:
        return DepthRule(float(np.exp(np.mean(depths - widths))), 1.0, "as deep for its width as the sampled ones")
    power, at_one = np.polyfit(widths, depths, 1)
    return DepthRule(
        float(np.exp(at_one)), float(power), f"depth ~ width^{power:.2f}, as of {len(shapes)} sampled shapes"
    )


def shapes_of(base: TrainConfig, rule: DepthRule, counting: Counting, convention: Convention) -> list[Shape]:
    """From the smallest on. Raises ConfigError where none can be cut as base.parallel asks."""
    found: dict[tuple[int, int], Shape] = {}
    refused: list[str] = []
    for model in _networks(base, rule):
        problems = model.problems() or layout_problems(replace(base, model=model))
        if problems:
            refused = refused or problems
        else:
            found[model.d_model, model.n_layers] = _counted(model, base.data.seq_len, counting, convention)
    if not found:
        widths = "no width of whole heads" if not refused else f"no width up to {WIDEST:_} can be cut"
        raise ConfigError([f"{widths}: {problem}" for problem in refused or ["model.head_dim"]])
    return sorted(found.values(), key=lambda shape: (shape.n, shape.model.d_model))


def _networks(base: TrainConfig, rule: DepthRule) -> Iterator[ModelConfig]:
    for width in _widths(base):
        layers = rule.layers(width)
        for n_layers in sorted({max(1, round(layers * factor)) for factor in _DEPTHS}):
            yield _network(base, width, n_layers)


def _widths(base: TrainConfig) -> Iterator[int]:
    """Of whole heads in whole groups, and as many as the ranks of a row can share."""
    unit, last = _unit(base), 0.0
    for width in range(unit, WIDEST + 1, unit):
        if width >= last * FINEST:
            yield width
            last = float(width)


def _unit(base: TrainConfig) -> int:
    """Least width whose number of heads is a whole number of groups, and whose keys the ranks of a row can share. Keys
    of a single head stay single."""
    model, ranks = base.model, base.parallel.tp_size * base.parallel.sp_size
    step = 1 if model.n_kv_heads == 1 else model.n_heads // model.n_kv_heads * ranks
    # width · q_width / (d_model · head_width) heads: a multiple of `step`
    return math.lcm(step * model.head_width * model.d_model, model.q_width) // model.q_width


def _network(base: TrainConfig, width: int, n_layers: int) -> ModelConfig:
    model = base.model
    heads = width * model.q_width // (model.d_model * model.head_width)
    keys = 1 if model.n_kv_heads == 1 else heads * model.n_kv_heads // model.n_heads
    part = math.lcm(model.head_width, base.parallel.tp_size)
    mlp = max(1, round(width * model.d_ff / model.d_model / part)) * part
    return replace(model, d_model=width, n_layers=n_layers, n_heads=heads, n_kv_heads=keys, d_ff=mlp)


def _counted(model: ModelConfig, seq_len: int, counting: Counting, convention: Convention) -> Shape:
    counts = count_parameters(model)
    full, causal = flops_per_token(model, seq_len)
    flops = full if convention == Convention.full else causal
    match counting:
        case Counting.matmul:
            n = float(counts.n_params_matmul)
        case Counting.total:
            n = float(counts.n_params)
        case Counting.non_embedding:
            n = float(counts.n_params_non_embedding)
        case Counting.compute:
            n = flops / 6
    return Shape(model, n, flops, causal)


def words_of(model: ModelConfig) -> list[str]:
    """The overrides that make the shape of this network from any of its kind."""
    keys = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")
    return [f"model.{key}={getattr(model, key)}" for key in keys]

"""The learning rate, batch and warm-up of a cell, from its size and length: one tuned setting is wrong for all others.

Pure functions of numbers. What fixed ones do is measured in Porian et al. 2024 (arXiv 2406.19146): a warm-up longer
than the small runs moves the exponent of N* from .60 to .70, one rate and batch for all from .50 to .57.

| rule     | learning rate                        | tokens a step                   | N is                        |
|----------|--------------------------------------|---------------------------------|-----------------------------|
| fixed    | as configured                        | as configured                   |                             |
| mup      | as configured: the model scales it   | as configured                   | (arXiv 2203.03466)          |
| porian   | .0047 (N / 108e6)^(-1/3)             | 160 x 2048 (N / 108e6)^(2/3)    | what matrices hold          |
| step_law | 1.79 N^-.713 D^.307                  | .58 D^.571                      | without embeddings and head |

porian: section 5 of that paper, with beta2 = .99 up to 128 x 2048 tokens a step; step_law: Li et al. 2025 (arXiv
2503.04715).
"""

from dataclasses import dataclass

from launch.sweep.config import Rule
from model.config import Init

_PORIAN_N = 108e6
_PORIAN_SMALL_BATCH = 128 * 2048


@dataclass(frozen=True)
class Setting:
    peak_lr: float
    tokens_per_step: float
    """as the rule has it; a batch is whole sequences"""
    beta2: float


def setting(rule: Rule, base: Setting, n_matmul: int, n_non_embedding: int, tokens: int) -> Setting:
    """Of a cell; `base` is what is configured."""
    match rule:
        case Rule.fixed | Rule.mup:
            return base
        case Rule.porian:
            size = n_matmul / _PORIAN_N
            batch = 160 * 2048 * size ** (2 / 3)
            beta2 = 0.99 if batch <= _PORIAN_SMALL_BATCH else base.beta2
            return Setting(0.0047 * size ** (-1 / 3), batch, beta2)
        case Rule.step_law:
            rate = 1.79 * n_non_embedding**-0.713 * tokens**0.307
            return Setting(rate, 0.58 * tokens**0.571, base.beta2)


def rule_problems(rule: Rule, init: Init) -> list[str]:
    """Where two rules would scale the rate, or none."""
    if rule == Rule.mup and init != Init.mup:
        return [
            f"sweep.rule=mup, but model.init={init}: nothing would scale the learning rate; set model.init=mup, "
            "model.mup_base_width and model.mup_base_head_dim, or say sweep.rule=fixed"
        ]
    if rule in (Rule.porian, Rule.step_law) and init == Init.mup:
        return [f"sweep.rule={rule} and model.init=mup would both scale the learning rate: take one of the two"]
    return []


def depends_on_length(rule: Rule) -> bool:
    """Runs of one size and several lengths then share no beginning."""
    return rule == Rule.step_law


def warmup(per_param: float | None, configured: int, n_matmul: int, shortest: int, max_ratio: float) -> int:
    """Tokens of warm-up of all runs of a size, the shortest of which is `shortest` long."""
    asked = configured if per_param is None else per_param * n_matmul
    return int(min(asked, max_ratio * shortest))


def sequences(tokens_per_step: float, seq_len: int, ranks: int) -> int:
    """The nearest batch that all ranks can share."""
    return max(1, round(tokens_per_step / seq_len / ranks)) * ranks


def micro_batch(per_rank: int, at_most: int) -> int:
    """The largest that divides what a rank has of a step."""
    return max(size for size in range(1, min(per_rank, at_most) + 1) if per_rank % size == 0)

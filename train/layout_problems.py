"""Whether a network and a row length can be cut as the parallel layout asks. Numbers in, sentences out; no torch.

Tensor parallelism (tp) gives each rank whole heads, columns of the MLP and rows of the vocabulary; Ulysses (sp) divides
the heads of a tensor-parallel rank once more, and the positions of a row.
"""

from model.config import ModelConfig, context_problems
from train.config import TrainConfig


def layout_problems(config: TrainConfig) -> list[str]:
    """All of a configuration's, none if its layout works. Its model has no problems of its own."""
    parallel = config.parallel
    return [
        *context_problems(config.model, config.data.seq_len),
        *cutting_problems(
            config.model,
            config.data.seq_len,
            tp_size=parallel.tp_size,
            sp_size=parallel.sp_size,
            sequence_parallel_norms=parallel.sequence_parallel_norms,
        ),
    ]


def cutting_problems(
    model: ModelConfig, seq_len: int, *, tp_size: int, sp_size: int, sequence_parallel_norms: bool
) -> list[str]:
    """What cannot be cut: all of it, with the nearest sizes that can."""
    found = [
        f"parallel.{key}={size} must be at least 1"
        for key, size in (("tp_size", tp_size), ("sp_size", sp_size))
        if size < 1
    ]
    if found:
        return found
    found += _head_problems(model, tp_size, sp_size)
    cut_by_tp = [
        ("model.d_ff", model.d_ff, "columns of the MLP"),
        ("model.vocab_size", model.vocab_size, "rows of the vocabulary (ids that no text uses may pad it)"),
    ]
    for key, value, what in cut_by_tp:
        if value % tp_size:
            sizes = str(-(-value // tp_size) * tp_size) if key == "model.vocab_size" else _nearest(value, tp_size)
            found.append(
                f"{key}={value} does not divide by parallel.tp_size={tp_size}: each rank takes as many {what}; "
                f"nearest sizes {sizes}"
            )
    parts = sp_size * (tp_size if sequence_parallel_norms else 1)
    if seq_len % parts:
        also = f" x parallel.tp_size={tp_size}" if parts != sp_size else ""
        remedy = ", or parallel.sequence_parallel_norms=false" if also and seq_len % sp_size == 0 else ""
        found.append(
            f"data.seq_len={seq_len} does not divide by parallel.sp_size={sp_size}{also} = {parts}: each rank takes as "
            f"many positions; nearest lengths {_nearest(seq_len, parts)}{remedy}"
        )
    return found


def _head_problems(model: ModelConfig, tp_size: int, sp_size: int) -> list[str]:
    """n_heads is a multiple of n_kv_heads, so it divides where n_kv_heads does."""
    ranks = tp_size * sp_size
    if model.n_kv_heads % ranks == 0:
        return []
    fitting = [k for k in range(ranks, model.n_heads + 1, ranks) if model.n_heads % k == 0]
    heads = f"model.n_kv_heads of {_listed(fitting)}" if fitting else f"model.n_heads={_nearest(model.n_heads, ranks)}"
    return [
        f"model.n_kv_heads={model.n_kv_heads} (model.n_heads={model.n_heads}) does not divide by "
        f"parallel.tp_size={tp_size} x parallel.sp_size={sp_size} = {ranks}: each rank needs whole key/value heads; "
        f"{heads} would, or tp_size x sp_size of {_listed(_divisors(model.n_kv_heads))}"
    ]


def _nearest(value: int, factor: int) -> str:
    below, above = value // factor * factor, -(-value // factor) * factor
    return f"{below} and {above}" if below else str(above)


def _divisors(value: int) -> list[int]:
    return [n for n in range(1, value + 1) if value % n == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + (" or " if len(numbers) > 1 else "") + str(numbers[-1])

"""What a network costs, from its shape alone: parameters, FLOPs, bytes. Python integers, no torch.

Conventions (one place for the whole project):
  * `n_params` counts every stored number once (a tied head is not stored twice); `n_params_matmul` counts what a token
    is multiplied with (head included, look-ups not); `n_params_non_embedding` leaves embedding, positions and head out
    (Kaplan et al., arXiv 2001.08361, section 2.1).
  * FLOPs per token of training = 6 per matmul parameter (2 forward, 4 backward) plus the attention scores and values,
    12·n_layers·n_heads·head_dim for each pair of a query and a key. `flops_full` counts the full square of T x T pairs
    (PaLM, arXiv 2204.02311, appendix B; T x window where that is less), `flops_causal` the pairs that are attended,
    those on the diagonal as halves: a causal row without window is then half of its square. Norms, softcaps, biases,
    rotations, recompute, padding and the optimizer never count.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from model.config import Bias, Mlp, ModelConfig, Norm, Positions, Residual


@dataclass(frozen=True)
class ParameterCounts:
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int
    n_params_replicated: int
    """of n_params, what tensor parallelism cannot cut: norms, positions, and the biases of o and down"""
    n_params_hidden: int
    """of n_params, the matrices of blocks: what Muon updates"""

    def of_rank(self, tp_size: int) -> int:
        """Stored on each of `tp_size` tensor-parallel ranks."""
        return self.n_params_replicated + -(-(self.n_params - self.n_params_replicated) // tp_size)


def count_parameters(config: ModelConfig) -> ParameterCounts:
    c, f, q, kv = config.d_model, config.d_ff, config.q_width, config.kv_width
    into_mlp = 2 if config.mlp == Mlp.swiglu else 1
    matrices = config.n_layers * (2 * c * (q + kv) + (into_mlp + 1) * c * f)
    column_biases = (q + 2 * kv) * (config.bias != Bias.none) + into_mlp * f * (config.bias == Bias.all)
    row_biases = 2 * c * (config.bias == Bias.all)
    norm = c * (2 if config.norm == Norm.layernorm and config.bias == Bias.all else 1)
    final_norm = norm * (config.residual != Residual.post_norm)
    small = row_biases + 2 * norm + 2 * config.head_width * config.qk_norm
    positions = c * (config.max_positions or 0)
    embedding = config.vocab_size * c
    inside = matrices + config.n_layers * (column_biases + small) + final_norm
    return ParameterCounts(
        n_params=inside + embedding * (1 if config.tie_embeddings else 2) + positions,
        n_params_matmul=matrices + embedding,
        n_params_non_embedding=inside,
        n_params_replicated=config.n_layers * small + final_norm + positions,
        n_params_hidden=matrices,
    )


def attended_pairs(lengths: Iterable[int], window: int | None = None) -> int:
    """Pairs of a query and a key that see each other in causal documents of these lengths (tokens).

    window: how many positions a query sees, itself included; None means all earlier ones of its document.
    """
    pairs = 0
    for length in lengths:
        seen = length if window is None else min(window, length)
        pairs += seen * (seen + 1) // 2 + (length - seen) * seen
    return pairs


def square_pairs(lengths: Iterable[int], window: int | None = None) -> int:
    """The same without causality: the full square of each document, or its length times the window if that is less."""
    return sum(length * (length if window is None else min(window, length)) for length in lengths)


def training_flops(config: ModelConfig, n_tokens: int, n_pairs: int) -> int:
    """flops_causal of so many tokens with so many attended pairs (see `attended_pairs`), forward and backward."""
    return 6 * count_parameters(config).n_params_matmul * n_tokens + _pair_flops(config) * (2 * n_pairs - n_tokens) // 2


def square_flops(config: ModelConfig, n_tokens: int, n_square: int) -> int:
    """flops_full of so many tokens with so many pairs of full squares (see `square_pairs`), forward and backward."""
    return 6 * count_parameters(config).n_params_matmul * n_tokens + _pair_flops(config) * n_square


def flops_per_token(config: ModelConfig, seq_len: int) -> tuple[int, int]:
    """(flops_full, flops_causal) of one token of rows of one document, forward and backward. The second is rounded
    down to a whole FLOP."""
    span = min(config.sliding_window or seq_len, seq_len)
    full = 6 * count_parameters(config).n_params_matmul + _pair_flops(config) * span
    return full, training_flops(config, seq_len, attended_pairs([seq_len], span)) // seq_len


def _pair_flops(config: ModelConfig) -> int:
    return 12 * config.n_layers * config.q_width


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one device that live for the whole run."""

    weights: int
    gradients: int
    optimizer: int
    """master weights, which DeepSpeed keeps in every precision, and the moments: two of AdamW, one of Muon"""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def state_bytes(n_params: int, precision: str, zero_stage: int, n_shards: int, *, one_moment: int = 0) -> StateBytes:
    """Bytes of weights, gradients and optimizer states on one rank that stores or shares `n_params` of them (see
    `ParameterCounts.of_rank`), shared out over `n_shards` ranks (ZeRO, arXiv 1910.02054, section 3).

    precision: fp32 (DeepSpeed keeps masters beside the weights here too), bf16 (with fp32 masters and fp32 gradient
    sums), bf16_states (2 bytes for everything). Stage 1 shards the optimizer, stage 2 the gradients too, stage 3 the
    weights too. Padding of the shards to equal length is not counted. one_moment: how many of the parameters have one
    moment only.
    """
    weight, gradient, optimizer = {"fp32": (4, 4, 12), "bf16": (2, 4, 12), "bf16_states": (2, 2, 6)}[precision]
    shard = -(-n_params // n_shards)
    saved = optimizer // 3 * -(-one_moment // (n_shards if zero_stage >= 1 else 1))
    return StateBytes(
        weights=weight * (shard if zero_stage >= 3 else n_params),
        gradients=gradient * (shard if zero_stage >= 2 else n_params),
        optimizer=optimizer * (shard if zero_stage >= 1 else n_params) - saved,
    )


def activation_bytes(
    config: ModelConfig,
    micro_batch_size: int,
    seq_len: int,
    element_bytes: int,
    *,
    masked: bool = False,
    recompute: str = "none",
    by_hand: bool = False,
    norm_shards: int = 1,
    sp_size: int = 1,
) -> int:
    """Bytes that autograd keeps from forward to backward, run eagerly, the loss left out (see `logit_bytes`).

    masked: True if rows hold several documents with masks between them. recompute: none; full, where of a block only
    its input is kept; selective, where the results of matrix products and of attention are kept too. With either, the
    block that is run again at the time is counted in full. by_hand: attention is torch's unfused one, which keeps all
    probabilities. What each module keeps is written at its function below.

    On one rank of several: `config` is its own share of the network; norm_shards ranks run the norms, and keep the
    residual stream, each for its own positions, but the result of a norm is gathered; sp_size ranks share out every
    row (Ulysses), each with some of the heads for all of it.
    """
    n_positions, element, c = micro_batch_size * seq_len // sp_size, element_bytes, config.d_model
    norm = element * c + -(-_norm_bytes(config, element) // norm_shards)
    shares_input = config.residual == Residual.parallel and (config.norm == Norm.layernorm or element == 4)
    inside = 2 * norm - shares_input * element * c // norm_shards + _mlp_bytes(config, element)
    attention = _attention_bytes(config, seq_len, element, masked, by_hand, sp_size)
    block = n_positions * (inside + attention)
    if not masked and has_mask(config, seq_len, masked) and not by_hand:  # one mask for all rows of the micro-batch
        block += seq_len**2 * (element if config.attention_softcap is None else 1)
    outside = n_positions * (element * c if config.residual == Residual.post_norm else norm)
    outside += 2 * 4 * seq_len * config.rotary_width * (config.positions == Positions.rotary)  # cos and sin
    if recompute == "none":
        return config.n_layers * block + outside
    kept = element * c // norm_shards + (recompute == "selective") * _product_bytes(config, seq_len, element, by_hand)
    return config.n_layers * n_positions * kept + outside + block


def has_mask(config: ModelConfig, seq_len: int, masked: bool) -> bool:
    """True unless attention is plainly causal and a kernel's own mask will do."""
    windowed = config.sliding_window is not None and config.sliding_window < seq_len
    return masked or windowed or config.attention_softcap is not None


def _product_bytes(config: ModelConfig, seq_len: int, element: int, by_hand: bool) -> int:
    """Per position: what q, k, v, o and the MLP's matrices give, and attention (its scores, where it is by hand)."""
    into_mlp = 2 if config.mlp == Mlp.swiglu else 1
    widths = 2 * config.q_width + 2 * config.kv_width + 2 * config.d_model + into_mlp * config.d_ff
    of_head = 4 if config.attention_softcap is None else element * seq_len
    return element * widths + config.n_heads * (4 * seq_len if by_hand else of_head)


def _norm_bytes(config: ModelConfig, element: int) -> int:
    """Per position, beside the result. RMSNorm: fp32 input, 1 / rms, normalised input. LayerNorm: input, mean, 1 /
    deviation."""
    if config.norm == Norm.rmsnorm:
        return config.d_model * (4 + element) + 4
    return config.d_model * element + 2 * element


def _mlp_bytes(config: ModelConfig, element: int) -> int:
    """Per position: gate, silu(gate), up and their product; or up and gelu(up)."""
    return config.d_ff * element * (4 if config.mlp == Mlp.swiglu else 2)


def _attention_bytes(config: ModelConfig, seq_len: int, element: int, masked: bool, by_hand: bool, sp_size: int) -> int:
    """Per position: q, k and v as the scores are made of them, the output; before them, with QK-norm, what that norm
    keeps. A fused kernel keeps one fp32 number for each head, and its mask as numbers; capped scores are kept whole,
    as tanh, as probabilities in fp32 and in the dtype of the values. torch's unfused kernel keeps queries, repeated
    keys and values, and probabilities, all in fp32, and no mask. Every rank of a row has the whole mask."""
    q, kv, heads = config.q_width, config.kv_width, config.n_heads
    repeats = has_mask(config, seq_len, masked)  # then keys and values are repeated for their groups
    norms = ((4 + element) * (q + kv) + 4 * (heads + config.n_kv_heads)) * config.qk_norm
    operands = element * (q + 2 * (q if repeats else kv))
    output, masks = element * q, masked * seq_len * sp_size
    if config.attention_softcap is not None:
        scores = heads * seq_len * (4 + (4 if element == 4 else 4 + element))
        return norms + operands + output + scores + masks
    if by_hand:
        return norms + 4 * 3 * q + output + 4 * heads * seq_len
    exchanged = element * _exchanged_width(config, repeats) * (sp_size > 1)
    return norms + operands + output + exchanged + 4 * heads + element * masks


def _exchanged_width(config: ModelConfig, repeats: bool) -> int:
    """Ulysses: numbers per position that are kept besides. The output is kept before its exchange and after it; q, k
    and v come as one tensor, all of which lives as long as attention uses a part of it as it came."""
    q, kv = config.q_width, config.kv_width
    rotates, copies = config.positions == Positions.rotary, repeats and q != kv
    as_they_came = (not rotates) * q + (not rotates and not copies) * kv + (not copies) * kv
    return q + (q + 2 * kv - as_they_came if as_they_came else 0)


def logit_bytes(config: ModelConfig, n_positions: int, element_bytes: int) -> int:
    """The most that head and loss hold at once for `n_positions` of them (of a chunk, if the loss goes by chunks): the
    logits, with a softcap its tanh too, their exponentials or gradient in fp32, and with bf16 logits a second copy in
    fp32 (see model/loss.py; a GPU converts as it computes, and holds half of that copy)."""
    kept = element_bytes * (1 if config.logit_softcap is None else 2)
    return n_positions * config.vocab_size * (kept + (4 if element_bytes == 4 else 8))

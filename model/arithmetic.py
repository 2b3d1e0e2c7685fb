"""What a network costs, from its shape alone: parameters, FLOPs, bytes. Python integers, no torch.

Conventions (one place for the whole project):
  * `n_params` counts every stored number once (a tied head is not stored twice); `n_params_matmul` counts what a
  token is
    multiplied with (head included, embedding look-up not); `n_params_non_embedding` leaves embedding and head out.
  * FLOPs per token of training = 6 per matmul parameter (2 forward, 4 backward) plus the attention scores:
    12·n_layers·n_heads·head_dim·T when the full T x T square counts (PaLM, arXiv 2204.02311, appendix B), half of that
    when causality counts. Recompute, padding and the optimizer never count.
"""

from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int


def count_parameters(config: ModelConfig) -> ParameterCounts:
    c, f = config.d_model, config.d_ff
    attention = c * config.q_width + 2 * c * config.kv_width + config.q_width * c
    mlp = 3 * c * f
    matrices = config.n_layers * (attention + mlp)
    norms = config.n_layers * 2 * c + c
    embedding = config.vocab_size * c
    head = 0 if config.tie_embeddings else embedding
    return ParameterCounts(
        n_params=matrices + norms + embedding + head,
        n_params_matmul=matrices + embedding,
        n_params_non_embedding=matrices + norms,
    )


def flops_per_token(config: ModelConfig, seq_len: int) -> tuple[int, int]:
    """(flops_full, flops_causal) of one training token, forward and backward."""
    matmul = 6 * count_parameters(config).n_params_matmul
    square = 12 * config.n_layers * config.q_width * seq_len
    return matmul + square, matmul + square // 2


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one device that live for the whole run."""

    weights: int
    gradients: int
    optimizer: int
    """fp32 master weights (mixed precision only) and the two Adam moments"""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def state_bytes(n_params: int, weight_bytes: int, zero_stage: int, dp_size: int) -> StateBytes:
    """Bytes of weights, gradients and optimizer states on one of `dp_size` ranks (ZeRO, arXiv 1910.02054, section 3).

    weight_bytes: 4 for fp32 (the weights are their own masters), 2 for bf16 with fp32 masters; gradients are summed in
    fp32 either way. Stage 1 shards the optimizer, stage 2 the gradients too, stage 3 the weights too. Padding of the
    shards to equal length is not counted.
    """
    shard = -(-n_params // dp_size)
    masters = 0 if weight_bytes == 4 else 4
    return StateBytes(
        weights=weight_bytes * (shard if zero_stage >= 3 else n_params),
        gradients=4 * (shard if zero_stage >= 2 else n_params),
        optimizer=(masters + 8) * (shard if zero_stage >= 1 else n_params),
    )


def activation_bytes(config: ModelConfig, micro_batch_size: int, seq_len: int, element_bytes: int) -> int:
    """Bytes that autograd keeps from forward to backward, without recomputation, the loss left out (see `logit_bytes`).

    Per token, in elements, from what `model/transformer.py` saves: for each norm its fp32 input, the normalised
    value and
    the result; rotated q and k, v, the attention output; gate, silu(gate), up and their product. Attention scores are
    never stored (flash attention).
    """
    c, f, q, kv = config.d_model, config.d_ff, config.q_width, config.kv_width
    norm = c * (4 + 2 * element_bytes)
    block = 2 * norm + (2 * q + 2 * kv + 4 * f) * element_bytes
    return micro_batch_size * seq_len * (config.n_layers * block + norm)


def logit_bytes(config: ModelConfig, micro_batch_size: int, seq_len: int, element_bytes: int) -> int:
    """The logits as the head gives them, their fp32 log-softmax, and its gradient."""
    return micro_batch_size * seq_len * config.vocab_size * (element_bytes + 4 + 4)

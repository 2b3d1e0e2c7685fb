"""Counts from the shape alone, against the modules themselves, torch's FLOP counter and torch's memory profiler."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from model.arithmetic import (
    activation_bytes,
    attended_pairs,
    count_parameters,
    flops_per_token,
    logit_bytes,
    state_bytes,
    training_flops,
)
from model.attention import attention_mask
from model.config import Bias, Mlp, ModelConfig, Norm, Positions, Residual
from model.init import is_hidden_matrix
from model.loss import token_losses
from model.transformer import Transformer
from train.execution import apply
from train.parallel_config import ParallelConfig, Recompute

LLAMA = ModelConfig(vocab_size=97, n_layers=3, d_model=40, n_heads=5, n_kv_heads=1, d_ff=77, tie_embeddings=False)
GPT2 = ModelConfig(
    vocab_size=97,
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_kv_heads=4,
    d_ff=64,
    mlp=Mlp.gelu_tanh,
    norm=Norm.layernorm,
    bias=Bias.all,
    positions=Positions.learned,
    max_positions=512,
)
SHAPES = {
    "llama": LLAMA,
    "tied": dataclasses.replace(LLAMA, tie_embeddings=True, head_dim=24, n_kv_heads=5),
    "gpt1": dataclasses.replace(GPT2, residual=Residual.post_norm),
    "gpt2": GPT2,
    "pythia": dataclasses.replace(
        GPT2,
        mlp=Mlp.gelu,
        residual=Residual.parallel,
        positions=Positions.rotary,
        max_positions=None,
        rotary_fraction=0.25,
        tie_embeddings=False,
    ),
    "qwen2": dataclasses.replace(LLAMA, bias=Bias.qkv),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
    "no positions": dataclasses.replace(LLAMA, positions=Positions.none),
    "post-norm RMSNorm, SwiGLU with biases": dataclasses.replace(LLAMA, residual=Residual.post_norm, bias=Bias.all),
    "parallel RMSNorm": dataclasses.replace(LLAMA, residual=Residual.parallel),
    "LayerNorm without bias": dataclasses.replace(LLAMA, norm=Norm.layernorm),
    "QK-norm, learned positions": dataclasses.replace(GPT2, qk_norm=True),
    "window": dataclasses.replace(LLAMA, sliding_window=24),
    "softcaps": dataclasses.replace(LLAMA, attention_softcap=20.0, logit_softcap=30.0),
    "softcaps, window": dataclasses.replace(LLAMA, attention_softcap=20.0, sliding_window=24),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


@every_shape
def test_parameter_counts_equal_the_modules(config: ModelConfig):
    with torch.device("meta"):
        model = Transformer(config)
    counts = count_parameters(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert counts.n_params == sum(sizes.values())
    assert counts.n_params_matmul == sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    outside = ("embedding.weight", "position.weight", "head.weight")
    assert counts.n_params_non_embedding == sum(size for name, size in sizes.items() if name not in outside)


@every_shape
def test_parameters_of_a_tensor_parallel_rank(config: ModelConfig):
    """Matrices and the biases of column layers are cut, everything else is whole (Megatron-LM, arXiv 1909.08053)."""
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in Transformer(config).named_parameters()}
    whole = ("norm.weight", "norm.bias", "position.weight", "attention.o.bias", "mlp.down.bias")
    replicated = sum(size for name, size in sizes.items() if name.endswith(whole))
    cut = sum(sizes.values()) - replicated
    counts = count_parameters(config)
    assert counts.of_rank(1) == counts.n_params
    assert counts.of_rank(4) == replicated + -(-cut // 4)


@every_shape
def test_flops_equal_torchs_counter(config: ModelConfig):
    """torch counts the scores of the whole square, forward and backward, windowed or not; neither side counts
    recomputation."""
    seq_len, batch = 64, 2
    model = Transformer(config)
    tokens = torch.zeros(batch, seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        nats, _ = token_losses(model(tokens), tokens)
        nats.sum().backward()
    full, _ = flops_per_token(dataclasses.replace(config, sliding_window=None), seq_len)
    assert counter.get_total_flops() == full * batch * seq_len


@pytest.mark.parametrize("window", [None, 1, 5, 12, 100])
@pytest.mark.parametrize("lengths", [[12], [3, 8, 1], [1] * 12])
def test_attended_pairs_are_those_of_the_mask(lengths: list[int], window: int | None):
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    mask = attention_mask(12, segments, window, torch.device("cpu"))
    assert mask is not None
    assert attended_pairs(lengths, window) == int(mask.sum())


def test_causal_flops_are_half_of_the_square_and_fewer_in_a_window_or_in_short_documents():
    """The convention of DESIGN section 6: 6 · layers · heads · head_dim · T a token beside the matmuls."""
    matmul = 6 * count_parameters(LLAMA).n_params_matmul
    scores = 6 * LLAMA.n_layers * LLAMA.q_width
    full, causal = flops_per_token(LLAMA, 64)
    assert (full - matmul, causal - matmul) == (2 * scores * 64, scores * 64)
    assert training_flops(LLAMA, 64, attended_pairs([16] * 4)) == 64 * (matmul + scores * 16)
    windowed = dataclasses.replace(LLAMA, sliding_window=16)
    full, causal = flops_per_token(windowed, 64)
    # 64 queries see 16 each, but for the corner of 16 · 15 / 2 that is missing; the diagonal counts as halves
    assert (full - matmul, causal - matmul) == (2 * scores * 16, scores * (2 * (64 * 16 - 120) - 64) // 64)
    assert flops_per_token(dataclasses.replace(LLAMA, sliding_window=64), 64) == flops_per_token(LLAMA, 64)


@pytest.mark.parametrize(
    ("stage", "shards", "precision", "expected"),
    [
        (1, 1, "fp32", (4000, 4000, 12000)),
        (1, 1, "bf16", (2000, 4000, 12000)),
        (1, 4, "bf16", (2000, 4000, 3000)),
        (2, 4, "bf16", (2000, 1000, 3000)),
        (3, 4, "bf16", (500, 1000, 3000)),
        (1, 4, "bf16_states", (2000, 2000, 1500)),
        (3, 4, "bf16_states", (500, 500, 1500)),
    ],
)
def test_state_bytes_table(stage: int, shards: int, precision: str, expected: tuple[int, int, int]):
    state = state_bytes(1000, precision, stage, shards)
    assert (state.weights, state.gradients, state.optimizer) == expected


def test_what_muon_updates_has_one_moment():
    """Fp32, or bf16 with bf16 states, shared out over the ranks like the rest."""
    assert state_bytes(1000, "bf16", 1, 1, one_moment=600).optimizer == 12 * 400 + 8 * 600
    assert state_bytes(1000, "bf16_states", 2, 4, one_moment=600).optimizer == (6 * 400 + 4 * 600) // 4


@every_shape
def test_hidden_parameters_are_those_that_muon_updates(config: ModelConfig):
    with torch.device("meta"):
        named = dict(Transformer(config).named_parameters())
    hidden = sum(parameter.numel() for name, parameter in named.items() if is_hidden_matrix(name))
    assert count_parameters(config).n_params_hidden == hidden


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_shape
def test_activation_bytes_are_those_alive_after_forward(config: ModelConfig, dtype: torch.dtype, masked: bool):
    """All that torch's allocator still holds when forward is done, to the byte but for the mask that the layers are
    given and position numbers, made once for all of them."""
    batch, seq_len = 2, 64
    model = Transformer(config).to(dtype)
    tokens = torch.zeros(batch, seq_len, dtype=torch.int64)
    segments = torch.zeros(batch, seq_len, dtype=torch.int64) if masked else None
    held, _ = _memory(lambda: model.hidden(tokens, segments))
    element = torch.finfo(dtype).bits // 8
    expected = activation_bytes(config, batch, seq_len, element, masked=masked)
    assert expected <= held <= expected + batch * seq_len * (seq_len + 8)


@pytest.mark.parametrize("recompute", [Recompute.full, Recompute.selective])
@pytest.mark.parametrize("shape", ["llama", "gpt1", "gpt2", "pythia", "qwen3", "softcaps"])
def test_activation_bytes_with_recomputation(shape: str, recompute: Recompute):
    """As above; the block that backward runs again is not alive yet."""
    config, batch, seq_len = SHAPES[shape], 2, 64
    model = Transformer(config)
    apply(model, ParallelConfig(activation_checkpointing=recompute))
    held, _ = _memory(lambda: model.hidden(torch.zeros(batch, seq_len, dtype=torch.int64)))
    one, two = (activation_bytes(dataclasses.replace(config, n_layers=n), batch, seq_len, 4) for n in (1, 2))
    expected = activation_bytes(config, batch, seq_len, 4, recompute=recompute) - (two - one)
    assert expected <= held <= expected + batch * seq_len * (seq_len + 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [LLAMA, SHAPES["softcaps"]], ids=["plain", "softcap"])
def test_logit_bytes_are_the_peak_of_head_and_loss(config: ModelConfig, dtype: torch.dtype):
    """A hundredth is left for the hidden states and for what has no vocabulary dimension."""
    config = dataclasses.replace(config, vocab_size=8192)
    model, n = Transformer(config).to(dtype).requires_grad_(False), 64
    hidden = torch.zeros(1, n, config.d_model, dtype=dtype, requires_grad=True)

    def step() -> None:
        nats, log_z = token_losses(model.logits(hidden), torch.zeros(1, n, dtype=torch.int64))
        (nats.sum() + log_z.sum()).backward()

    _, peak = _memory(step)
    assert peak == pytest.approx(logit_bytes(config, n, torch.finfo(dtype).bits // 8), rel=0.01)


def _memory(function: Callable[[], Any]) -> tuple[int, int]:
    """(bytes that the result of `function` keeps alive, the most that were alive at once meanwhile), by the profiler's
    record of each allocation on the CPU."""
    function()
    gc.collect()  # recomputation leaves cycles: what was made before must not be freed while allocations are recorded
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = function()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events: list[Any] = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    del result
    return alive, peak

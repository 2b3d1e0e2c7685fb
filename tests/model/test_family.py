"""Every option of the network against an independent one, logits and gradients: Hugging Face's models with the same
weights, and a float64 one written from the papers."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import Bias, Init, Mlp, ModelConfig, Norm, Positions, Residual, RopeScaling, Scaling, context_problems
from model.init import initialize
from model.loss import IGNORED_TARGET, token_losses
from model.transformer import Transformer

pytest.importorskip("transformers", reason="the reference models come with the test extra")
from tests.model.reference import float64_logits, hugging_face, in_their_layout

CONTEXT = 32
LLAMA: dict[str, Any] = {"vocab_size": 101, "n_layers": 2, "d_model": 48, "n_heads": 6, "n_kv_heads": 2, "d_ff": 80}
GPT: dict[str, Any] = LLAMA | {
    "n_kv_heads": 6,
    "d_ff": 192,
    "mlp": Mlp.gelu_tanh,
    "norm": Norm.layernorm,
    "bias": Bias.all,
    "positions": Positions.learned,
    "max_positions": 40,
}
PYTHIA: dict[str, Any] = GPT | {
    "mlp": Mlp.gelu,
    "residual": Residual.parallel,
    "positions": Positions.rotary,
    "max_positions": None,
    "d_model": 96,
    "rotary_fraction": 0.25,
    "tie_embeddings": False,
}


def stretched(kind: Scaling, **settings: Any) -> dict[str, Any]:
    return LLAMA | {"rope_theta": 500.0, "rope_scaling": RopeScaling(kind, 4.0, **settings)}


HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt1: norm after the sum": ("gpt1", GPT | {"residual": Residual.post_norm}),
    "gpt2: LayerNorm, biases, learned positions": ("gpt2", GPT),
    "gpt2: untied head": ("gpt2", GPT | {"tie_embeddings": False, "norm_eps": 1e-2}),
    "pythia: parallel residual, quarter rotated": ("pythia", PYTHIA),
    "pythia: sequential residual, tanh": ("pythia", PYTHIA | {"residual": Residual.sequential, "mlp": Mlp.gelu_tanh}),
    "llama: grouped queries": ("llama", LLAMA),
    "llama: multi-query, own head_dim": ("llama", LLAMA | {"n_kv_heads": 1, "head_dim": 20}),
    "llama: linear": ("llama", stretched(Scaling.linear)),
    "llama: ntk": ("llama", stretched(Scaling.ntk)),
    # over 16 tokens some dimensions turn often and some do not, as over 8192 at full size
    "llama: yarn": ("llama", stretched(Scaling.yarn, original_context=16, beta_fast=2.0, beta_slow=0.1)),
    "llama: llama3": (
        "llama",
        stretched(Scaling.llama3, original_context=16, low_freq_factor=0.1, high_freq_factor=2.0),
    ),
    "mistral: sliding window": ("mistral", LLAMA | {"sliding_window": 5}),
    "qwen2: biases on q, k, v": ("qwen2", LLAMA | {"bias": Bias.qkv}),
    "qwen3: QK-norm": ("qwen3", LLAMA | {"qk_norm": True, "head_dim": 16, "norm_eps": 1e-6}),
}

FLOAT64: dict[str, dict[str, Any]] = {
    "no positions": LLAMA | {"positions": Positions.none},
    "softcaps": LLAMA | {"attention_softcap": 2.0, "logit_softcap": 3.0},
    "softcap in a window, grouped": LLAMA | {"attention_softcap": 2.0, "sliding_window": 4},
    "LayerNorm without biases": LLAMA | {"norm": Norm.layernorm},
    "learned positions, window": GPT | {"sliding_window": 4},
    "post-norm with RMSNorm, SwiGLU with biases": LLAMA | {"residual": Residual.post_norm, "bias": Bias.all},
    "parallel with RMSNorm, QK-norm": LLAMA | {"residual": Residual.parallel, "qk_norm": True},
    "QK-norm with learned positions": GPT | {"qk_norm": True},
    "half rotated, biases on q, k, v": LLAMA | {"head_dim": 12, "rotary_fraction": 0.5, "bias": Bias.qkv},
}


def made(config: ModelConfig) -> Transformer:
    """Weights far from the tiny initial ones, norms and biases far from 1 and 0, so that each part matters."""
    assert config.problems() == [] == config.rope_scaling.problems()
    model = Transformer(config)
    initialize(model, seed=1)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 if parameter.dim() == 1 else 4)
            parameter.add_(torch.randn(parameter.shape, generator=noise) * (0.3 if parameter.dim() == 1 else 0))
    return model


def rows(config: ModelConfig, n_rows: int = 2, length: int = CONTEXT) -> Tensor:
    return torch.randint(0, config.vocab_size, (n_rows, length + 1), generator=torch.Generator().manual_seed(3))


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def assert_near(found: Tensor, expected: Tensor, bound: float, what: str) -> None:
    """The largest difference, as a share of the largest number of the tensor."""
    difference = float((found - expected).detach().abs().max() / expected.detach().abs().max())
    assert difference < bound, f"{what}: off by {difference:.2g} of the largest"


@pytest.mark.parametrize("case", HUGGING_FACE)
def test_logits_and_gradients_equal_hugging_face(case: str):
    """Two fp32 computations of the same formulas, in other orders of summation: sums of up to 192 terms, 2 layers.
    Seen: 1e-6 for logits, 4e-6 for gradients."""
    family, options = HUGGING_FACE[case]
    config = ModelConfig(**options)
    ours, theirs = made(config), hugging_face(family, config, CONTEXT)
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    missing, unexpected = theirs.load_state_dict(in_their_layout(family, weights, config.n_heads), strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"} if config.tie_embeddings else missing == []
    tokens = rows(config)

    logits, expected = ours(tokens[:, :-1]), theirs(tokens[:, :-1]).logits
    assert_near(logits, expected, 5e-6, "logits")
    mean_loss(logits, tokens[:, 1:]).backward()
    mean_loss(expected, tokens[:, 1:]).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    found = in_their_layout(family, gradients, config.n_heads)
    assert found.keys() == {name for name, _ in theirs.named_parameters()}
    _assert_gradients(found, {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("case", FLOAT64)
def test_logits_and_gradients_equal_a_float64_loop(case: str):
    """fp32 against float64: its roundings, of 2 layers and sums of up to 192 terms."""
    _compare_with_float64(ModelConfig(**FLOAT64[case]), [10])


@pytest.mark.parametrize("case", ["learned positions, window", "softcap in a window, grouped", "no positions"])
def test_documents_of_a_row_equal_a_float64_loop_over_each_alone(case: str):
    """With masks between them, and learned positions that begin anew."""
    _compare_with_float64(ModelConfig(**FLOAT64[case]), [6, 1, 5])


def _compare_with_float64(config: ModelConfig, lengths: list[int]) -> None:
    model = made(config)
    row = rows(config, 1, sum(lengths))
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    expected = torch.cat([float64_logits(config, weights, part) for part in row[0, :-1].split(lengths)])
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    logits = model(row[:, :-1], segments if len(lengths) > 1 else None)[0]
    assert_near(logits.double(), expected, 5e-6, "logits")
    mean_loss(logits, row[0, 1:]).backward()
    mean_loss(expected, row[0, 1:]).backward()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    _assert_gradients(found, {name: w.grad for name, w in weights.items() if w.grad is not None})


def _assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the precision of the tensor's largest number, or of the largest of all: the bias of k has no gradient but
    rounding, for softmax does not see it."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        bound = 2e-5 * max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((found[name] - gradient).abs().max()) < bound, name


CHANGES: dict[str, dict[str, Any]] = {
    "norm": {"norm": Norm.layernorm},
    "norm_eps": {"norm_eps": 1e-3},
    "mlp": {"mlp": Mlp.gelu},
    "residual": {"residual": Residual.parallel},
    "positions": {"positions": Positions.none},
    "rope_theta": {"rope_theta": 500.0},
    "rotary_fraction": {"rotary_fraction": 0.5},
    "rope_scaling": {"rope_scaling": RopeScaling(Scaling.linear, 1.5)},
    "sliding_window": {"sliding_window": 8},
    "attention_softcap": {"attention_softcap": 2.0},
    "logit_softcap": {"logit_softcap": 3.0},
    "init": {"init": Init.mup, "mup_base_width": 24, "mup_base_head_dim": 4},
}


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_without_weights_of_its_own_changes_the_logits(option: str):
    """By more than a hundred times the bounds above: those tests could not pass without it."""
    config = ModelConfig(**LLAMA)
    plain, changed = made(config), Transformer(dataclasses.replace(config, **CHANGES[option]))
    changed.load_state_dict(plain.state_dict(), strict=False)
    tokens = rows(config)[:, :-1]
    difference = (plain(tokens) - changed(tokens)).detach().abs().max() / plain(tokens).detach().abs().max()
    assert float(difference) > 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_losses_are_cross_entropy_and_log_z_with_their_gradients(dtype: torch.dtype):
    """Against torch in float64, for a loss with z-loss in it; bf16 logits have a bf16 gradient: half a unit in its last
    place is 2^-9 of a number."""
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(2, 7, 301, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, 301, (2, 7), generator=generator)
    targets[0, 3:5] = IGNORED_TARGET
    real = targets != IGNORED_TARGET
    exact = logits.detach().double().requires_grad_()
    nll = torch.nn.functional.cross_entropy(exact.transpose(1, 2), targets, reduction="none")
    z = torch.logsumexp(exact, -1) * real
    (nll.sum() + 0.1 * z.square().sum()).backward()

    nats, log_z = token_losses(logits, targets)
    assert nats.dtype == log_z.dtype == torch.float32
    torch.testing.assert_close(nats.double(), nll, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_z.double(), z, rtol=1e-6, atol=1e-6)
    (nats.sum() + 0.1 * log_z.square().sum()).backward()
    assert logits.grad is not None
    assert exact.grad is not None
    rtol = 2e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rtol, atol=1e-7)
    assert not logits.grad[0, 3:5].any()


def test_logits_without_a_target_may_be_anything():
    logits = torch.zeros(1, 2, 5)
    logits[0, 1] = 1e30
    logits.requires_grad_()
    nats, log_z = token_losses(logits, torch.tensor([[2, IGNORED_TARGET]]))
    (nats.sum() + log_z.sum()).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert not bool(nats[0, 1])


@pytest.mark.parametrize("case", ["pythia: parallel residual, quarter rotated", "qwen3: QK-norm"])
def test_norms_rotations_and_losses_are_computed_in_fp32_under_bf16(case: str):
    """bf16 weights and stream: logits are those of fp32 but for roundings to 2^-9 of a number, a few in a row. Angles
    rounded to bf16 would be off by a radian at position 250."""
    config = ModelConfig(**HUGGING_FACE[case][1])
    exact = made(config).bfloat16().float()
    rounded = made(config).bfloat16()
    tokens = rows(config, 1, 400)[:, :-1]
    assert rounded(tokens).dtype == torch.bfloat16
    a, b = exact(tokens)[0, 300:].detach(), rounded(tokens)[0, 300:].float().detach()
    assert float((a - b).square().mean() / a.square().mean()) < 0.02**2


@pytest.mark.parametrize(
    "options",
    [
        GPT | {"residual": Residual.post_norm},
        PYTHIA | {"qk_norm": True, "attention_softcap": 2.0, "logit_softcap": 3.0, "sliding_window": 5},
    ],
    ids=["gpt1", "pythia, QK-norm, softcaps, window"],
)
def test_the_network_is_one_graph_for_torch_compile(options: dict[str, Any]):
    """fullgraph: a break raises. The same operations in the same order: equal to a rounding."""
    config = dataclasses.replace(ModelConfig(**options), n_layers=1)
    model, tokens = made(config), rows(config)[:, :-1]
    segments = torch.repeat_interleave(torch.arange(4), 8).expand(2, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_near(compiled(tokens, segments), model(tokens, segments), 1e-6, "logits")


@pytest.mark.parametrize("case", HUGGING_FACE)
def test_the_network_runs_on_the_meta_device(case: str):
    """Shapes alone: so nothing in it looks at a number, which on a GPU would wait for the device."""
    config = ModelConfig(**HUGGING_FACE[case][1])
    with torch.device("meta"):
        model, tokens = Transformer(config), torch.zeros(2, 16, dtype=torch.int64)
    logits = model(tokens, torch.zeros_like(tokens))
    assert logits.shape == (2, 16, config.vocab_size)
    nats, log_z = token_losses(logits, tokens)
    (nats.sum() + log_z.sum()).backward()
    assert model.embedding.weight.grad is not None


def test_a_context_longer_than_the_table_of_positions_is_refused_with_the_key():
    config = ModelConfig(**GPT)
    assert context_problems(config, 40) == []
    (problem,) = context_problems(config, 41)
    assert "data.seq_len=41" in problem
    assert "model.max_positions=40" in problem
    assert context_problems(ModelConfig(), 1_000_000) == []


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (GPT | {"rope_theta": 5e5}, "model.rope_theta"),
        (GPT | {"rotary_fraction": 0.5}, "model.rotary_fraction"),
        (LLAMA | {"rotary_fraction": 0.1}, "model.rotary_fraction"),
        (LLAMA | {"rotary_fraction": 0.25, "rope_scaling": RopeScaling(Scaling.ntk, 2.0)}, "kind=linear"),
        (LLAMA | {"max_positions": 512}, "model.max_positions"),
        (LLAMA | {"rope_scaling": RopeScaling(Scaling.none, 2.0)}, "model.rope_scaling.factor"),
        (LLAMA | {"rope_scaling": RopeScaling(Scaling.linear, 2.0, 4096)}, "model.rope_scaling.original_context"),
        (LLAMA | {"rope_scaling": RopeScaling(Scaling.llama3, 2.0, beta_fast=8.0)}, "model.rope_scaling.beta_fast"),
    ],
)
def test_a_setting_that_nothing_reads_or_that_cannot_work_is_refused(options: dict[str, Any], key: str):
    config = ModelConfig(**options)
    assert any(key in problem for problem in config.problems() + config.rope_scaling.problems())

"""Counts from the shape alone, against the modules themselves, torch's FLOP counter and published sizes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conf.compose import CONF_FOLDER, compose
from model.arithmetic import activation_bytes, count_parameters, flops_per_token, state_bytes
from model.config import ModelConfig
from model.loss import cross_entropy
from model.transformer import Transformer
from train.__main__ import APP

SHAPES = [
    ModelConfig(),
    ModelConfig(vocab_size=97, n_layers=3, d_model=40, n_heads=5, n_kv_heads=1, d_ff=77, tie_embeddings=False),
    ModelConfig(vocab_size=97, n_layers=1, d_model=32, n_heads=4, n_kv_heads=4, d_ff=64, head_dim=24),
]


@pytest.mark.parametrize("config", SHAPES)
def test_parameter_counts_equal_the_modules(config: ModelConfig):
    with torch.device("meta"):
        model = Transformer(config)
    counts = count_parameters(config)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    outside = {id(p): p.numel() for p in (model.embedding.weight, model.head.weight)}
    assert counts.n_params == sum(p.numel() for p in model.parameters())
    assert counts.n_params_matmul == linear
    assert counts.n_params_non_embedding == counts.n_params - sum(outside.values())


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF_FOLDER / "model").glob("*.yaml")))
def test_every_model_of_conf_is_counted_right(option: str):
    config = compose(APP, [f"model={option}", "run.name=x"]).model
    with torch.device("meta"):
        model = Transformer(config)
    assert count_parameters(config).n_params == sum(p.numel() for p in model.parameters())


def test_llama_3_2_1b_has_its_published_size():
    """1,235,814,400 parameters: the model card's 1.23 B."""
    assert count_parameters(compose(APP, ["model=llama_1b", "run.name=x"]).model).n_params == 1_235_814_400


def test_flops_equal_torchs_counter():
    """torch counts the scores of the whole square, forward and backward; recomputation is not counted on either
    side.
    """
    config, seq_len, batch = SHAPES[1], 64, 2
    model = Transformer(config)
    tokens = torch.zeros(batch, seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        nats, _ = cross_entropy(model(tokens), tokens)
        nats.backward()
    full, causal = flops_per_token(config, seq_len)
    assert counter.get_total_flops() == full * batch * seq_len
    assert full - causal == 6 * config.n_layers * config.n_heads * config.head_width * seq_len


@pytest.mark.parametrize(
    ("stage", "dp", "weight_bytes", "expected"),
    [
        (1, 1, 4, (4000, 4000, 8000)),
        (1, 1, 2, (2000, 4000, 12000)),
        (1, 4, 2, (2000, 4000, 3000)),
        (2, 4, 2, (2000, 1000, 3000)),
        (3, 4, 2, (500, 1000, 3000)),
    ],
)
def test_state_bytes_table(stage: int, dp: int, weight_bytes: int, expected: tuple[int, int, int]):
    state = state_bytes(1000, weight_bytes, stage, dp)
    assert (state.weights, state.gradients, state.optimizer) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_bytes_are_those_that_autograd_keeps(dtype: torch.dtype):
    """Counted with saved-tensor hooks, each storage once, weights left out; small things may make up a twentieth."""
    config = ModelConfig()
    batch, seq_len = 2, 128
    model = Transformer(config).to(dtype)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that none is freed and counted twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(batch, seq_len, dtype=torch.int64)).sum()
    element = torch.finfo(dtype).bits // 8
    total = sum(storage.nbytes() for storage in kept.values())
    assert total == pytest.approx(activation_bytes(config, batch, seq_len, element), rel=0.05)

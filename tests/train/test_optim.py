"""Groups of parameters, and muP's numbers for them: as a table, and against a network made wider by doubling its
units.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.config import Bias, Init, Mlp, ModelConfig, Norm, Positions, Residual
from model.init import initialize
from model.loss import cross_entropy
from model.transformer import Transformer
from train.optim import adamw, parameter_groups, set_learning_rate
from train.optimizer_config import OptimizerConfig

BASE = ModelConfig(vocab_size=31, n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24)
MUP = replace(BASE, init=Init.mup, mup_base_width=16, mup_base_head_dim=4)
DOUBLE = {"d_model": 32, "d_ff": 48}


def by_name(groups: list[dict]) -> dict[str, tuple[float, float]]:
    """{parameter name: (weight decay, share of the learning rate)}"""
    return {name: (group["weight_decay"], group["lr_scale"]) for group in groups for name in group["names"]}


@pytest.mark.parametrize(
    ("name", "shape", "decay", "scale"),
    [
        ("embedding.weight", (31, 32), 0.1, 1.0),
        ("position.weight", (8, 32), 0.1, 1.0),
        ("head.weight", (31, 32), 0.1, 1.0),
        ("norm.weight", (32,), 0.0, 1.0),
        ("blocks.1.attention_norm.weight", (32,), 0.0, 1.0),
        ("blocks.1.attention.q_norm.weight", (8,), 0.0, 1.0),
        ("blocks.1.mlp_norm.bias", (32,), 0.0, 1.0),
        ("blocks.1.attention.q.bias", (32,), 0.0, 1.0),
        *((f"blocks.0.attention.{part}.weight", (32, 32), 0.4, 0.25) for part in "qkvo"),
        *((f"blocks.1.mlp.{part}.weight", (32, 32), 0.4, 0.25) for part in ("gate", "up", "down")),
    ],
)
def test_decay_and_rate_of_a_parameter_four_times_wider_than_the_base(name, shape, decay, scale):
    """Yang et al., arXiv 2203.03466, table 8: Adam's rate of what grows on both sides is divided by m = 4; the product
    of rate and decay stays."""
    (group,) = parameter_groups([(name, nn.Parameter(torch.empty(shape)))], 0.1, width_ratio=4.0)
    assert (group["names"], group["weight_decay"], group["lr_scale"]) == ([name], decay, scale)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_every_parameter_is_in_one_group_under_its_name_and_no_group_is_empty(tied: bool, ratio: float):
    model = Transformer(replace(BASE, tie_embeddings=tied, bias=Bias.all, norm=Norm.layernorm))
    groups = parameter_groups(model.named_parameters(), 0.1, ratio)
    named = dict(model.named_parameters())
    assert all(group["params"] for group in groups)
    assert sorted(name for group in groups for name in group["names"]) == sorted(named)
    for group in groups:
        assert [id(named[name]) for name in group["names"]] == [id(parameter) for parameter in group["params"]]
    assert len(groups) == (2 if ratio == 1 else 3)


def test_without_decay_and_width_all_is_one_group():
    assert len(parameter_groups(Transformer(BASE).named_parameters(), 0.0)) == 1


def test_the_true_shape_decides_under_zero_3():
    matrix = nn.Parameter(torch.empty(0))
    matrix.ds_shape = torch.Size([4, 4])  # pyright: ignore[reportAttributeAccessIssue]: as DeepSpeed sets it
    assert by_name(parameter_groups([("head.weight", matrix)], 0.1)) == {"head.weight": (0.1, 1.0)}


def test_the_schedules_rate_reaches_each_group_by_its_share():
    model = Transformer(replace(MUP, **DOUBLE, head_dim=8))
    optimizer = adamw(model.named_parameters(), OptimizerConfig(peak_lr=1.0), width_ratio=model.config.width_ratio)
    assert {group["lr"] for group in optimizer.param_groups} == {1.0, 0.5}
    set_learning_rate(optimizer.param_groups, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25, 0.125}


def trained_logits(model: Transformer, steps: int = 4) -> Tensor:
    """(steps + 1, B, T, V): the logits of one batch before and after each step of AdamW on it.

    Epsilon is as large as the gradients, and decay strong, so that both show.
    """
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    settings = OptimizerConfig(peak_lr=0.02, eps=1e-3, weight_decay=2.0)
    optimizer = adamw(model.named_parameters(), settings, width_ratio=model.config.width_ratio)
    seen: list[Tensor] = []
    for _ in range(steps):
        logits = model(tokens[:, :-1])
        seen.append(logits.detach())
        nats, count = cross_entropy(logits, tokens[:, 1:])
        optimizer.zero_grad()
        (nats / count).backward()
        optimizer.step()
    return torch.stack([*seen, model(tokens[:, :-1]).detach()])


def made(config: ModelConfig) -> Transformer:
    model = Transformer(config).double()
    initialize(model, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and "norm" not in name:
                parameter.mul_(20)  # scores and logits of size 1
    return model


def doubled(model: Transformer, config: ModelConfig) -> Transformer:
    """The same function on twice as many units, each there twice: matrices between units are halved, for what they add
    up is there twice too. Heads that become wider are doubled one by one."""
    wide = Transformer(config).double()
    by_head = config.head_width != model.config.head_width
    with torch.no_grad():
        for (name, old), (_, new) in zip(model.named_parameters(), wide.named_parameters(), strict=True):
            value = old
            for dim in (dim for dim in range(old.dim()) if new.shape[dim] != old.shape[dim]):
                is_heads = ".attention." in name and (dim == 0) != (".o." in name)
                block = model.config.head_width if is_heads and by_head else old.shape[dim]
                parts = value.unflatten(dim, (-1, block))
                value = torch.cat([parts, parts], dim + 1).flatten(dim, dim + 1)
            new.copy_(value / 2 if old.dim() == 2 and name.startswith("blocks.") else value)
    return wide


WIDER_HEADS = {**DOUBLE, "head_dim": 8}
MORE_HEADS = {**DOUBLE, "n_heads": 8, "n_kv_heads": 4}


@pytest.mark.parametrize(
    ("options", "growth"),
    [
        ({}, MORE_HEADS),
        ({"tie_embeddings": False, "bias": Bias.all, "norm": Norm.layernorm, "mlp": Mlp.gelu}, MORE_HEADS),
        ({"positions": Positions.none, "bias": Bias.qkv}, WIDER_HEADS),
        ({"positions": Positions.learned, "max_positions": 8, "tie_embeddings": False}, WIDER_HEADS),
        ({"positions": Positions.none, "qk_norm": True, "residual": Residual.parallel}, WIDER_HEADS),
        ({"residual": Residual.post_norm, "logit_softcap": 5.0, "attention_softcap": 5.0}, MORE_HEADS),
    ],
    ids=["more heads, tied", "GPT-2 like", "wider heads, tied", "learned positions, untied", "QK-norm", "post-norm"],
)
def test_under_mup_a_network_of_doubled_units_learns_exactly_as_the_original(options: dict, growth: dict):
    """Rates, decay, epsilon, output multiplier and score scale of muP are those under which units that are there twice
    stay pairs, and each pair does what the one did. Float64 but for norms and loss, which round to float32: the bound
    is far above what that becomes in four steps (3e-5), and far below any power of 2 that is missing (0.1 and more)."""
    base = replace(MUP, **options)
    narrow = made(base)
    wide = doubled(narrow, replace(base, **growth))
    assert sum(p.numel() for p in wide.parameters()) > 1.8 * sum(p.numel() for p in narrow.parameters())
    expected = trained_logits(narrow)
    assert float((expected[-1] - expected[0]).abs().max()) > 0.1
    torch.testing.assert_close(trained_logits(wide), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False, "qk_norm": True, "bias": Bias.all}])
def test_mup_at_its_base_width_is_the_standard_recipe(options: dict):
    """To the bit: initial weights, logits and training."""
    standard, mup = Transformer(replace(BASE, **options)), Transformer(replace(MUP, **options))
    initialize(standard, 3)
    initialize(mup, 3)
    assert torch.equal(trained_logits(mup), trained_logits(standard))

"""Muon's pieces: orthogonalisation against the singular value decomposition, AdamW against torch's, who gets what."""

import pytest
import torch

from conf.compose import compose
from conf.errors import ConfigError
from tests.distributed.muon_runs import polar
from train.__main__ import APP as TRAIN_APP
from train.fragment import Fragment
from train.matrix_exchange import cost, deal, plan
from train.muon import MuonAdamW, orthogonalised
from train.optim import muon_groups
from train.optimizer_config import OptimizerConfig, OptimizerKind

ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}


@pytest.mark.parametrize("shape", [(6, 6), (5, 40), (40, 5), (1, 7)])
def test_orthogonalisation_moves_singular_values_only(shape: tuple[int, int]):
    """Against fp64. Rounding grows with the smallest singular values, at most 485-fold (see tests/distributed)."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = polar(matrix)
    assert torch.allclose(orthogonalised(matrix, 5).double(), expected, rtol=0, atol=485 * 2**-23)
    # bf16 has 8 bits; its rounding of the input alone, 2^-9, grows by what the steps do to its smallest part
    in_bf16 = orthogonalised(matrix.bfloat16(), 5)
    assert in_bf16.dtype == torch.bfloat16
    assert float((in_bf16.double() - expected).norm() / expected.norm()) < 0.1


def test_five_steps_bring_singular_values_near_one():
    """Of a matrix whose own spread over a factor of 50: into the 0.7 to 1.2 that Jordan et al. show."""
    u, _, v = torch.linalg.svd(torch.randn(30, 30, generator=torch.Generator().manual_seed(1)))
    spread = u @ torch.diag(torch.linspace(0.02, 1, 30)) @ v
    values = torch.linalg.svdvals(orthogonalised(spread, 5))
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25


def test_other_parameters_are_updated_as_by_torch_adamw():
    """Bit for bit, with all groups in one step and with one at a time, as DeepSpeed does it."""
    start = [torch.randn(9, 4), torch.randn(5)]
    plain, ours = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    oracle = torch.optim.AdamW(
        [{"params": plain[:1], "weight_decay": 0.1}, {"params": plain[1:], "weight_decay": 0.0}], **ADAMW
    )
    groups = [
        {"params": ours[:1], "weight_decay": 0.1, "kind": OptimizerKind.adamw},
        {"params": ours[1:], "weight_decay": 0.0, "kind": OptimizerKind.adamw},
    ]
    optimizer = MuonAdamW(groups, matrix_dtype=torch.float32, matrix_device="cpu", **ADAMW)
    both = optimizer.param_groups
    for step in range(4):
        for a, b in zip(plain, ours, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        oracle.step()
        for groups in [both] if step % 2 else [both[:1], both[1:]]:
            optimizer.param_groups = groups
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def test_matrices_inside_blocks_are_muons_and_the_rest_is_adamws():
    from model.config import ModelConfig
    from model.transformer import Transformer

    config = ModelConfig(vocab_size=64, n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_ff=24)
    with torch.device("meta"):
        named = dict(Transformer(config).named_parameters())
    names = {parameter: name for name, parameter in named.items()}
    groups = muon_groups(named.items(), OptimizerConfig(kind=OptimizerKind.muon))
    found = [{names[parameter] for parameter in group["params"]} for group in groups]
    layers = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
    assert found[0] == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers}
    assert found[1] == {name for name in ("embedding.weight", "head.weight") if name in named}
    assert "norm.weight" in found[2]
    assert sum(map(len, found)) == len(named)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]


def test_matrices_that_lie_whole_on_a_rank_stay_there():
    held = [[piece(f"m{i}", (8, 8), 0, 64)] for i in range(4)]
    assert deal(held) == [["m0"], ["m1"], ["m2"], ["m3"]]


def test_matrices_that_all_ranks_share_are_dealt_out_evenly():
    shapes = {f"m{i}": (16, 8 * (1 + i % 4)) for i in range(23)}
    held = [[piece(name, shape, 32 * rank, 32 * rank + 32) for name, shape in shapes.items()] for rank in range(4)]
    queues = deal(held)
    assert sorted(name for queue in queues for name in queue) == sorted(shapes)
    loads = [sum(cost(shapes[name]) for name in queue) for queue in queues]
    # a list dealt greedily, dearest first, to the idlest exceeds the even share by less than one item (Graham 1969)
    assert max(loads) <= sum(loads) / 4 + max(map(cost, shapes.values()))


def test_fragments_that_are_not_all_of_a_matrix_are_refused():
    held = [[piece("m0", (5, 11), 0, 20)], [piece("m0", (5, 11), 20, 52)]]
    with pytest.raises(ValueError, match=r"m0 \(5, 11\) has 55 numbers, but all ranks together hold .* of 52"):
        plan(held, 0)


def test_a_step_without_a_layout_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(6))
    parameter.grad = torch.ones(6)
    group = {"params": [parameter], "kind": OptimizerKind.muon, "momentum": 0.95, "ns_steps": 5}
    optimizer = MuonAdamW([group], matrix_dtype=torch.float32, matrix_device="cpu")
    with pytest.raises(RuntimeError, match="use_layout"):
        optimizer.step()


def test_settings_that_cannot_be_are_told():
    assert OptimizerConfig(kind=OptimizerKind.muon, muon_momentum=0.9, ns_steps=6).problems() == []
    assert "muon_momentum=1" in OptimizerConfig(kind=OptimizerKind.muon, muon_momentum=1).problems()[0]
    assert "ns_steps=0" in OptimizerConfig(kind=OptimizerKind.muon, ns_steps=0).problems()[0]
    assert "set optimizer.kind=muon" in OptimizerConfig(ns_steps=6).problems()[0]


def test_width_transfer_is_refused_beside_muon():
    assert compose(TRAIN_APP, ["run.name=x", "optimizer=muon"]).optimizer.kind == OptimizerKind.muon
    with pytest.raises(ConfigError, match=r"optimizer\.kind=muon does not go with model\.init=mup"):
        compose(TRAIN_APP, ["run.name=x", "optimizer=muon", "model.init=mup", "model.mup_base_width=64"])


def piece(name: str, shape: tuple[int, int], start: int, stop: int) -> Fragment:
    return Fragment(name, shape, None, 0, 0, start, stop)

"""What tensor parallelism refuses, its loss beside torch's, and its training steps beside DeepSpeed's AutoTP."""

import functools
from typing import Any

import pytest

from tests.distributed.parallel_model import (
    make_config,
    make_mesh,
    make_objective,
    make_rows,
    parallel_model,
    whole_model,
)
from tests.distributed.ranks import run_ranks

STEPS = 4


# --- refusals ---------------------------------------------------------------------------------------------------------


def tampered() -> dict[str, str]:
    """What `seal`, or `apply`, says about models with something wrong."""
    return {how: _said(how) for how in REFUSED}


def _said(how: str) -> str:
    import torch

    from model.transformer import Transformer
    from train import sequence_parallel, tensor_parallel

    mesh = make_mesh(2, 1) if how != "order" else make_mesh(1, 2)
    config = make_config(n_kv_heads=2, vocab_size=63 if how == "vocabulary" else 64, bias="all")
    with torch.device("meta"):
        model = Transformer(config)
    try:
        match how:
            case "order":
                sequence_parallel.apply(model, mesh)
                mesh.tp_size = 2
                tensor_parallel.apply(model, mesh)
            case "vocabulary":
                tensor_parallel.apply(model, mesh)
            case _:
                tensor_parallel.apply(model, mesh)
                _tamper(model, how)
                tensor_parallel.seal(model, mesh)
    except tensor_parallel.LayoutError as error:
        return str(error)
    return "nothing"


def _tamper(model: Any, how: str) -> None:
    import torch

    block = model.blocks[1]
    match how:
        case "unmarked matrix":
            del block.mlp.up.weight.tensor_model_parallel
        case "unmarked bias":
            block.attention.q.bias.tensor_model_parallel = False
        case "marked replica":
            block.mlp.down.bias.tensor_model_parallel = True
        case "other slice":
            block.mlp.up.weight.tp_stop += 1
        case "lost marks":
            block.mlp.up.weight = torch.nn.Parameter(block.mlp.up.weight.detach())


REFUSED = {
    "unmarked matrix": "blocks.1.mlp.up.weight is cut (column) but not marked",
    "unmarked bias": "blocks.1.attention.q.bias is cut (column) but not marked",
    "marked replica": "blocks.1.mlp.down.bias is marked tensor_model_parallel, but",
    "other slice": "blocks.1.mlp.up.weight has shape [20, 24], its marks say [21, 24]",
    "lost marks": "blocks.1.mlp.up.weight is cut (column) but not marked",
    "vocabulary": "embedding.weight (63, 24): 63 does not divide by tp_size=2",
    "order": "tensor parallelism comes before sequence parallelism",
}


def test_what_would_train_wrongly_is_refused_by_name():
    for rank in run_ranks(tampered, 2):
        for how, expected in REFUSED.items():
            assert expected in rank[how], how


# --- loss -------------------------------------------------------------------------------------------------------------


def losses(dtype_name: str, scale: float) -> dict[str, float]:
    """Largest differences of the vocabulary-parallel loss and its gradient from the plain ones in float64."""
    import torch

    from model.loss import IGNORED_TARGET
    from train.tensor_parallel import token_losses

    mesh = make_mesh(2, 1)
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(3, 5, 64, generator=generator)).to(getattr(torch, dtype_name))
    targets = torch.randint(0, 64, (3, 5), generator=generator)
    targets[0, :4] = torch.tensor([0, 31, 32, 63])  # the borders of the slices
    targets[1] = IGNORED_TARGET
    weights = torch.rand(2, 3, 5, generator=generator)  # of nats and of log_z: any combination, as z-loss makes one
    exact = logits.double().requires_grad_()
    nats = torch.nn.functional.cross_entropy(
        exact.transpose(1, 2), targets, ignore_index=IGNORED_TARGET, reduction="none"
    )
    log_z = exact.logsumexp(-1).where(targets != IGNORED_TARGET, 0)
    (nats * weights[0] + log_z * weights[1]).sum().backward()
    assert exact.grad is not None

    own = slice(32 * mesh.tp_rank, 32 * mesh.tp_rank + 32)
    part = logits[..., own].clone().requires_grad_()
    own_nats, own_log_z = token_losses(part, targets, mesh)
    (own_nats * weights[0] + own_log_z * weights[1]).sum().backward()
    assert part.grad is not None
    assert part.grad.dtype == part.dtype
    assert own_nats.dtype == own_log_z.dtype == torch.float32
    return {
        "nats": float((own_nats - nats).abs().max() / nats.abs().max()),
        "log_z": float((own_log_z - log_z).abs().max() / log_z.abs().max()),
        "gradient": float((part.grad - exact.grad[..., own]).abs().max()),
        "of no target": float(own_nats[1].abs().max() + own_log_z[1].abs().max() + part.grad[1].abs().max()),
    }


@pytest.mark.parametrize(("dtype", "scale", "rounding"), [("float32", 1.0, 2**-24), ("float32", 300.0, 2**-24)])
def test_vocabulary_parallel_loss_is_the_loss(dtype: str, scale: float, rounding: float):
    """A few roundings of fp32 on numbers of the size of the logits; logits in the hundreds overflow without the largest
    one taken away. exp turns an absolute error of its argument into a relative one, hence the scale in the gradient."""
    for errors in run_ranks(losses, 2, dtype, scale):
        assert errors["nats"] <= 8 * rounding
        assert errors["log_z"] <= 8 * rounding
        assert errors["gradient"] <= 8 * rounding * 4 * scale
        assert errors["of no target"] == 0


def test_vocabulary_parallel_loss_of_bf16_logits_is_computed_in_fp32():
    """Only the gradient is rounded to bf16 at the end: half a unit in 2^8 of numbers of at most 2."""
    for errors in run_ranks(losses, 2, "bfloat16", 1.0):
        assert errors["nats"] <= 8 * 2**-24
        assert errors["gradient"] <= 2 * 2**-9


# --- training ---------------------------------------------------------------------------------------------------------


def trained(
    by: str, tp_size: int, sp_size: int, stage: int, settings: dict[str, Any], forget: str | None = None
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of some steps of DeepSpeed on the same rows, clipped and with weight decay.

    by: "ours", or "autotp", which cuts the whole model itself. forget: parameters whose mark is removed.
    """
    import torch
    from deepspeed.utils import groups

    mesh = make_mesh(tp_size, sp_size)
    config = make_config(**settings)
    whole = whole_model(config)
    tensor_parallel: dict[str, Any] = {}
    if by == "ours":
        model = parallel_model(config, mesh, {name: p.detach() for name, p in whole.named_parameters()})
        for name, parameter in model.named_parameters():
            if forget is not None and forget in name:
                parameter.tensor_model_parallel = False
        objective = make_objective(model, mesh)
    else:
        objective, tensor_parallel = make_objective(whole, make_mesh(1, 1)), _autotp(tp_size)
    engine = _engine(objective, stage, tensor_parallel, mesh if by == "ours" and tp_size > 1 else None)
    n_data = mesh.get_data_parallel_world_size()
    dp_rank = mesh.dp_rank if by == "ours" else groups.get_data_parallel_rank()
    curve = []
    for step in range(STEPS):
        tokens, targets, _ = make_rows(4, config.vocab_size, step)
        own = slice(4 // mesh.dp_size * dp_rank, 4 // mesh.dp_size * (dp_rank + 1))
        nats, log_z = engine(tokens[own], targets[own])
        loss = (nats.sum() + 0.01 * log_z.square().sum()) * n_data / 40
        engine.backward(loss)
        engine.step()
        total = loss.detach().double()
        torch.distributed.all_reduce(total)
        curve.append((float(total) / mesh.grid.world_size, float(engine.get_global_grad_norm())))
    return curve


def _engine(objective: Any, stage: int, tensor_parallel: dict[str, Any], mpu: Any) -> Any:
    import deepspeed
    import torch
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    matrices = [p for p in objective.parameters() if p.dim() >= 2]
    others = [p for p in objective.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": others, "weight_decay": 0.0}], 1e-2, weight_decay=0.1
    )
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "steps_per_print": 2**31,
        "zero_optimization": {"stage": stage},
        **tensor_parallel,
    }
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings, mpu=mpu)
    return engine


def _autotp(tp_size: int) -> dict[str, Any]:
    """DeepSpeed's own tensor parallelism, with a table for our names; it leaves embedding and head whole."""
    specs = [
        {"patterns": [r".*attention\.o\.weight$", r".*mlp\.down\.weight$"], "partition_type": "row"},
        {"patterns": [r".*attention\.[qkv]\.weight$", r".*mlp\.(gate|up)\.weight$"], "partition_type": "column"},
    ]
    return {
        "tensor_parallel": {
            "autotp_size": tp_size,
            "partition_config": {"use_default_specs": False, "layer_specs": specs},
        }
    }


PLAIN: dict[str, Any] = {"tie_embeddings": False}
RICH: dict[str, Any] = {"qk_norm": True, "bias": "all"}


@functools.cache
def two_ranks() -> list[list[tuple[float, float]]]:
    return run_ranks(trained, 2, "ours", 2, 1, 1, PLAIN)


def test_training_is_that_of_deepspeeds_own_tensor_parallelism():
    """An implementation that shares nothing with ours. fp32, other orders of sums; Adam enlarges rounding where a
    gradient is small, hence 1e-5 after some steps, and the norm is of gradients that already differ by that."""
    ours = two_ranks()
    autotp = run_ranks(trained, 2, "autotp", 2, 1, 1, PLAIN)
    assert ours[0] == ours[1]
    for step, (own, other) in enumerate(zip(ours[0], autotp[0], strict=True)):
        assert own == pytest.approx(other, rel=1e-5), step


@functools.cache
def one_process() -> list[tuple[float, float]]:
    return run_ranks(trained, 1, "ours", 1, 1, 1, RICH)[0]


@pytest.mark.parametrize(
    ("world_size", "tp_size", "sp_size", "stage"), [(2, 2, 1, 3), (4, 2, 1, 2), (4, 2, 2, 1), (2, 1, 2, 2)]
)
def test_training_is_that_of_one_process(world_size: int, tp_size: int, sp_size: int, stage: int):
    """The gradient norm too, for which DeepSpeed goes by the marks. The bound is that of the test before this one."""
    for rank in run_ranks(trained, world_size, "ours", tp_size, sp_size, stage, RICH):
        for own, other in zip(rank, one_process(), strict=True):
            assert own == pytest.approx(other, rel=1e-5)


def test_a_mark_that_is_missing_changes_the_norm():
    """Why `seal` insists on marks: DeepSpeed counts an unmarked slice on the first tensor-parallel rank only."""
    right = two_ranks()[0]
    wrong = run_ranks(trained, 2, "ours", 2, 1, 1, PLAIN, "mlp")[0]
    assert wrong[0][0] == right[0][0]
    assert wrong[0][1] < 0.99 * right[0][1]

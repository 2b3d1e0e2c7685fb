"""What a step tells besides its loss: each source's loss, norms by layer and memory, against plain torch, for every way
of sharing the work out."""

import math
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks

SOURCES = (0, 2, 2, 0, 2, 0, 2, 2)
"""of each row of a step; the second source gives none"""

LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {  # ranks, accumulation, layout
    "one rank, ZeRO 3, accumulation 4": (1, 4, {"zero_stage": 3}),
    "ZeRO 1": (2, 1, {}),
    "ZeRO 2, accumulation 2": (2, 2, {"zero_stage": 2}),
    "ZeRO 3": (2, 1, {"zero_stage": 3}),
    "ZeRO 2, states in host memory": (2, 1, {"zero_stage": 2, "offload_optimizer": True}),
    "TP 2, ZeRO 3, accumulation 2": (2, 2, {"tp_size": 2, "zero_stage": 3}),
    "SP 2, ZeRO 2": (2, 1, {"sp_size": 2, "zero_stage": 2}),
    "bf16, ZeRO 1": (2, 1, {"precision": "bf16"}),
    "bf16 states, ZeRO 2": (2, 1, {"precision": "bf16_states", "zero_stage": 2}),
}


def case_of(ranks: int, accumulation: int, layout: dict[str, Any], chunk: int | None = None):
    from train.config import LossConfig
    from train.parallel_config import ParallelConfig
    from train.verify.cases import Case, Rows

    return Case(
        "", ranks, ParallelConfig(**layout), LossConfig(chunk_tokens=chunk), accumulation=accumulation, rows=Rows.ragged
    )


def told(case: Any) -> list[Any]:
    """Results of two steps of this rank, the second of which is asked for all there is."""
    from train.account import Account
    from train.config import Device
    from train.parallel import rank_grid
    from train.verify.cases import lr_of
    from train.verify.runs import Trial, rows

    trial = Trial(case, Device.cpu)
    grid = rank_grid(case.parallel.tp_size, case.parallel.sp_size)
    results = []
    for step in range(2):
        n = 8 // grid.dp_size
        mine = [part[grid.dp_rank * n :][:n] for part in rows(case.rows, step)]
        account = Account(10 * n, 100 * n, 200 * n, SOURCES[grid.dp_rank * n :][:n], 3)
        parts = zip(*(part.split(n // case.accumulation) for part in mine), strict=True)
        results.append(trial.engine.train_step(parts, lr_of(step), account=account, measures=step == 1))
    return results


def by_plain_torch() -> tuple[list[Any], dict[str, float], dict[str, float]]:
    """(losses of the sources, gradient norms, weight norms) of the second step."""
    import torch

    from model.init import initialize
    from model.loss import IGNORED_TARGET
    from model.transformer import Transformer
    from train.objective import Objective
    from train.verify.cases import CLIP, DECAY, EPS, lr_of, model_of
    from train.verify.runs import rows

    case = case_of(1, 1, {})
    model = Transformer(model_of(case))
    initialize(model, 0)
    objective = Objective(model)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=EPS)
    losses: list[Any] = []
    gradients: dict[str, float] = {}
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        parts = rows(case.rows, step)
        nats, _ = objective(*parts)
        real = parts[1] != IGNORED_TARGET
        optimizer.zero_grad()
        (nats.sum() / real.sum()).backward()
        of_rows, n_of_rows = nats.detach().double().sum(1).numpy(), real.sum(1).numpy()
        losses = []
        for source in range(3):
            inside = [row for row, of in enumerate(SOURCES) if of == source]
            losses.append(of_rows[inside].sum() / n_of_rows[inside].sum() if inside else None)
        gradients = by_layer({name: p.grad for name, p in model.named_parameters()})
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return losses, gradients, by_layer(dict(model.named_parameters()))


def by_layer(tensors: dict[str, Any]) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, tensor in tensors.items():
        layer = name.split(".")[0] if not name.startswith("blocks.") else ".".join(name.split(".")[:2])
        squares[layer] = squares.get(layer, 0.0) + float(tensor.detach().double().square().sum())
    return {layer: math.sqrt(square) for layer, square in squares.items()}


@pytest.fixture(scope="module")
def expected() -> Any:
    return run_ranks(by_plain_torch, 1)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_of_sources_and_norms_of_layers_are_those_of_plain_torch(name: str, expected: Any):
    ranks, accumulation, layout = LAYOUTS[name]
    losses, gradients, weights = expected
    bound = {"bf16": 3e-2, "bf16_states": 5e-2}.get(layout.get("precision", ""), 1e-5)
    assert gradients.keys() == {"embedding", "blocks.0", "blocks.1", "norm", "head"}
    outcomes = run_ranks(told, ranks, case_of(ranks, accumulation, layout, chunk=16 if accumulation > 1 else None))
    for first, second in outcomes:
        assert first.norms is None
        assert second.source_losses[1] is None
        assert second.source_losses[0::2] == pytest.approx(losses[0::2], rel=bound)
        assert second.norms.gradients == pytest.approx(gradients, rel=bound)
        assert second.norms.weights == pytest.approx(weights, rel=bound)
        of_layers = math.sqrt(sum(norm**2 for norm in second.norms.gradients.values()))
        assert of_layers == pytest.approx(second.grad_norm, rel=1e-6)
        assert second.account.numbers == (80, 800, 1600)
        assert second.norms == outcomes[0][1].norms  # to the bit
        assert [report.resident_bytes for report in first.reports] == [0] * ranks
        assert all(2**26 < report.resident_bytes < 2**34 for report in second.reports)
        assert all(report.allocated_bytes == 0 for report in second.reports)  # a CPU has no allocator of its own

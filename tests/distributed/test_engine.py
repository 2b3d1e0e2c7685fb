"""DeepSpeed in every stage, precision and accumulation against plain torch, and its state in and out bit for bit."""

import functools
import math

import pytest

from tests.distributed.engines import (
    GLOBAL,
    SEQ_LEN,
    config,
    kept,
    micro_batches,
    plan_of_step,
    rows,
    same,
    start_engine,
)
from tests.distributed.ranks import run_ranks

STEPS = 6
PEAK_LR, CLIP, DECAY = 1e-2, 0.5, 0.1


def build():
    """The model of the reference: plain torch."""
    from model.init import initialize
    from model.transformer import Transformer

    model = Transformer(config())
    initialize(model, 0)
    return model


def lr_of(step: int) -> float:
    return PEAK_LR * (step + 1) / STEPS


def plain_torch() -> tuple[list[tuple[float, float]], dict]:
    """The reference: one process, no DeepSpeed, the whole batch at once, torch's own clipping and AdamW."""
    import torch

    from model.loss import cross_entropy

    model = build()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    norms = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), eps=1e-8)
    curve = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        ids = rows(step)
        nats, count = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        loss = nats / count
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        curve.append((float(loss.detach()), float(norm)))
    return curve, {name: p.detach().numpy() for name, p in model.named_parameters()}


def engine_run(accumulation: int, interrupted_after: int | None = None, **parallel):
    """(curve, weights) of the same steps through the engine; after `interrupted_after` steps a new engine takes
    over.
    """
    from train.config import OptimizerConfig

    grid, plan = plan_of_step(accumulation)
    optimizer = OptimizerConfig(peak_lr=PEAK_LR, weight_decay=DECAY, max_grad_norm=CLIP)
    engine, curve = start_engine(plan, grid, optimizer, **parallel), []
    for step in range(STEPS):
        if step == interrupted_after:
            state = list(engine.read_state())
            engine = start_engine(plan, grid, optimizer, **parallel)
            engine.write_state(state, step)
            again = list(engine.read_state())
            assert all(a[:2] == b[:2] and bool((a[2] == b[2]).all()) for a, b in zip(state, again, strict=True))
        result = engine.train_step(micro_batches(plan, grid, step), lr_of(step))
        curve.append((result.loss, result.grad_norm))
    return curve, {name: tensor.numpy() for kind, name, tensor in engine.read_state() if kind == "master"}


@functools.cache
def reference():
    return run_ranks(plain_torch, 1)[0]


def on_ranks(n_ranks: int, accumulation: int, interrupted_after: int | None = None, **parallel):
    return run_ranks(functools.partial(engine_run, **parallel), n_ranks, accumulation, interrupted_after)[0]


CASES = [(dp, {"zero_stage": stage}, ga) for dp, ga in ((1, 1), (2, 1), (2, 2)) for stage in (1, 2, 3)]
CASES += [(2, {"zero_stage": stage, "offload_optimizer": True}, 2) for stage in (1, 2, 3)]
CASES += [(4, {"zero_stage": 3, "hpz_size": 2}, 2)]


@pytest.mark.parametrize(("dp_size", "parallel", "accumulation"), CASES)
def test_fp32_equals_plain_torch(dp_size: int, parallel: dict, accumulation: int):
    """The same operations; only the order of the sums over sequences differs, hence 1e-5 on the weights after six
    steps.

    Adam divides by the root of the second moment: where a gradient is nearly zero, its rounding decides the sign of the
    update, so weights get an absolute bound of a thousandth of the summed learning rates beside the relative one.
    """
    curve, weights = on_ranks(dp_size, accumulation, **parallel)
    expected_curve, expected_weights = reference()
    for (loss, norm), (expected_loss, expected_norm) in zip(curve, expected_curve, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
    for name, tensor in expected_weights.items():
        bound = 1e-3 * sum(lr_of(step) for step in range(STEPS)) + 1e-5 * float(abs(tensor).max())
        assert float(abs(weights[name] - tensor).max()) < bound, name


BF16_CASES = [(dp, {"zero_stage": stage}) for dp, stage in ((1, 1), (2, 1), (2, 2), (2, 3))]
BF16_CASES += [(2, {"zero_stage": stage, "offload_optimizer": True}) for stage in (1, 3)]


@pytest.mark.parametrize(("dp_size", "parallel"), BF16_CASES)
def test_bf16_stays_near_plain_torch(dp_size: int, parallel: dict):
    """bf16 keeps 8 bits of a number: losses near 5 agree to about 1e-3 over a few steps."""
    curve, _ = on_ranks(dp_size, 2, precision="bf16", **parallel)
    expected, _ = reference()
    assert [loss for loss, _ in curve] == pytest.approx([loss for loss, _ in expected], abs=5e-3)
    assert [norm for _, norm in curve] == pytest.approx([norm for _, norm in expected], rel=2e-2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_states_learn_like_plain_torch(stage: int):
    """A weight of bf16 moves in steps of 1/256 of itself: losses near 5 agree to about 1e-2 over a few steps."""
    curve, _ = on_ranks(2, 2, precision="bf16_states", zero_stage=stage)
    expected, _ = reference()
    assert [loss for loss, _ in curve] == pytest.approx([loss for loss, _ in expected], abs=2e-2)


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (3, "bf16")])
def test_whole_tensors_read_out_and_put_back_continue_bit_for_bit(stage: int, precision: str):
    whole = on_ranks(2, 1, zero_stage=stage, precision=precision)
    halves = on_ranks(2, 1, 3, zero_stage=stage, precision=precision)
    assert whole[0] == halves[0]
    assert all(bool((whole[1][name] == halves[1][name]).all()) for name in whole[1])


def uneven_rows(step: int):
    """(tokens, targets, segments) in which ranks and micro-batches have very different numbers of targets."""
    import torch

    from model.loss import IGNORED_TARGET

    ids = rows(step)
    tokens, targets = ids[:, :-1], ids[:, 1:].clone()
    for row in range(GLOBAL):
        targets[row, 3 + 3 * row :] = IGNORED_TARGET
    targets[-1] = IGNORED_TARGET
    segments = (torch.arange(SEQ_LEN) // 5).expand(GLOBAL, SEQ_LEN).to(torch.int32)
    return tokens, targets, segments


def uneven_run(accumulation: int):
    """((loss, norm), targets, hash) of one step with padded rows and document masks, in micro-batches of two rows."""
    grid, plan = plan_of_step(accumulation)
    engine = start_engine(plan, grid)
    first = grid.dp_rank * plan.sequences_per_rank
    parts = [part[first : first + plan.sequences_per_rank] for part in uneven_rows(0)]
    result = engine.train_step(zip(*(part.split(plan.micro_batch_size) for part in parts), strict=True), 1e-3)
    return (result.loss, result.grad_norm), result.n_targets, result.batch_hash


def uneven_by_plain_torch() -> tuple[float, float]:
    import torch

    from model.loss import cross_entropy

    model = build()
    tokens, targets, segments = uneven_rows(0)
    nats, count = cross_entropy(model(tokens, segments), targets)
    loss = nats / count
    loss.backward()
    return float(loss.detach()), float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9))


def test_padded_and_masked_rows_are_averaged_over_all_targets_of_the_step():
    """Whatever rank or micro-batch they fall on: the loss is divided by the global count."""
    expected = run_ranks(uneven_by_plain_torch, 1)[0]
    (one, n_targets, batch_hash), *_ = run_ranks(uneven_run, 1, 4)
    (two, *others), *_ = run_ranks(uneven_run, 2, 2)
    assert one == pytest.approx(expected, rel=1e-5)
    assert two == pytest.approx(expected, rel=1e-5)
    assert n_targets == sum(3 + 3 * row for row in range(GLOBAL - 1))
    assert others == [n_targets, batch_hash]


def one_step_engine():
    """An engine on one process that has made its first step."""
    grid, plan = plan_of_step()
    engine = start_engine(plan, grid)
    engine.train_step(micro_batches(plan, grid, 0), 1e-3)
    return engine


def nonfinite_steps(stage: int) -> list[tuple[str, float, float, bool]]:
    """(precision, loss, norm, nothing changed) of a step in which only the backward pass goes wrong, on one rank."""
    outcomes = []
    for precision in ("fp32", "bf16", "bf16_states"):
        grid, plan = plan_of_step()
        engine = start_engine(plan, grid, zero_stage=stage, precision=precision)
        batches = micro_batches(plan, grid, 0)
        engine.train_step(batches, 1e-3)
        before = kept(engine)
        if grid.rank == 0:
            victim = engine._deepspeed.module.blocks[0].mlp.down
            victim.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * math.nan,))
        result = engine.train_step(batches, 1e-3)
        outcomes.append((precision, result.loss, result.grad_norm, same(before, kept(engine))))
    return outcomes


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_whose_gradients_are_not_finite_is_reported_and_not_applied(stage: int):
    """On no rank, though the loss is fine."""
    for outcomes in run_ranks(nonfinite_steps, 2, stage):
        for precision, loss, norm, unchanged in outcomes:
            assert math.isfinite(loss), precision
            assert not math.isfinite(norm), precision
            assert unchanged, precision


def nonfinite_save(folder: str) -> str:
    from pathlib import Path

    from train.checkpoint.peers import ALONE
    from train.checkpoint.saver import Saver
    from train.config import CheckpointConfig
    from train.errors import NumericsError

    engine = one_step_engine()
    saver = Saver(Path(folder), CheckpointConfig(), ALONE)
    saver.save(1, engine.fragments(), {})
    outcome = saver.wait()
    assert outcome is not None
    assert outcome.problem is None
    next(view for kind, where, view in engine.fragments() if (kind, where.name) == ("master", "norm.weight"))[0] = (
        math.inf
    )
    try:
        saver.save(2, engine.fragments(), {})
    except NumericsError as error:
        return str(error)
    return "saved"


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    """The loss of a step is taken before its update; so the update is looked at when it is to be saved."""
    message = run_ranks(nonfinite_save, 1, str(tmp_path))[0]
    assert "the state after step 2 is not finite: master of norm.weight" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def without_a_compiler() -> int:
    """A start of the engine where no program can be found at all."""
    import os

    os.environ["PATH"] = "/nonexistent"
    curve, _ = engine_run(1)
    return len(curve)


def test_no_compiler_is_needed():
    assert run_ranks(without_a_compiler, 1) == [STEPS]

"""What the engine does with uneven rows, with numbers that are none, and without a compiler. That its layouts train
alike is shown in test_verify.py."""

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


def signs_of_a_step():
    """The order of signs of progress and of what they tell apart, in a step of two micro-batches."""
    grid, plan = plan_of_step(accumulation=2)
    engine = start_engine(plan, grid)
    order: list[str] = []
    engine.progress = lambda: order.append("sign")
    engine.module.register_full_backward_hook(lambda *_: order.append("backward"))

    def judge(result) -> bool:
        order.append("update")
        return True

    engine.train_step(micro_batches(plan, grid, 0), 1e-3, judge)
    return order


def test_a_rank_in_the_update_has_given_a_sign_more_than_one_before_it():
    """So the watchdogs know who is waited for, where no collective is seen in the stacks."""
    assert run_ranks(signs_of_a_step, 1)[0] == [*("sign", "backward", "sign") * 2, "update"]


def build():
    """The model of the reference: plain torch."""
    from model.init import initialize
    from model.transformer import Transformer

    model = Transformer(config())
    initialize(model, 0)
    return model


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
            victim = engine.module.model.blocks[0].mlp.down
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


def without_a_compiler() -> float:
    """A start of the engine, and a step, where no program can be found at all."""
    import os

    os.environ["PATH"] = "/nonexistent"
    grid, plan = plan_of_step()
    return start_engine(plan, grid).train_step(micro_batches(plan, grid, 0), 1e-3).loss


def test_no_compiler_is_needed():
    assert math.isfinite(run_ranks(without_a_compiler, 1)[0])

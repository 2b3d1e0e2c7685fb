"""The training state as fragments: out, and into another engine, of the same layout or another one, to the bit."""

import pytest

from tests.distributed.engines import (
    assembled,
    changed_settings,
    config,
    kept,
    micro_batches,
    plan_of_step,
    reader,
    same,
    sent,
    start_engine,
)
from tests.distributed.ranks import run_ranks

PRECISIONS = ("fp32", "bf16", "bf16_states")


def taken_over(stage: int) -> list[str]:
    """Two steps, state into a second engine, one step of both: names of the precisions in which anything differs."""
    from train.parallel_config import Precision

    grid, plan = plan_of_step(accumulation=2)
    different = []
    for precision in PRECISIONS:
        first, second = (start_engine(plan, grid, zero_stage=stage, precision=Precision(precision)) for _ in range(2))
        for step in range(2):
            first.train_step(micro_batches(plan, grid, step), 1e-2)
        state = kept(first)
        second.load(lambda kind, fragment, state=state: state[kind, fragment], 2)
        ends = [engine.train_step(micro_batches(plan, grid, 2), 1e-2) for engine in (first, second)]
        if ends[0] != ends[1] or not same(kept(first), kept(second)) or same(state, kept(first)):
            different.append(precision)
    return different


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_second_engine_continues_to_the_bit(stage: int, n_ranks: int):
    assert run_ranks(taken_over, n_ranks, stage) == [[]] * n_ranks


def stepped(stage: int, precision: str, wholes=None, change=None, **parallel):
    """(what this rank owns, forward weights) after two steps, or after `wholes` were loaded instead."""
    import deepspeed

    from train.parallel_config import Precision

    if change:
        changed_settings(change)
    grid, plan = plan_of_step()
    engine = start_engine(plan, grid, zero_stage=stage, precision=Precision(precision), **parallel)
    if wholes is None:
        for step in range(2):
            engine.train_step(micro_batches(plan, grid, step), 1e-2)
    else:
        engine.load(reader(wholes), 2)
    named = {name.removeprefix("model."): p for name, p in engine._deepspeed.module.named_parameters()}
    with deepspeed.zero.GatheredParameters(list(named.values()), enabled=stage == 3):
        weights = {name: parameter.detach().clone() for name, parameter in named.items()}
    dtypes = {str(parameter.dtype) for parameter in named.values()}
    return sent(kept(engine)), sent(weights), dtypes


def small_pieces(settings) -> None:
    """Many flat tensors a rank, and no parameter that stays gathered: what large models have."""
    settings["zero_optimization"] |= {"sub_group_size": 500, "stage3_param_persistence_threshold": 0}


BACK = [(1, 3, None), (2, 1, None)]
"""ranks, stage, change of DeepSpeed's dictionary"""


@pytest.mark.parametrize(
    ("precision", "layouts"),
    [
        ("fp32", [(2, 2, None), (2, 3, small_pieces), *BACK]),
        ("bf16", [(2, 3, small_pieces), *BACK]),
        ("bf16_states", BACK),
    ],
)
def test_state_goes_from_layout_to_layout_without_losing_a_bit(precision: str, layouts: list):
    """ZeRO 1 on two ranks, then each of the others, each reading what the one before it gave."""
    import torch

    state = start = assembled([owned for owned, *_ in run_ranks(stepped, 2, 1, precision)])
    assert {name for _, name in state} == expected_names()
    assert {kind for kind, _ in state} == {"master", "exp_avg", "exp_avg_sq"}
    for n_ranks, stage, change in layouts:
        ranks = run_ranks(stepped, n_ranks, stage, precision, state, change)
        state = assembled([owned for owned, *_ in ranks])
        assert state.keys() == start.keys()
        assert all(bool((state[key] == start[key]).all()) for key in start), (n_ranks, stage)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        for _, weights, dtypes in ranks:
            assert dtypes == {str(dtype)}
            for name, weight in weights.items():
                rounded = torch.from_numpy(start["master", name]).to(dtype).float()
                assert bool((rounded == torch.from_numpy(weight)).all()), f"forward does not use the master of {name}"


def expected_names() -> set[str]:
    import torch

    from model.transformer import Transformer

    with torch.device("meta"):
        return {name for name, _ in Transformer(config()).named_parameters()}


def before_a_step(stage: int, precision: str):
    grid, plan = plan_of_step()
    return sent(kept(start_engine(plan, grid, zero_stage=stage, precision=precision)))


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_before_the_first_step_masters_are_the_initial_values_and_moments_are_zero(stage: int, precision: str):
    """With bf16 too: masters are not made from the rounded weights of forward."""
    import torch

    from model.init import initial_value

    for (kind, name), whole in assembled(run_ranks(before_a_step, 2, stage, precision)).items():
        value = initial_value(name, torch.Size(whole.shape), config(), 0) if kind == "master" else torch.zeros(1)
        assert bool((torch.from_numpy(whole) == value).all()), (kind, name)


def short_read() -> str:
    from train.errors import StateError

    grid, plan = plan_of_step()
    engine = start_engine(plan, grid)
    state = kept(engine)
    try:
        engine.load(lambda kind, fragment: state[kind, fragment][:-1], 1)
    except StateError as error:
        return str(error)
    return "taken"


def test_too_few_numbers_are_refused_by_name():
    assert "master of embedding.weight [0, 4716) needs 4716 numbers, 4715 were read" in run_ranks(short_read, 1)[0]

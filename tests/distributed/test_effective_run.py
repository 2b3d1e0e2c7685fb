"""The header of a run: each feature that is put on outside the engine is switched off behind its back, and noticed."""

import pytest

from tests.distributed.ranks import run_ranks
from train.config import Device, LossConfig
from train.parallel_config import AttentionKernel, Compile, ParallelConfig, Recompute
from train.verify.cases import Case


def plain_forward(model):
    del model.layers[1].forward


def another_policy(model):
    model.layers[0].forward.policy = Recompute.selective


def eager(model):
    model.layers[1]._compiled_call_impl = None


def a_break(model):
    from torch._dynamo.utils import counters

    counters["graph_break"]["print"] += 1


def plain_core(model):
    del model.layers[0].attention.core.forward


def one_core_unwrapped(model):
    attention = model.layers[1].attention
    attention.core = attention.core.core


def a_mark_is_lost(model):
    del model.layers[1].mlp.down.weight.tp_dim


SABOTAGE = {
    "activation checkpointing": (
        plain_forward,
        Case("full", parallel=ParallelConfig(activation_checkpointing=Recompute.full)),
    ),
    "activation checkpointing ": (
        another_policy,
        Case("full", parallel=ParallelConfig(activation_checkpointing=Recompute.full)),
    ),
    "blocks compiled": (eager, Case("compiled", parallel=ParallelConfig(compile=Compile.aot_eager))),
    "blocks compiled ": (a_break, Case("compiled", parallel=ParallelConfig(compile=Compile.aot_eager))),
    "attention kernel": (plain_core, Case("math", parallel=ParallelConfig(attention_kernel=AttentionKernel.math))),
    "sequence-parallel ranks of a row": (one_core_unwrapped, Case("sp", 2, ParallelConfig(sp_size=2))),
    "tensor-parallel ranks of a matrix": (a_mark_is_lost, Case("tp", 2, ParallelConfig(tp_size=2))),
}
"""row (with a blank: a second way): (what switches its feature off, what was asked)"""


def refusal(what: str) -> str:
    from train.errors import EngineError
    from train.verify.runs import Trial

    switch, case = SABOTAGE.get(what, (None, Case("chunks", loss=LossConfig(chunk_tokens=8))))
    trial = Trial(case, Device.cpu)
    trial.step(0)  # refuses nothing
    if switch is None:
        trial.engine.module.chunk_tokens = None
    else:
        switch(trial.engine.module.model)
    try:
        trial.effective_run()
    except EngineError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("what", [*SABOTAGE, "positions with logits at a time"])
def test_what_is_switched_off_behind_its_back_is_noticed(what: str):
    ranks = SABOTAGE[what][1].ranks if what in SABOTAGE else 1
    for message in run_ranks(refusal, ranks, what):
        assert message.count("asked") == 1
        assert what.strip() in message


def header() -> str:
    from train.verify.runs import Trial

    trial = Trial(Case("all of it", 2, ParallelConfig(tp_size=2, compile=Compile.aot_eager)), Device.cpu)
    trial.step(0)
    return trial.effective_run()


def test_the_header_names_what_is_in_force():
    for text in run_ranks(header, 2):
        for row in ("ZeRO stage", "clipping", "dtype of exp_avg", "attention kernel", "blocks compiled", "groups"):
            assert f"  {row}" in text
        assert "flash" in text
        assert "2, without a break" in text

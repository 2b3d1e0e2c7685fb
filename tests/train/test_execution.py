"""Kernels, recomputation, compilation and chunks: the same numbers by other means, and less of them kept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from model.config import ModelConfig
from model.init import initialize
from model.transformer import Transformer
from train import execution
from train.objective import Objective
from train.parallel import RankGrid
from train.parallel_config import AttentionKernel, Compile, ParallelConfig, Recompute

ALONE = RankGrid(0, 1, 0, 1)
PLAIN = ParallelConfig()


def made(parallel: ParallelConfig) -> Transformer:
    model = Transformer(ModelConfig(vocab_size=101, n_layers=2, d_model=48, n_heads=6, n_kv_heads=2, d_ff=80))
    initialize(model, 1)
    execution.apply(model, parallel)
    return model


def step(parallel: ParallelConfig, chunk_tokens: int | None = None, masked: bool = False) -> tuple[Tensor, Tensor, int]:
    """(nats, all gradients, bytes kept from forward to backward) of one batch."""
    torch._dynamo.reset()
    counters.clear()
    objective = Objective(made(parallel), chunk_tokens)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens = torch.arange(64).view(2, 32) * 7 % 101
    segments = (torch.arange(32) // 9).expand(2, 32).to(torch.int32) if masked else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        nats, _ = objective(tokens, tokens.roll(-1, 1), segments)
    nats.sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    return nats.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("masked", [False, True], ids=["whole rows", "documents masked"])
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(activation_checkpointing=Recompute.full),
        ParallelConfig(activation_checkpointing=Recompute.selective),
        ParallelConfig(compile=Compile.aot_eager),
        ParallelConfig(compile=Compile.aot_eager, activation_checkpointing=Recompute.full),
        ParallelConfig(compile=Compile.aot_eager, activation_checkpointing=Recompute.selective),
        ParallelConfig(attention_kernel=AttentionKernel.flash),
    ],
    ids=["full", "selective", "compiled", "compiled, full", "compiled, selective", "flash"],
)
def test_another_execution_gives_the_same_numbers_to_the_bit(parallel: ParallelConfig, masked: bool):
    """The same kernels on the same numbers in the same order."""
    nats, gradients, _ = step(parallel, masked=masked)
    expected_nats, expected_gradients, _ = step(PLAIN, masked=masked)
    assert torch.equal(nats, expected_nats)
    assert torch.equal(gradients, expected_gradients)


def test_attention_by_hand_agrees_with_the_fused_kernel():
    """Other kernels, other order of sums: a few roundings of the largest gradient."""
    _, gradients, _ = step(ParallelConfig(attention_kernel=AttentionKernel.math))
    _, expected, _ = step(PLAIN)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 1000])
def test_a_loss_in_chunks_is_the_whole_loss(chunk_tokens: int):
    """Gradients of the head are added up in another order."""
    nats, gradients, _ = step(PLAIN, chunk_tokens)
    expected_nats, expected_gradients, _ = step(PLAIN)
    torch.testing.assert_close(nats, expected_nats, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-6 * float(expected_gradients.abs().max()))


def test_a_loss_in_chunks_keeps_no_logits():
    _, _, whole = step(PLAIN)
    _, _, chunked = step(PLAIN, 8)
    assert whole - chunked >= 64 * 101 * 4  # at least one fp32 copy of all logits


def test_full_checkpointing_keeps_little_but_the_input_of_each_block():
    _, _, everything = step(ParallelConfig(compile=Compile.aot_eager))
    _, _, selective = step(ParallelConfig(compile=Compile.aot_eager, activation_checkpointing=Recompute.selective))
    _, _, full = step(ParallelConfig(compile=Compile.aot_eager, activation_checkpointing=Recompute.full))
    assert full < selective < everything


def test_what_is_in_force_is_told_from_the_model_itself():
    model = made(ParallelConfig(activation_checkpointing=Recompute.full))
    assert execution.policies_in_force(model) == {"full"}
    del model.blocks[1].forward  # behind its back
    assert execution.policies_in_force(model) == {"full", "none"}


def test_compilation_is_told_from_graphs_that_were_made():
    torch._dynamo.reset()
    counters.clear()
    model = made(ParallelConfig(compile=Compile.aot_eager))
    assert "0 graphs made" in execution.compilation_in_force(model)
    model(torch.arange(8).view(1, 8))
    assert execution.compilation_in_force(model) == "2, without a break"
    model.blocks[0]._compiled_call_impl = None
    assert execution.compilation_in_force(model) == "1, without a break"
    assert execution.compilation_in_force(made(PLAIN)) == "none"


@pytest.mark.parametrize(
    ("kernel", "found"), [(AttentionKernel.auto, "flash"), (AttentionKernel.math, "by hand")], ids=["auto", "math"]
)
def test_the_attention_kernel_is_found_by_running_it(kernel: AttentionKernel, found: str):
    model = made(replace(PLAIN, attention_kernel=kernel))
    for masked in (False, True):
        name = execution.attention_kernel_in_force(
            model, (2, 16), ALONE, masked=masked, dtype=torch.float32, device="cpu"
        )
        assert found in name


def test_a_kernel_that_cannot_be_had_is_refused_rather_than_replaced():
    model = made(ParallelConfig(attention_kernel=AttentionKernel.cudnn))
    with pytest.raises(RuntimeError, match=r"No available kernel|No viable backend"):
        model(torch.arange(8).view(1, 8))


def test_compiling_what_zero_3_breaks_up_is_refused():
    problems = ParallelConfig(zero_stage=3, compile=Compile.inductor).problems()
    assert len(problems) == 1
    assert "zero_stage=2" in problems[0]

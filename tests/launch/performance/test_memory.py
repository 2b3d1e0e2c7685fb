"""The predicted memory of published layouts, against the figures of a paper that gives them by part."""

import dataclasses

import pytest

from launch.performance.memory import memory
from launch.performance.stacks import FSDP_COMPILED, MEGATRON_2021
from model.config import Mlp, ModelConfig, Norm, Positions
from tests.launch.performance.jobs import GPT_22B, H100, LLAMA_8B, changed, job

GIB = 2**30


def gpt(n_layers: int, d_model: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=51_200, n_layers=n_layers, d_model=d_model, n_heads=n_heads, n_kv_heads=n_heads, d_ff=4 * d_model,
        mlp=Mlp.gelu, norm=Norm.layernorm, positions=Positions.none,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "layout", "states", "activations"),
    [
        (gpt(48, 6144, 64), {"micro_batch": 4}, 45.56, 59.25),
        (gpt(96, 12_288, 96), {"pp": 8, "virtual_stages": 3}, 45.56, 66.84),
        (gpt(105, 20_480, 128), {"pp": 35, "virtual_stages": 3}, 31.64, 114.02),
        (gpt(128, 25_600, 160), {"pp": 64}, 32.96, 131.25),
    ],
    ids=["22B", "175B", "530B", "1T"],
)
def test_states_and_activations_are_those_of_the_paper(model, layout, states: float, activations: float):
    """arXiv 2205.05198, figure 1: without recomputation or sequence parallelism, 18 bytes a parameter. The paper
    spreads the embedding over all stages, we see it on the outer ones."""
    sizes = {"seq_len": 2048, "tp": 8, "accumulation": 512, "sequence_parallel": False}
    found = memory(job(MEGATRON_2021, model, **sizes | layout))
    assert (found.weights + found.gradients + found.optimizer) / GIB == pytest.approx(states, rel=0.05)
    assert found.activations / GIB == pytest.approx(activations, rel=0.01)


def test_sequence_parallelism_and_selective_recomputation_save_what_the_paper_says():
    """The same, figure 7 and section 5: of the activations of 22B, 34 bytes of 2048 x 4 x 6144 / 8 are left."""
    both = memory(job(MEGATRON_2021, GPT_22B, seq_len=2048, micro_batch=4, tp=8, recompute="selective"))
    working = 5 * 64 * 2048 / 8 * 2048 * 4  # scores of the one block that runs again
    assert both.activations - working == 48 * 34 * 2048 * 4 * 6144 / 8


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_shares_states_out(stage: int):
    alone, shared = (memory(job(FSDP_COMPILED, dp=dp, zero=stage)) for dp in (1, 8))
    shares = [shared.optimizer / alone.optimizer, shared.gradients / alone.gradients, shared.weights / alone.weights]
    assert shares == [1 / 8 if number < stage else 1 for number in range(3)]


def test_a_second_copy_of_the_weights_is_counted():
    three = job(FSDP_COMPILED, dp=64, zero=3)
    params = 8_030_261_248 - 65 * 4096  # norms aside
    more = memory(changed(three, hpz=8)).weights - memory(three).weights
    assert more == pytest.approx(2 * params / 8, rel=0.001)


def test_recomputation_and_smaller_batches_need_less():
    for kinds in (("none", "selective"), ("selective", "full")):
        more, less = (memory(job(FSDP_COMPILED, recompute=kind)).activations for kind in kinds)
        assert less < more
    assert memory(job(micro_batch=1)).total < memory(job(micro_batch=2)).total


def test_what_fills_the_memory_to_the_brim_does_not_fit():
    """CUDA, NCCL and fragments need some of it."""
    found = memory(job(FSDP_COMPILED, LLAMA_8B, dp=64, zero=3))
    assert not found.fits(dataclasses.replace(H100, memory_bytes=found.total + 2**30))
    assert found.fits(dataclasses.replace(H100, memory_bytes=found.total + 2**31))

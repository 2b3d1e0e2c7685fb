"""The predicted step time: each term moves as its physics says, and by as much where that is known."""

import dataclasses

import pytest

from launch.performance.constants import Constants
from launch.performance.layout import Job
from launch.performance.matmul import Product, block_products, head_product, seconds
from launch.performance.stacks import FSDP_COMPILED, FSDP_EAGER, MEGATRON, MEGATRON_2021, Stack
from launch.performance.step import StepTime, step_time
from model.arithmetic import count_parameters
from tests.launch.performance.jobs import A100, GPT_22B, H100, LLAMA_8B, changed, job


def time(job: Job, hardware=H100) -> StepTime:
    return step_time(job, hardware, Constants())


def test_the_matmuls_of_a_model_are_all_counted():
    """Forward FLOPs of blocks and head are 2 for each parameter in matmuls and token, on one GPU and over several."""
    for tp in (1, 2, 8):
        layout = job(tp=tp).layout
        flops = LLAMA_8B.n_layers * sum(p.flops for p in block_products(layout)) + head_product(layout).flops
        assert flops * tp == 2 * count_parameters(LLAMA_8B).n_params_matmul * layout.tokens


def test_a_step_is_never_faster_than_the_peak():
    for hardware in (A100, H100):
        flops = 6 * count_parameters(LLAMA_8B).n_params_matmul * job().layout.tokens_per_step
        assert time(job(), hardware).matmul > flops / hardware.peak("bf16")


def test_a_narrow_matmul_is_bound_by_memory():
    """Of the same FLOPs, the one that moves more bytes takes longer, in the limit as long as the bytes take."""
    wide, narrow = Product(4096, 4096, 4096), Product(2**20, 2**8, 2**8)
    assert wide.flops == narrow.flops
    took = seconds(narrow, H100, Constants(), "bf16")
    assert took > 1.5 * seconds(wide, H100, Constants(), "bf16")
    assert took > 2 * narrow.numbers / H100.memory_bytes_per_second


def test_full_recomputation_costs_a_forward():
    plain, again = time(job()), time(job(recompute="full"))
    forward = (plain.matmul + plain.attention + plain.elementwise) / 3
    assert again.total - plain.total == pytest.approx(forward, rel=0.2)


@pytest.mark.parametrize("stack", [MEGATRON, FSDP_COMPILED, MEGATRON_2021], ids=lambda stack: stack.selective)
def test_selective_recomputation_costs_less_than_full(stack: Stack):
    none, some, full = (time(job(stack, recompute=kind)).total for kind in ("none", "selective", "full"))
    assert none < some < full


def test_the_bubble_is_that_of_the_formula():
    """(p - 1) / (v m) of the micro-batches' time (arXiv 2104.04473, section 2.2)."""
    p, m = 8, 32
    endless = dataclasses.replace(H100, network_bytes_per_second=1e15)  # what is handed on between stages takes no time
    once, twice = (time(job(pp=p, accumulation=m, virtual_stages=v), endless) for v in (1, 2))
    working = sum(
        getattr(once, part)
        for part in ("matmul", "attention", "elementwise", "loss", "tensor_parallel", "weights_gathered")
    )
    assert once.pipeline == pytest.approx(working * (p - 1) / m, rel=1e-4)
    assert twice.pipeline == pytest.approx(once.pipeline / 2, rel=1e-4)


def test_tensor_parallelism_costs_more_the_more_ranks_and_the_slower_their_links():
    slow = dataclasses.replace(H100, network_bytes_per_second=5e9)
    per_gpu = [time(job(tp=tp), slow).total * tp for tp in (1, 2, 4, 8, 16)]
    assert per_gpu == sorted(per_gpu)
    inside, outside = (time(job(tp=tp), slow).tensor_parallel for tp in (8, 16))
    assert outside > 5 * inside


def test_zero_3_hides_its_gathering_behind_enough_work():
    """With few tokens for each gathering it is in the way, with many only what it takes from computation is."""
    few, many = (
        time(job(FSDP_COMPILED, dp=64, zero=3, micro_batch=size, accumulation=1, seq_len=512)) for size in (1, 64)
    )
    assert few.weights_gathered > few.matmul
    assert many.weights_gathered < 0.1 * many.matmul


def test_hpz_spares_the_network():
    slow = dataclasses.replace(H100, network_bytes_per_second=5e9)
    three = job(FSDP_COMPILED, dp=64, zero=3)
    assert time(changed(three, hpz=8), slow).total < time(three, slow).total


def test_zero_2_reduces_gradients_after_every_forward():
    one, two = (time(job(dp=8, zero=stage, accumulation=16)).gradients_reduced for stage in (1, 2))
    assert two > 4 * one


def test_more_nodes_wait_for_each_other():
    per_step = [time(job(dp=dp)).total for dp in (8, 64, 512)]
    assert per_step == sorted(per_step)
    assert per_step[-1] < 1.5 * per_step[0]


def test_fused_kernels_and_fp8_are_faster_where_they_compute():
    eager, fused = time(job(FSDP_EAGER)), time(job(FSDP_COMPILED))
    assert fused.elementwise < eager.elementwise
    assert fused.matmul == eager.matmul
    fp8 = time(job(FSDP_COMPILED, precision="fp8"))
    assert fp8.matmul < 0.75 * fused.matmul
    assert fp8.attention == fused.attention


def test_scores_in_memory_cost_more_the_longer_rows_are():
    """In units of fused attention; both grow with the square, but traffic does not shrink with wider heads."""
    unfused = dataclasses.replace(MEGATRON, attention="unfused")
    for seq_len in (1024, 4096, 16_384):
        fused, whole = (
            time(job(stack, GPT_22B, seq_len=seq_len, tp=8), A100).attention for stack in (MEGATRON, unfused)
        )
        assert whole > 2 * fused


def test_a_power_limit_slows_what_computes_not_what_moves():
    held = dataclasses.replace(H100, watts=500)
    free, slow = time(job()), time(job(), held)
    assert slow.attention > 1.2 * free.attention
    assert slow.elementwise == free.elementwise

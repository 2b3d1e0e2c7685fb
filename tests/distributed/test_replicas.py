"""Sums of bits that travel with the ranks' reports: what they must tell, whatever the size and place of a tensor."""

import pytest
import torch

from train.engine.exchange import Report, _packed, _unpacked
from train.engine.replicas import _bit_sum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1, 3, 8, 37])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_every_single_flipped_bit_changes_the_sum_of_a_tensor(dtype: torch.dtype, size: int, offset: int) -> None:
    held = torch.randn(offset + size, generator=torch.Generator().manual_seed(size)).to(dtype)
    tensor, n_bits = held[offset:], 8 * held.element_size()
    before = int(_bit_sum(tensor))
    bits = tensor.view({16: torch.int16, 32: torch.int32}[n_bits])
    for bit in range(n_bits):
        flip = torch.tensor(-(1 << bit) if bit == n_bits - 1 else 1 << bit, dtype=bits.dtype)
        for place in (0, size // 2, size - 1):
            bits[place] ^= flip
            assert int(_bit_sum(tensor)) != before
            bits[place] ^= flip
    assert int(_bit_sum(tensor)) == before


def test_equal_numbers_have_equal_sums_wherever_they_lie() -> None:
    numbers = torch.randn(37)
    for offset in range(4):
        held = torch.zeros(offset + 37)
        held[offset:] = numbers
        assert _bit_sum(held[offset:]) == _bit_sum(numbers)


def test_a_sum_of_bits_needs_no_copy_of_the_weights() -> None:
    """A copy as integers of 64 bits would be four times the weights, on a device that is full of them."""
    from torch.profiler import ProfilerActivity, profile

    weights = torch.zeros(1_000_000, dtype=torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        _bit_sum(weights)
    taken = sum(max(0, event.self_cpu_memory_usage) for event in seen.events() or [])
    assert taken < 10_000


def test_reports_arrive_as_they_were_sent() -> None:
    import math

    sent = [
        Report(1 / 3, math.inf, 15, 1e-9, 0.0, 12.5, (-1, 2**63 - 1)),
        Report(math.nan, 0.1, 0, 0.0, 5e-324, -0.0, (-(2**63), 0)),
    ]
    received = _unpacked(torch.tensor([_packed(report) for report in sent]).numpy())
    assert [repr(report) for report in received] == [repr(report) for report in sent]
    assert type(received[0].stop) is int

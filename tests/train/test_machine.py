"""What a device is found to be able to do."""

import pytest
import torch

from train.config import ClusterConfig
from train.machine import find_machine
from train.parallel_config import Precision


def test_the_peak_of_a_cpu_is_tried_by_products_short_enough_to_run_undisturbed(monkeypatch: pytest.MonkeyPatch):
    """Of 1024 each, none finished within a slice of time on busy cores: the peak came out at a seventh, the MFU above
    1."""
    sizes: set[int] = set()
    product = torch.mm

    def seen(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.add(len(a))
        return product(a, b)

    monkeypatch.setattr(torch, "mm", seen)
    found = find_machine(ClusterConfig(), Precision.fp32, "cpu", 2)
    assert found.peak_flops_per_second > 0
    assert min(sizes) <= 256
    assert max(sizes) >= 1024

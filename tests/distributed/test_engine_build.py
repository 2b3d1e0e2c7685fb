"""The model's first weights on the device: what a rank holds meanwhile, and that nothing of the module is lost."""

import pytest

from tests.distributed.engines import assembled, kept, plan_of_step, reader, sent
from tests.distributed.ranks import run_ranks


def started(build, **parallel):
    """An engine around any module, with first values that tell where they belong."""
    from train.config import OptimizerConfig, ParallelConfig
    from train.engine.core import start

    mesh = parallel.pop("mesh", None)
    grid, plan = plan_of_step()
    options = {"optimizer": OptimizerConfig(), "parallel": ParallelConfig(**parallel), "mesh": mesh}
    return start(build, numbered, plan=plan, grid=grid, device="cpu", **options)


def numbered(name: str, shape):
    """0, 1, 2, … plus 1000 times the length of the name: exact in fp32, another for each place and name used here."""
    import torch

    return torch.arange(shape.numel(), dtype=torch.float32).reshape(shape) + 1000 * len(name)


def peak_bytes(stage: int, n_layers: int = 12, width: int = 64) -> tuple[int, int, int]:
    """(most bytes of tensors alive during a start, bytes of the whole model, of its largest parameter)."""
    from torch import nn
    from torch.profiler import ProfilerActivity, profile

    def build():
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(n_layers)))

    started(build, zero_stage=stage)  # what the first start allocates for good
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        engine = started(build, zero_stage=stage, bucket_elements=1000)
    assert engine is not None
    alive = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak, 4 * n_layers * width**2, 4 * width**2


@pytest.mark.parametrize("unused", [0])
def test_measure(unused):
    for stage in (1, 3):
        for n in (1, 2, 4):
            print(stage, n, run_ranks(peak_bytes, n, stage))

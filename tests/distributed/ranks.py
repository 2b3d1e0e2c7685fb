"""`train.verify.ranks` for tests: the first rank that fails or hangs fails the test with its traceback."""

from collections.abc import Callable
from typing import Any

import pytest

from train.verify import ranks
from train.verify.ranks import PRELOAD, RankFailedError, preload

LATE = [
    "tests.faults.jobs",
    "torch.utils.tensorboard",
    "hydra",
    "sentencepiece",
    "model.generate",
    "deepspeed.comm.mori",
]
"""what a rank would import on its way, one after another"""
preload(["tests.distributed.quiet", *PRELOAD, *LATE])  # quiet sets what torch reads at its import


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """[function(*arguments) on rank 0, 1, …]."""
    return Ranks(function, world_size, *arguments).results()


class Ranks(ranks.Ranks):
    """Ranks that are running, so that a test can send them signals on the way."""

    def results(self, timeout_seconds: float = 120) -> list[Any]:
        try:
            return super().results(timeout_seconds)
        except RankFailedError as failure:
            pytest.fail(str(failure))

"""DeepSpeed itself: the version that was measured, imported quietly, with its processes joined.

Everything private of DeepSpeed that the project touches is in this folder, which therefore insists on one version.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from train.engine.clock import watch_collectives
from train.errors import EngineError
from train.parallel import rank_grid, restarted_store

DEEPSPEED_VERSION = "0.19.8"


def join_ranks(device: str) -> Any:
    """The process group of all ranks, and the deepspeed module. Whoever needs a mesh calls it first; a second call does
    nothing."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed"
    )  # DeepSpeed's calls, not ours
    deepspeed = _import_deepspeed(device)
    watch_collectives(device)
    backend = "gloo" if device == "cpu" else "nccl"
    with quiet():
        _meet_again(backend, device)
        deepspeed.init_distributed(backend, verbose=False)
    return deepspeed


def sum_over_ranks(numbers: list[int], device: str) -> list[int]:
    """Element by element, over all ranks. A collective, valid after `join_ranks`."""
    import torch

    sums = torch.tensor(numbers, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def _meet_again(backend: str, device: str) -> None:
    """After a restart by torchrun, the group of all ranks; DeepSpeed then takes it as it is."""
    import torch
    import torch.distributed as dist

    grid = rank_grid()
    if dist.is_initialized() or (store := restarted_store()) is None:
        return
    where = None if device == "cpu" else torch.device(device)
    dist.init_process_group(backend, store=store, rank=grid.rank, world_size=grid.world_size, device_id=where)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed prints memory figures and warns about torch names it uses; neither tells our users anything.

    What it printed is shown after all if it fails.
    """
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except BaseException:
        sys.stderr.write(printed.getvalue())
        raise


def _import_deepspeed(device: str) -> Any:
    with quiet():
        import deepspeed
        import deepspeed.ops
    if deepspeed.__version__ != DEEPSPEED_VERSION:
        raise EngineError(
            f"deepspeed {deepspeed.__version__} is installed; this project is made for {DEEPSPEED_VERSION}"
        )
    if device == "cpu":
        # Asked which compiled ops could work here, DeepSpeed runs compilers, and then builds one for inference that
        # nobody calls: minutes, and a killed build leaves a lock on which every later start hangs. With a table in
        # place it looks no further; with an empty one it builds nothing and falls back to gloo.
        ops: Any = deepspeed.ops
        if not hasattr(ops, "_probe_compatible_ops"):
            raise EngineError("deepspeed no longer looks for its compiled ops where this version did")
        ops.__compatible_ops__ = {}
    return deepspeed

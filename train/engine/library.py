"""DeepSpeed itself: the version that was measured, imported quietly, with its processes joined.

Everything private of DeepSpeed that the project touches is in this folder, which therefore insists on one version.
"""

import contextlib
import io
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from train.engine.clock import watch_collectives
from train.errors import EngineError, RendezvousError
from train.parallel import meeting_place, rank_grid, restarted_store

DEEPSPEED_VERSION = "0.19.8"
JOIN_SECONDS = 300.0
"""all ranks have to be there within this time of the first; torch's own limit is half an hour"""
SAID_AFTER_SECONDS = 20.0
"""a rank that waits so long for the others says so"""


def join_ranks(device: str) -> Any:
    """The process group of all ranks, and the deepspeed module. Whoever needs a mesh calls it first; a second call does
    nothing. Raises RendezvousError if they do not meet."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed"
    )  # DeepSpeed's calls, not ours
    deepspeed = _import_deepspeed(device)
    watch_collectives(device)
    backend = "gloo" if device == "cpu" else "nccl"
    _meet(backend, device)
    with quiet():
        deepspeed.init_distributed(backend, verbose=False)  # takes up the group that is there
    return deepspeed


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


def _meet(backend: str, device: str) -> None:
    """Makes the process group of all ranks, unless there is one. Its own time limit, that of every collective, stays
    torch's; only for meeting there is a shorter one."""
    import torch
    from torch import distributed
    from torch._C._distributed_c10d import HashStore

    if distributed.is_initialized():
        return
    grid = rank_grid()
    where = None if device == "cpu" else torch.device(device)
    if grid.world_size == 1:  # torch's own store would listen on every interface of the machine, and ask nobody
        store = HashStore()
        distributed.init_process_group(backend, store=store, rank=0, world_size=1, device_id=where)
        return
    host, port = meeting_place()
    place = f"{host}:{port} (MASTER_ADDR, MASTER_PORT)"
    try:
        socket.getaddrinfo(host, port)
        with _in_time(place):
            store = restarted_store() or _first_store()
            store.set_timeout(distributed.default_pg_timeout)
            distributed.init_process_group(
                backend, store=store, rank=grid.rank, world_size=grid.world_size, device_id=where
            )
    except socket.gaierror as error:
        raise RendezvousError(
            f"no rank can be met at {place}: the host has no address here ({error.strerror})"
        ) from None
    except distributed.DistError as error:
        raise RendezvousError(_not_met(place, str(error))) from None


def _first_store() -> Any:
    """In which the ranks find each other: rank 0, or its launcher, keeps it."""
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(iter(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS))))
    return store


@contextlib.contextmanager
def _in_time(place: str) -> Iterator[None]:
    """Says that it waits, and ends the process if torch does not come back in time: it waits without limit for a
    stranger who took the port and says nothing."""

    def say() -> None:
        print(
            f"still waiting for all ranks to meet at {place}; up to {JOIN_SECONDS:.0f} s", file=sys.stderr, flush=True
        )

    def leave() -> None:
        print(f"error: {_not_met(place, 'nothing')}", file=sys.stderr, flush=True)
        os._exit(RendezvousError.exit_code)

    timers = [threading.Timer(SAID_AFTER_SECONDS, say), threading.Timer(JOIN_SECONDS + 5, leave)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _not_met(place: str, words: str) -> str:
    if "EADDRINUSE" in words:
        return (
            f"rank 0 cannot wait for the others at {place}: the port is taken, by another run perhaps. Start again "
            "with another MASTER_PORT; torchrun --standalone and the scripts of launch submit look for a free one"
        )
    return (
        f"the ranks did not meet at {place} within {JOIN_SECONDS:.0f} s: one of them, or the host of rank 0, is down "
        f"or out of reach. torch says: {words.splitlines()[0]}"
    )


def _load_muon() -> None:
    """DeepSpeed's own Muon, which it asks for whatever the optimizer, and which nobody here calls. Loading it has torch
    load its compiler, for three functions: seconds at every start. So they stay uncompiled."""
    import torch

    compiled = torch.compile
    torch.compile = lambda function, *_, **__: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compiled


def _import_deepspeed(device: str) -> Any:
    with quiet():
        import deepspeed
        import deepspeed.ops
    if deepspeed.__version__ != DEEPSPEED_VERSION:
        raise EngineError(
            f"deepspeed {deepspeed.__version__} is installed; this project is made for {DEEPSPEED_VERSION}"
        )
    with quiet():
        _load_muon()
    if device == "cpu":
        # Asked which compiled ops could work here, DeepSpeed runs compilers, and then builds one for inference that
        # nobody calls: minutes, and a killed build leaves a lock on which every later start hangs. With a table in
        # place it looks no further; with an empty one it builds nothing and falls back to gloo.
        ops: Any = deepspeed.ops
        if not hasattr(ops, "_probe_compatible_ops"):
            raise EngineError("deepspeed no longer looks for its compiled ops where this version did")
        ops.__compatible_ops__ = {}
    return deepspeed

"""Runs a function on 1 to 4 gloo ranks and gives back what each returned, in seconds instead of tens of seconds.

A fork server imports torch and DeepSpeed once; each rank is forked from it, so it starts warm and with fresh globals.
"""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

_PRELOAD = [
    "tests.distributed.quiet",  # first: it sets what torch reads when it is imported
    "torch",
    "deepspeed",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.utils.tensorboard",
    "train.loop",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOAD)


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """[function(*arguments) on rank 0, 1, …]. The first rank that fails or hangs fails the test with its traceback."""
    return Ranks(function, world_size, *arguments).results()


class Ranks:
    """Ranks that are running, so that a test can send them signals on the way."""

    def __init__(self, function: Callable[..., Any], world_size: int, *arguments: Any):
        port = _free_port()
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(world_size):
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(target=_one_rank, args=(sender, rank, world_size, port, function, arguments))
            process.start()
            sender.close()
            self._pipes.append(receiver)
            self._processes.append(process)

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        os.kill(self._processes[rank].pid, number)

    def is_running(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def results(self, timeout_seconds: float = 120) -> list[Any]:
        """What each rank returned. Afterwards none of them is left."""
        try:
            outcomes = [_receive(pipe, rank, timeout_seconds) for rank, pipe in enumerate(self._pipes)]
        finally:
            for process in self._processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
        if failures := [text for succeeded, text in outcomes if not succeeded]:
            pytest.fail(failures[0])
        return [value for _, value in outcomes]


def _receive(pipe: Connection, rank: int, timeout_seconds: float) -> tuple[bool, Any]:
    if not pipe.poll(timeout_seconds):
        return False, f"rank {rank} gave no answer within {timeout_seconds} s"
    try:
        return pipe.recv()
    except EOFError:
        return False, f"rank {rank} died without a word"


def _one_rank(
    pipe: Connection, rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, f"rank {rank} of {world_size}:\n{traceback.format_exc()}"))
    finally:
        pipe.close()
        os._exit(0)  # no clean-up of process groups: peers may be gone


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""A function on several ranks of this machine, each a process of its own, in seconds instead of tens of seconds.

A fork server imports torch and DeepSpeed once; each rank is forked from it, so it starts warm and with fresh globals
(some of DeepSpeed's process groups can be made only once in a process).
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from train.parallel import become_rank, free_port

PRELOAD = [
    "torch",
    "deepspeed",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "train.loop",
]
_context = multiprocessing.get_context("forkserver")


class RankFailedError(Exception):
    """A rank raised, died or gave no answer; the message is its traceback or says which."""


def preload(modules: list[str]) -> None:
    """What the fork server imports before the first rank; to be called before that."""
    _context.set_forkserver_preload(modules)


class Ranks:
    """Ranks that are running."""

    def __init__(self, function: Callable[..., Any], world_size: int, *arguments: Any, device: str = "cpu"):
        """function: of a module, called with `arguments` on each rank."""
        port = free_port()
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(world_size):
            ours, theirs = _context.Pipe()
            place = (rank, world_size, port, device)
            process = _context.Process(target=_one_rank, args=(theirs, place, function, arguments))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        os.kill(self._processes[rank].pid, number)

    def is_running(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def results(self, timeout_seconds: float = 120) -> list[Any]:
        """What each rank returned; none of them is left afterwards. Raises RankFailedError with the first failure."""
        try:
            outcomes = [_receive(pipe, rank, timeout_seconds) for rank, pipe in enumerate(self._pipes)]
        finally:
            for pipe in self._pipes:
                pipe.close()
            for process in self._processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
        if failures := [text for succeeded, text in outcomes if not succeeded]:
            raise RankFailedError(failures[0])
        return [value for _, value in outcomes]


def _receive(pipe: Connection, rank: int, timeout_seconds: float) -> tuple[bool, Any]:
    if not pipe.poll(timeout_seconds):
        return False, f"rank {rank} gave no answer within {timeout_seconds} s"
    try:
        return pipe.recv()
    except EOFError:
        return False, f"rank {rank} died without a word"


def _one_rank(
    pipe: Connection, place: tuple[int, int, int, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    rank, world_size, port, device = place
    become_rank(rank, world_size, port, device)
    try:
        pipe.send((True, function(*arguments)))
        _wait_for_the_others(pipe)
    except BaseException:
        pipe.send((False, f"rank {rank} of {world_size}:\n{traceback.format_exc()}"))
    finally:
        pipe.close()
        os._exit(0)  # no clean-up of process groups: peers may be gone


def _wait_for_the_others(pipe: Connection) -> None:
    """Until the caller has every rank's answer and closes the pipe: rank 0 holds the store in which the others may
    still be meeting."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()

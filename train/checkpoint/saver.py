"""Saves a run's state while it goes on: the training thread copies, a background thread writes, polls decide together.

A save goes through three states, the same on every rank, because only sums over ranks move it on:

    idle      `save` looks for numbers that are not finite, copies this rank's fragments to host memory, and returns
    writing   every rank's thread writes its own files (share.py); no collective, nothing of the training is touched
    finishing rank 0's thread makes them a checkpoint and removes old ones (commit.py, folders.py), or removes them all
              if one rank has failed

`poll`, once a step on all ranks, costs one small sum while a save runs and nothing else; it gives the outcome once.
A failure on any rank fails the save on all, and the run goes on with the checkpoints it had; but an attempt that a
later one has taken the run from (`insist`) ends, on every rank.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.files import DataError, write_error
from train.checkpoint.commit import commit, nobody_else
from train.checkpoint.folders import folder_name, hidden_name, remove, remove_old
from train.checkpoint.host import HostCopy, Part
from train.checkpoint.peers import Peers
from train.checkpoint.share import write_share
from train.config import CheckpointConfig
from train.errors import CheckpointError, FencedError, NumericsError
from train.fragment import Fragment


@dataclass(frozen=True)
class Outcome:
    """How a save ended, the same on every rank (but for the warning, which rank 0 alone has, and the seconds)."""

    step: int
    problem: str | None
    """why there is no checkpoint of this step; None if there is one"""
    warning: str | None
    """what went wrong afterwards: older checkpoints that could not be removed"""
    retry_step: int | None = None
    """after a failure: from this step on a save is due again, if none was before"""
    paused_seconds: float = field(default=0.0, compare=False)
    """for which the training stood still on this rank, from `save` to the outcome"""
    seconds: float = field(default=0.0, compare=False)
    """from `save` to the end of this rank's last part in the background"""


class State(StrEnum):
    idle = "idle"
    writing = "writing"
    finishing = "finishing"


class Saver:
    """One rank's part in the saves of a run. All its methods are collectives, to be called on one thread.

    `folder` is that of all checkpoints, on a file system that all ranks share. attempt: the number of this attempt at
    the run; insist: raises FencedError when a later one owns it.
    """

    def __init__(
        self,
        folder: Path,
        rule: CheckpointConfig,
        peers: Peers,
        attempt: int = 0,
        insist: Callable[[], None] = nobody_else,
    ):
        self.state = State.idle
        self._folder, self._rule, self._peers = folder, rule, peers
        self._attempt, self._insist = attempt, insist
        self._host = HostCopy()
        self._job = _Job(lambda: None, folder, insist)
        self._step = 0
        self._failures = 0
        self._retry_step: int | None = None
        self._began = self._paused = 0.0
        self._text = ""
        self._problem: str | None = None
        self._warning: str | None = None

    def save(self, step: int, fragments: Iterable[tuple[str, Fragment, Tensor]], state: dict[str, Any]) -> None:
        """Begins the save of `step`; when it returns, tensors and state may change.

        fragments: (kind, where, flat tensor) of what this rank owns; over all ranks each number exactly once. state:
        what rank 0 writes as state.json. Raises NumericsError on every rank if a tensor is not finite, because a
        checkpoint that cannot be trained on must not push out those that can; RuntimeError if a save is running
        (`wait` first: its copy is in the memory that this one needs).
        """
        if self.state is not State.idle:
            raise RuntimeError(f"the save of step {self._step} is running: wait() for it before the next one")
        self._began = time.perf_counter()
        self._step, self._problem, self._warning = step, None, None
        action = _attempt(lambda: self._prepare(state), self._folder)
        parts, problem = self._copy(fragments)
        problem = action or problem
        self._begin(State.writing, lambda: self._write(parts, problem))
        self._paused = time.perf_counter() - self._began

    def poll(self) -> Outcome | None:
        """Moves a save on as far as all ranks are; its outcome when it has ended just now, else None.

        Raises FencedError, on every rank, if one has found that a later attempt owns the run.
        """
        if self.state is State.idle:
            return None
        asked = time.perf_counter()
        is_over = self._move_on()
        self._paused += time.perf_counter() - asked
        return self._outcome() if is_over else None

    def wait(self) -> Outcome | None:
        """Waits for the end of a running save and gives its outcome; None if none runs. Raises FencedError."""
        outcome = None
        while self.state is not State.idle:
            asked = time.perf_counter()
            self._job.join()
            self._paused += time.perf_counter() - asked
            outcome = self.poll()
        return outcome

    def retry_is_due(self, step: int) -> bool:
        """Whether the last save has failed, and is to be tried again at this step: after the first failure in a row one
        step later, then 2, 4, 8 … steps. Saves that are due in any case go on beside that."""
        return self._retry_step is not None and step >= self._retry_step and self.state is State.idle

    # --- on the training thread ---------------------------------------------------------------------------------------

    def _prepare(self, state: dict[str, Any]) -> None:
        """Rank 0: state.json as it is now, and an empty folder for all ranks."""
        if not self._peers.is_first:
            return
        self._text = json.dumps(state, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        temporary = self._folder / hidden_name(self._step, self._attempt)
        remove(temporary)
        temporary.mkdir(parents=True)

    def _copy(self, fragments: Iterable[tuple[str, Fragment, Tensor]]) -> tuple[list[Part], str | None]:
        """The copies, or why there is no memory for them. Iterates to the end in any case: it may be a collective."""
        self._host.clear()
        parts: list[Part] = []
        places: list[str] = []
        bounds: list[Tensor] = []
        problem: str | None = None
        for kind, fragment, tensor in fragments:
            if tensor.numel() == 0:
                continue
            places.append(f"{kind} of {fragment.name}")
            bounds.append(torch.stack(tensor.aminmax()))  # NaN and infinities go through to the bounds
            try:
                if problem is None:
                    parts.append(self._host.take(kind, fragment, tensor))
            except (MemoryError, RuntimeError) as error:
                problem = f"no host memory for a copy of the state: {error}"
        self._host.settle()
        self._refuse_nonfinite(places, bounds)
        return parts, problem

    def _refuse_nonfinite(self, places: list[str], bounds: list[Tensor]) -> None:
        mine = next((place for place, is_finite in zip(places, _finite(bounds), strict=True) if not is_finite), None)
        which = self._peers.first_message(mine)
        if which is not None:
            if self._peers.is_first:
                self._clear()
            raise NumericsError(f"the state after step {self._step} is not finite: {which}. It was not saved")

    def _begin(self, state: State, action: Callable[[], None]) -> None:
        self.state = state
        self._job = _Job(action, self._folder / folder_name(self._step), self._insist)

    def _move_on(self) -> bool:
        """To the next state, if all ranks are done with this one; True if that was the last."""
        job = self._job
        is_done = job.is_done
        done, failed, fenced = self._peers.agree(
            [int(is_done), int(is_done and job.problem is not None), int(is_done and job.is_fenced)]
        )
        if done < self._peers.size:
            return False
        if fenced:
            self.state = State.idle
            if self._peers.is_first:
                self._clear()
            raise FencedError(self._peers.first_message(job.problem if job.is_fenced else None))
        if failed:
            self._problem = self._peers.first_message(job.problem)
        if self.state is State.writing:
            self._begin(State.finishing, self._finish if self._peers.is_first else lambda: None)
            return False
        self.state = State.idle
        return True

    def _outcome(self) -> Outcome:
        self._failures = 0 if self._problem is None else self._failures + 1
        self._retry_step = None if self._problem is None else self._step + 2 ** (self._failures - 1)
        return Outcome(
            self._step, self._problem, self._warning, self._retry_step, self._paused, self._job.ended - self._began
        )

    # --- in the background --------------------------------------------------------------------------------------------

    def _write(self, parts: list[Part], problem: str | None) -> None:
        self._insist()
        if problem is not None:
            raise CheckpointError(problem)
        write_share(self._folder / hidden_name(self._step, self._attempt), self._peers.rank, parts)

    def _finish(self) -> None:
        """Rank 0: the checkpoint, or no trace of it."""
        folder, step, attempt, insist = self._folder, self._step, self._attempt, self._insist
        try:
            if self._problem is None:
                commit(folder, step, self._peers.size, self._text, attempt, insist)
                self._warning = _attempt(lambda: remove_old(folder, step, self._rule, attempt, insist), folder)
        finally:
            self._clear()

    def _clear(self) -> None:
        """Rank 0: away with what was written."""
        shutil.rmtree(self._folder / hidden_name(self._step, self._attempt), ignore_errors=True)


class _Job:
    """An action in a background thread. It does not keep a process alive: nothing is saved before all have agreed."""

    def __init__(self, action: Callable[[], None], path: Path, insist: Callable[[], None]):
        self.problem: str | None = None
        """why it failed"""
        self.is_fenced = False
        """because a later attempt owns the run: what else went wrong is its doing"""
        self.ended = 0.0
        self._thread = threading.Thread(target=self._run, args=(action, path, insist), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, action: Callable[[], None], path: Path, insist: Callable[[], None]) -> None:
        try:
            self.problem = _attempt(action, path)
            if self.problem is not None:
                _attempt(insist, path)
        except FencedError as error:
            self.problem, self.is_fenced = str(error), True
        self.ended = time.perf_counter()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()


def _finite(bounds: list[Tensor]) -> list[bool]:
    """Whether each pair of numbers is finite, with one transfer from each device."""
    flags = [False] * len(bounds)
    for device in {bound.device for bound in bounds}:
        here = [position for position, bound in enumerate(bounds) if bound.device == device]
        finite = torch.stack([bounds[position].double() for position in here]).isfinite().all(dim=1)
        for position, flag in zip(here, finite.tolist(), strict=True):
            flags[position] = flag
    return flags


def _attempt(action: Callable[[], None], path: Path) -> str | None:
    """Runs the action; what went wrong in words, None if nothing did. No error of a save ends a run, but a
    FencedError, which goes through."""
    try:
        action()
    except FencedError:
        raise
    except OSError as error:
        return str(write_error(error, path))
    except (DataError, CheckpointError) as error:
        return str(error)
    except Exception as error:
        return f"cannot write {path}: {type(error).__name__}: {error}"
    return None

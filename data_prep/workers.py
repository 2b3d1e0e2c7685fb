"""Runs the jobs of a stage: one after the other, or in a pool of processes. The result never depends on which.

In: jobs, and how many processes. Out: every job finished, or the first error, after which no process is left. A job
that is finished already is not run again. A process whose parent was killed ends itself at once.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self, cast

from data_prep.files import DataError
from data_prep.jobs import Done, Job
from data_prep.progress import Progress


class Workers:
    """A context. Processes are started when there is work for them, stay for the jobs that follow, and end with it."""

    def __init__(self, at_most: int):
        self._at_most = at_most
        self._children: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.kill()
        for pipe, child in self._children.items():
            child.join()
            pipe.close()
        self._children = {}

    def run(self, label: str, jobs: Sequence[Job]) -> None:
        """Shows progress while there is work. Raises what a job raised; DataError, with its signal, when a process
        died."""
        todo = [job for job in jobs if not job.finished()]
        if not todo:
            return
        progress = Progress(label, sum(job.bytes for job in todo), len(todo))
        if len(todo) < len(jobs):
            progress.note(f"{label}: {len(jobs) - len(todo):,} of {len(jobs):,} tasks are done already and used again")
        if min(self._at_most, len(todo)) <= 1:
            for job in todo:
                job.run(progress.advance)
                progress.job_done(job.bytes)
        else:
            self._start(len(todo))
            self._share_out(todo, progress)
        progress.close()

    def _start(self, n_jobs: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would carry threads' locks along
        while len(self._children) < min(self._at_most, n_jobs):
            ours, theirs = context.Pipe()
            child = context.Process(target=_serve, args=(theirs,), daemon=True)
            child.start()
            theirs.close()  # so that a dead child is the end of the pipe
            self._children[ours] = child

    def _share_out(self, jobs: Sequence[Job], progress: Progress) -> None:
        waiting = sorted(jobs, key=lambda job: job.bytes)  # the largest first: the last ones end together
        doing: dict[Connection, Job] = {}
        idle = list(self._children)
        while waiting or doing:
            while waiting and idle:
                pipe = idle.pop()
                doing[pipe] = waiting.pop()
                _tell(pipe, doing[pipe], self._children[pipe])
            for pipe in cast(list[Connection], wait(list(doing))):
                word = _heard(pipe, doing[pipe], self._children[pipe])
                if isinstance(word, Done):
                    progress.advance(word)
                elif isinstance(word, BaseException):
                    raise word
                else:
                    progress.job_done(doing.pop(pipe).bytes)
                    idle.append(pipe)


def _tell(pipe: Connection, job: Job, child: BaseProcess) -> None:
    try:
        pipe.send(job)
    except (BrokenPipeError, ConnectionResetError):
        raise _death(child, job) from None


def _heard(pipe: Connection, job: Job, child: BaseProcess) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        raise _death(child, job) from None


def _death(child: BaseProcess, job: Job) -> DataError:
    child.join()
    code = child.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = "; out of memory, perhaps: try fewer workers" if code == -signal.SIGKILL else ""
    return DataError(f"a worker process {how} at task {job.id}{hint}. What is done stays; run the same command again.")


def _serve(pipe: Connection) -> None:
    """A child's life: a job comes, words about it go, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            job: Job = pipe.recv()
            pipe.send(_outcome(job, pipe.send))
    except (_ParentGoneError, EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is there to hear


def _end_with_parent() -> None:
    """A job may say nothing for minutes, and would not notice. What it had half written, the next run removes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _ParentGoneError(Exception):
    pass


def _outcome(job: Job, send: Callable[[Done], None]) -> Any:
    def advance(done: Done) -> None:
        try:
            send(done)
        except OSError as error:
            raise _ParentGoneError from error

    try:
        job.run(advance)
    except _ParentGoneError:
        raise
    except BaseException as error:
        error.add_note(f"in a worker process, at task {job.id}:\n{traceback.format_exc()}")
        return error
    return None

"""Runs the jobs of a stage: one after the other, or in a pool of processes. The result never depends on which.

In: jobs, and how many processes. Out: every job finished, or the first error, after which no process is left. A job
that is finished already is not run again. A process whose parent was killed ends itself at its next word to it.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from data_prep.files import DataError
from data_prep.jobs import Done, Job
from data_prep.progress import Progress


def run(label: str, jobs: Sequence[Job], workers: int) -> None:
    """Raises what a job raised; DataError, with its signal, when a process died. Shows progress while there is work."""
    todo = [job for job in jobs if not job.finished()]
    if not todo:
        return
    progress = Progress(label, sum(job.bytes for job in todo), len(todo))
    if len(todo) < len(jobs):
        progress.note(f"{label}: {len(jobs) - len(todo):,} of {len(jobs):,} tasks are done already and used again")
    if min(workers, len(todo)) <= 1:
        for job in todo:
            job.run(progress.advance)
            progress.job_done(job.bytes)
    else:
        _Pool(todo, min(workers, len(todo)), progress).run()
    progress.close()


class _Pool:
    def __init__(self, jobs: Sequence[Job], workers: int, progress: Progress):
        self._waiting = sorted(jobs, key=lambda job: job.bytes)  # the largest first: the last ones end together
        self._progress = progress
        context = multiprocessing.get_context("spawn")  # a fork would carry threads' locks along
        self._children: dict[Connection, BaseProcess] = {}
        self._doing: dict[Connection, Job] = {}
        try:
            for _ in range(workers):
                ours, theirs = context.Pipe()
                child = context.Process(target=_serve, args=(theirs,), daemon=True)
                child.start()
                theirs.close()  # so that a dead child is the end of the pipe
                self._children[ours] = child
        except BaseException:
            self._end()
            raise

    def run(self) -> None:
        try:
            for pipe in self._children:
                self._hand_out(pipe)
            while self._doing:
                for pipe in wait(list(self._doing)):
                    self._hear(pipe)  # pyright: ignore[reportArgumentType]  only connections were given
        finally:
            self._end()

    def _hand_out(self, pipe: Connection) -> None:
        if self._waiting:
            self._doing[pipe] = self._waiting.pop()
            pipe.send(self._doing[pipe])

    def _hear(self, pipe: Connection) -> None:
        try:
            word: Any = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise _death(self._children[pipe], self._doing[pipe]) from None
        if isinstance(word, Done):
            self._progress.advance(word)
        elif isinstance(word, BaseException):
            raise word
        else:
            self._progress.job_done(self._doing.pop(pipe).bytes)
            self._hand_out(pipe)

    def _end(self) -> None:
        for child in self._children.values():
            child.kill()
        for pipe, child in self._children.items():
            child.join()
            pipe.close()


def _death(child: BaseProcess, job: Job) -> DataError:
    child.join()
    code = child.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = "; out of memory, perhaps: try fewer workers" if code == -signal.SIGKILL else ""
    return DataError(f"a worker process {how} at task {job.id}{hint}. What is done stays; run the same command again.")


def _serve(pipe: Connection) -> None:
    """A child's life: a job comes, words about it go, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and decides
    try:
        while True:
            job: Job = pipe.recv()
            pipe.send(_outcome(job, pipe.send))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def _outcome(job: Job, advance: Callable[[Done], None]) -> Any:
    try:
        job.run(advance)
    except (BrokenPipeError, EOFError):
        raise
    except BaseException as error:
        error.add_note(f"in a worker process, at task {job.id}:\n{traceback.format_exc()}")
        return error
    return None

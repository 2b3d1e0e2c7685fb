"""What Slurm's queue says of this user's jobs: one question for all runs, and never a wait for its answer.

In: nothing but the squeue on the PATH. Out: `QueuedJob`s by their name. Where there is no Slurm, or it does not answer,
there are none, and `Squeue.problem` says why if it should have.
"""

import contextlib
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import IO

ASK = ("squeue", "--me", "--noheader", "--states=all", "--format=%i|%j|%T|%r|%M|%l|%D|%N")
_PATIENCE_SECONDS = 20.0
_OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"}
_OVER |= {"OUT_OF_MEMORY", "REVOKED"}
REASONS = {
    "Priority": "jobs of a higher priority go first",
    "Resources": "no nodes are free",
    "BeginTime": "it was put back a moment ago",
    "Dependency": "another job has to end first",
    "DependencyNeverSatisfied": "the job it waits for failed: it will never start",
    "JobHeldUser": "held; scontrol release lets it go",
    "JobHeldAdmin": "held by an administrator",
    "PartitionTimeLimit": "it asks for more time than the partition allows: it will never start",
    "PartitionNodeLimit": "it asks for more nodes than the partition has: it will never start",
    "PartitionDown": "the partition is down",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "QOSMaxJobsPerUserLimit": "the QOS allows no more jobs at once",
    "AssocGrpCPUMinutesLimit": "the account's share is used up",
    "launch failed requeued held": "it failed to start and is held; scontrol release lets it try again",
}
"""of squeue(1), "JOB REASON CODES" """


@dataclass(frozen=True)
class QueuedJob:
    number: str
    name: str
    state: str
    """as Slurm calls it"""
    reason: str
    elapsed: str
    limit: str
    n_nodes: str
    nodes: str

    @property
    def is_over(self) -> bool:
        return self.state in _OVER

    @property
    def waits(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "REQUEUE_FED")

    @property
    def never_starts(self) -> bool:
        held = self.reason.startswith(("JobHeld", "launch failed"))
        return self.waits and (held or "never start" in REASONS.get(self.reason, ""))

    def why(self) -> str:
        """Why it waits."""
        meaning = REASONS.get(self.reason)
        return f"{self.reason}: {meaning}" if meaning else self.reason


class Squeue:
    """Asked again when the last answer is `every_seconds` old."""

    def __init__(self, every_seconds: float = 10.0):
        self._every, self._asked = every_seconds, -float("inf")
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: IO[bytes] | None = None
        self._is_here = shutil.which("squeue") is not None
        self.jobs: list[QueuedJob] = []
        self.problem: str | None = None

    def refresh(self, wait: bool = False) -> None:
        """wait: for the answer, if it comes within some seconds; else it is taken at one of the next calls."""
        if not self._is_here:
            return
        now = time.monotonic()
        if self._process is None and now - self._asked >= self._every:
            self._ask(now)
        if self._process is not None and wait:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_SECONDS)
        self._collect(now)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._answer is not None:
            self._answer.close()
        self._process = self._answer = None

    def _ask(self, now: float) -> None:
        # no pipe, which would fill, and hold up squeue until somebody reads
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(ASK, stdin=subprocess.DEVNULL, stdout=self._answer, stderr=subprocess.STDOUT)
        self._asked = now

    def _collect(self, now: float) -> None:
        if self._process is None or self._answer is None:
            return
        code = self._process.poll()
        if code is None and now - self._asked < _PATIENCE_SECONDS:
            return
        if code is None:
            self.problem = f"squeue has not answered for {_PATIENCE_SECONDS:.0f} s"
        else:
            self._answer.seek(0)
            said = self._answer.read().decode(errors="replace")
            self.problem = None if code == 0 else f"squeue failed: {' '.join(said.split())}"
            self.jobs = parsed(said) if code == 0 else self.jobs
        self.close()


def parsed(answer: str) -> list[QueuedJob]:
    fields = (line.split("|") for line in answer.splitlines())
    return [QueuedJob(*(field.strip() for field in found)) for found in fields if len(found) == 8]

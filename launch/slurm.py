"""The few words spoken with Slurm: its limits, batch scripts, what is queued, and sending jobs.

In: `BatchJob`s and the `slurm` section of a configuration. Out: the text of scripts and of the commands that send them,
and the ids of jobs sent. Whatever a user may have typed is quoted for the shell; Slurm's own directives hold only names
that need no quotes; paths and dependencies travel as arguments of sbatch, which no shell and no directive reads.
"""

import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import DataError
from data_prep.jobs import in_ranges
from launch.data_config import SlurmConfig
from launch.queue_config import QueueConfig

ELEMENT = '"${SLURM_ARRAY_TASK_ID}"'  # for `BatchJob.more`


@dataclass(frozen=True)
class Limits:
    max_array_size: int
    """indices of an array's elements are below this"""
    max_jobs: int
    """jobs that the controller keeps at once; each element counts (slurm.conf(5), MaxJobCount)"""
    source: str


@dataclass(frozen=True)
class BatchJob:
    """One call of sbatch: a single job, or an array of which `elements` are to run."""

    key: str
    """names it among the jobs sent together: letters only"""
    name: str
    title: str
    folder: Path
    """the working folder"""
    python_path: Path | None
    """what PYTHONPATH has to begin with"""
    program: tuple[str, ...]
    words: tuple[str, ...]
    """its arguments as they were typed"""
    more: str
    """further arguments, written for the shell"""
    elements: tuple[int, ...] | None
    """None: a single job"""
    logs: Path
    file: Path
    """where the script goes"""


def limits() -> Limits:
    """Of the cluster at hand; where no scontrol answers, the defaults of slurm.conf(5)."""
    answer = _ask("scontrol", "show", "config")
    found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", answer or "", re.MULTILINE))
    if len(found) < 2:
        return Limits(1001, 10_000, "assumed, Slurm's defaults: no scontrol answers here")
    return Limits(int(found["MaxArraySize"]), int(found["MaxJobCount"]), "scontrol show config")


def partition_minutes(partition: str | None) -> float:
    """The longest time limit that one of these partitions (null: the default one) allows; infinite where nothing is
    known. Slurm takes a job that asks for more, and leaves it waiting for ever."""
    answer = _ask("sinfo", "--noheader", "--format=%P %l") or ""
    of = dict(line.split() for line in answer.splitlines() if len(line.split()) == 2)
    wanted = partition.split(",") if partition else [name.rstrip("*") for name in of if name.endswith("*")]
    found = [minutes(limit) for name, limit in of.items() if name.rstrip("*") in wanted]
    return max(found, default=math.inf)


def refuse_beyond_partition(queue: QueueConfig) -> None:
    """Raises DataError for a time limit that no partition asked for allows."""
    allowed = partition_minutes(queue.partition)
    asked, where = queue.time_limit_minutes, queue.partition or "(the default one)"
    if asked > allowed:
        read = f" ({asked // 3600}:00:00 in YAML is read as {asked}: write {asked // 60})" if asked % 3600 == 0 else ""
        raise DataError(
            f"slurm.time_limit_minutes={asked}{read} is more than the partition {where} allows, "
            f"{allowed:,.0f} minutes: the job would wait for ever. Ask for less, or for another slurm.partition"
        )


def doubts(options: Sequence[str]) -> list[str]:
    """What Slurm says against a job with these options of sbatch. It may take it all the same, and leave it waiting for
    ever, as one that asks for more nodes than there are. Nothing where no controller answers."""
    if shutil.which("sbatch") is None or _ask("sinfo", "--noheader") is None:
        return []
    words = ["sbatch", "--test-only", *options, "--wrap=true"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return []
    if done.returncode == 0:
        return []
    said = " | ".join(done.stderr.strip().splitlines())
    return [
        f"with the nodes there are now Slurm could not start this job (sbatch --test-only: {said}); unless more nodes "
        "come, it would wait for ever"
    ]


def requeues() -> bool:
    """False where the cluster says that jobs do not come back unless they ask for it."""
    return not re.search(r"^JobRequeue\s*=\s*0", _ask("scontrol", "show", "config") or "", re.MULTILINE)


def minutes(limit: str) -> float:
    """Of a time as Slurm writes it: [days-]hours:minutes:seconds, minutes:seconds, or infinite."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return math.inf
    days, hours, whole, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + whole + seconds / 60


def script(job: BatchJob, slurm: SlurmConfig) -> str:
    lines = ["#!/bin/bash", f"# {job.title}", "# Written by `python -m launch data`, which sends it again if need be."]
    lines += [f"#SBATCH {directive}" for directive in directives(job, slurm)]
    command = " \\\n    ".join([shlex.join(job.program), *(shlex.quote(word) for word in job.words), job.more])
    return "\n".join(
        [
            *lines,
            "",
            "set -euo pipefail",
            f"cd -- {shlex.quote(str(job.folder))}",
            *python_path(job.python_path),
            'echo "$(date +%FT%T) on ${SLURMD_NODENAME:-$(hostname)}, attempt $((${SLURM_RESTART_COUNT:-0} + 1))"',
            f"exec {command}",
            "",
        ]
    )


def sbatch(job: BatchJob, slurm: SlurmConfig, after: str | None) -> list[str]:
    """The command that sends it. `after`: id of the job that has to end well before. The script's directives stand here
    again, because variables such as SBATCH_TIMELIMIT overrule those in a script, and not these."""
    pattern = "%x-%j.log" if job.elements is None else "%x-%A_%a.log"
    logs = str(job.logs).replace("%", "%%")
    words = ["sbatch", "--parsable", *directives(job, slurm), f"--output={logs}/{pattern}"]
    words += [] if after is None else [f"--dependency=afterok:{after}"]
    return [*words, str(job.file)]


def commands(jobs: Sequence[BatchJob], slurm: SlurmConfig) -> str:
    """All that `submit` does, as lines for a shell."""
    lines: list[str] = []
    after = ""
    for job in jobs:
        *options, file = sbatch(job, slurm, None)
        lines.append(f"{job.key}=$({shlex.join(options)}{after} {shlex.quote(file)})")
        after = f' --dependency=afterok:"${job.key}"'
    return "\n".join(lines)


def submit(jobs: Sequence[BatchJob], slurm: SlurmConfig) -> list[str]:
    """Sends them in a row, each after the one before; returns their ids. When one is refused, none stays queued, and
    DataError carries Slurm's words."""
    require()
    ids: list[str] = []
    for job in jobs:
        job.logs.mkdir(parents=True, exist_ok=True)
        words = sbatch(job, slurm, ids[-1] if ids else None)
        done = subprocess.run(words, cwd=job.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            withdrawn = withdraw(ids)
            raise DataError(f"Slurm refused the job {job.name}: {done.stderr.strip()}{withdrawn}\n{shlex.join(words)}")
        ids.append(done.stdout.strip().partition(";")[0])
    return ids


def require() -> None:
    """Raises DataError where no job can be sent."""
    if shutil.which("sbatch") is None:
        raise DataError(
            "sbatch is not on the PATH: this is no login node of a Slurm cluster, or its module is not loaded. Without "
            "submit=true the scripts are only shown; on one machine, `python -m train` or `python -m data_prep` does it"
        )


def queued(names: Sequence[str]) -> list[str]:
    """ "id name state" of this user's jobs that wait or run under one of these names; none where no Slurm answers."""
    answer = _ask("squeue", "--me", "--noheader", f"--name={','.join(names)}", "--format=%i %j %T")
    return [line.strip() for line in (answer or "").splitlines() if line.strip()]


def python_path(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    return [f"export PYTHONPATH={shlex.quote(str(folder))}${{PYTHONPATH:+:${{PYTHONPATH}}}}"]


def directives(job: BatchJob, slurm: SlurmConfig) -> list[str]:
    """Requeued after preemption or the death of its node, an element goes on; its log keeps the first attempt."""
    found = [f"--job-name={job.name}"]
    if job.elements is not None:
        at_once = "" if slurm.max_parallel is None else f"%{slurm.max_parallel}"
        found.append(f"--array={in_ranges(job.elements)}{at_once}")
    found += ["--nodes=1", "--ntasks=1", *slurm.asked()]
    return [*found, "--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes"]


def withdraw(ids: Sequence[str]) -> str:
    """Cancels the jobs; says so, for the end of a message."""
    if not ids:
        return ""
    subprocess.run(["scancel", *ids], capture_output=True, check=False)
    return f" (the jobs sent before it, {', '.join(ids)}, were cancelled)"


def _ask(*words: str) -> str | None:
    """What a command prints; None when it is not there, fails, or keeps silent for long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

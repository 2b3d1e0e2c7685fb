"""`launch data`: prepares a dataset on many machines, by one Slurm job a stage: an array where the stage's jobs can be
shared, a single job for the tokenizer and the publication.

In: the words of the command line, which are those of `data_prep` and `slurm.*`. The corpus is listed here, once; every
element reads that plan and does its share of each stage, passing over what is finished. Out: a table of what is left, a
script for each stage in `out/work/slurm`, the commands that send them, and with submit=true the jobs. Sent are only
elements with something left, so the same command after a failure, a time limit or a cancelled job sends the rest.

Element i of n does the jobs i, i + n, i + 2n ... of its stage. n follows from the tasks, the cores and the limits, not
from what is left: an element sent again has the same jobs.
"""

import dataclasses
import hashlib
import math
import re
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import SHARED_STAGES, Stage
from data_prep.files import DataError, publish_bytes
from data_prep.jobs import Backlog, in_ranges
from data_prep.pipeline import outstanding
from data_prep.plan import Plan
from launch import slurm
from launch.data_config import LaunchDataConfig, SlurmConfig
from launch.slurm import ELEMENT, BatchJob, Limits

ROOT = Path(__file__).resolve().parents[1]
OWN_WORD = re.compile(r"[+~]*(slurm([./].*)?|submit)(=.*)?", re.DOTALL)  # a word that data_prep would not know
START_SECONDS = 30  # of an element: Python and its libraries from a shared disk, the plan, the check of the tokenizer
STORED = {".gz": 3.0, ".zst": 3.0, ".bz2": 3.0, ".parquet": 3.0}  # bytes of English text in a byte, roughly


@dataclass(frozen=True)
class StageWork:
    stage: Stage
    backlog: Backlog | None
    """None: only the stages before it can tell, so every element is sent"""
    elements: tuple[int, ...] | None
    """None: a single job"""
    seconds: float | None
    """of the longest element, at the rates of the configuration; None where nothing is known"""


def launch_data(config: LaunchDataConfig, words: Sequence[str]) -> None:
    """Shows, and with submit=true sends, what is left to do. `words`: the command line that `config` was made of.

    Raises DataError for what the data, the disk or Slurm can cause, and when an element cannot end in its time.
    """
    if config.submit:
        slurm.require()
    out = Path(config.out).absolute()
    names = {stage: _name(out, stage) for stage in (*SHARED_STAGES, Stage.tokenizer, Stage.publish)}
    slurm.refuse_beyond_partition(config.slurm)
    _refuse_queued(out, slurm.queued(list(names.values())))
    plan, backlogs = outstanding(config.data_prep)
    limits = slurm.limits()
    arrays = [stage for stage in backlogs if stage in SHARED_STAGES]
    widest = widest_array(len(plan.tasks), config, limits, len(arrays))
    n = min(widest, config.slurm.max_array)
    stages = [work_of(stage, backlog, n, plan, config) for stage, backlog in backlogs.items()]
    todo = [work for work in stages if work.backlog is None or work.backlog.left]
    if not todo:
        return
    print(table(stages, n, limits))
    refuse_too_long(todo, config, widest)
    jobs = [_batch_job(work, n, config, words, names[work.stage], out) for work in todo]
    for job in jobs:
        publish_bytes(job.file, slurm.script(job, config.slurm).encode())
    if config.submit:
        _report(todo, slurm.submit(jobs, config.slurm), n, words, out)
    else:
        print(_shown(jobs, config.slurm, out))
    for words_of_slurm in slurm.doubts(slurm.directives(jobs[0], config.slurm)):  # all ask for the same
        print(f"note: {words_of_slurm}", file=sys.stderr)


def widest_array(n_tasks: int, config: LaunchDataConfig, limits: Limits, n_arrays: int) -> int:
    """The most elements that are of use: each has a task for each of its cores. Indices have to be below MaxArraySize;
    all arrays together fill at most half of MaxJobCount, which other people's jobs share."""
    if limits.max_array_size < 1:
        raise DataError(
            "this cluster has job arrays switched off (MaxArraySize=0); use python -m data_prep on one machine"
        )
    room = limits.max_jobs // 2 // max(1, n_arrays)
    return max(1, min(-(-n_tasks // cores_of(config)), limits.max_array_size, room))


def cores_of(config: LaunchDataConfig) -> int:
    """That an element puts to use."""
    return min(config.workers or config.slurm.cpus_per_task, config.slurm.cpus_per_task)


def work_of(stage: Stage, backlog: Backlog | None, n: int, plan: Plan, config: LaunchDataConfig) -> StageWork:
    if stage not in SHARED_STAGES:
        return StageWork(stage, backlog, None, None)
    elements = tuple(range(n)) if backlog is None else tuple(backlog.elements(n))
    rate = dataclasses.asdict(config.slurm.rates).get(stage)
    if rate is None or not elements:
        return StageWork(stage, backlog, elements, None)
    weights = backlog or Backlog(tuple((task.bytes, False) for task in plan.tasks))
    text = config.slurm.text_per_stored_byte or text_per_stored_byte(plan)
    longest = max(element_bytes(weights.left_of(i, n), cores_of(config)) for i in elements)
    return StageWork(stage, backlog, elements, START_SECONDS + longest * text / (rate * 1e6))


def element_bytes(weights: Sequence[int], cores: int) -> float:
    """Bytes that the busiest core of an element has to do at most: with jobs handed out as cores become free, the last
    one ends within (sum - largest) / cores + largest (Graham 1969)."""
    largest = max(weights, default=0)
    return (sum(weights) - largest) / cores + largest


def text_per_stored_byte(plan: Plan) -> float:
    """Of the whole corpus, by the names of its files."""
    text = sum(STORED.get(Path(item.name).suffix, 1.0) * item.bytes for item in plan.inputs)
    return text / max(1, sum(item.bytes for item in plan.inputs))


def refuse_too_long(stages: Sequence[StageWork], config: LaunchDataConfig, widest: int) -> None:
    """Raises DataError for the first stage of which an element cannot end in its time. `widest`: the most elements that
    an array could have."""
    limit = config.slurm.time_limit_minutes
    for work in stages:
        needed = math.ceil((work.seconds or 0) / 60)
        if needed > limit:
            rate = dataclasses.asdict(config.slurm.rates)[work.stage]
            wider = f"more elements (slurm.max_array={config.slurm.max_array}, up to {widest:,} are of use), "
            raise DataError(
                f"stage={work.stage} cannot end in slurm.time_limit_minutes={limit}: its longest element needs about "
                f"{needed:,} minutes with {cores_of(config)} processes at slurm.rates.{work.stage}={rate} MB/s each. "
                f"Allow {needed:,} minutes, or {wider if config.slurm.max_array < widest else ''}more cores "
                "(slurm.cpus_per_task), smaller tasks (task_bytes; a task is done by one core), or the rate that you "
                "measured"
            )


def table(stages: Sequence[StageWork], n: int, limits: Limits) -> str:
    lines = [f"{'stage':<12}{'tasks':>9}{'left':>9}  {'longest':>9}  array elements"]
    for work in stages:
        if work.backlog is None:
            tasks, left = "?", "?"
        else:
            tasks, left = f"{len(work.backlog.jobs):,}", f"{work.backlog.left:,}"
        single = "a single job" if left != "0" else ""
        where = single if work.elements is None else in_ranges(work.elements)
        lines.append(f"{work.stage:<12}{tasks:>9}{left:>9}  {_duration(work.seconds):>9}  {where}".rstrip())
    lines.append(
        f"Arrays have {n:,} elements (MaxArraySize={limits.max_array_size:,}, MaxJobCount={limits.max_jobs:,}: "
        f"{limits.source}). ?: known when the stages before it are done; every element is sent. longest: an estimate "
        "for its longest element, where slurm.rates has a rate."
    )
    return "\n".join(lines)


def _batch_job(
    work: StageWork, n: int, config: LaunchDataConfig, words: Sequence[str], name: str, out: Path
) -> BatchJob:
    more = f"stage={work.stage}"
    more += "" if work.elements is None else f" task={ELEMENT} n_tasks={n}"
    more += "" if config.workers is not None else f" workers={config.slurm.cpus_per_task}"
    shared = (
        "a single job" if work.elements is None else f"an array of which {len(work.elements):,} of {n:,} are to run"
    )
    return BatchJob(
        key=str(work.stage),
        name=name,
        title=f"Stage {work.stage} of a dataset: {shared}.",
        folder=Path.cwd(),
        python_path=None if ROOT in (Path.cwd(), Path(sysconfig.get_path("purelib")).resolve()) else ROOT,
        program=(sys.executable, "-m", "data_prep"),
        words=_kept(words),
        more=more,
        elements=work.elements,
        logs=out / "logs",
        file=out / "work" / "slurm" / f"{work.stage}.sh",
    )


def _kept(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if not OWN_WORD.fullmatch(word))


def _name(out: Path, stage: Stage) -> str:
    """By which the dataset's jobs are found again in the queue."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "_", out.name)[:32]
    return f"{plain}-{hashlib.sha256(str(out).encode()).hexdigest()[:6]}-{stage}"


def _refuse_queued(out: Path, queued: Sequence[str]) -> None:
    if queued:
        listed = "\n".join(f"  {line}" for line in queued[:10])
        more = f"\n  and {len(queued) - 10} more" if len(queued) > 10 else ""
        raise DataError(
            f"jobs for {out} wait or run already:\n{listed}{more}\nLet them end, or end them with scancel; then the "
            "same command sends what is left"
        )


def _shown(jobs: Sequence[BatchJob], config: SlurmConfig, out: Path) -> str:
    scripts = [f"--- {job.file} ---\n{slurm.script(job, config)}" for job in jobs]
    return "\n".join(
        [
            "",
            *scripts,
            "--- nothing was sent; submit=true does this: ---",
            shlex.join(["mkdir", "-p", str(out / "logs")]),
            slurm.commands(jobs, config),
            "",
            _assumed(out),
        ]
    )


def _report(todo: Sequence[StageWork], ids: Sequence[str], n: int, words: Sequence[str], out: Path) -> None:
    for work, job_id in zip(todo, ids, strict=True):
        print(f"{work.stage:<12} job {job_id}")
    print("watch: squeue --me")
    print(f"       {shlex.join([sys.executable, '-m', 'data_prep', *_kept(words), 'stage=status', f'n_tasks={n}'])}")
    print(f"       the logs in {out / 'logs'}")
    print("When the queue is empty and something is left, the same command sends it.")
    print(_assumed(out))


def _assumed(out: Path) -> str:
    return (
        f"Assumed: every node finds {out}, the inputs and {sys.executable} under these names, and the file system of "
        "the first has atomic rename."
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = int(-(-seconds // 60))
    return f"{minutes // 60}:{minutes % 60:02d} h"

"""`launch submit`: a run as a job that resumes by itself.

In: the words of the command line, which are those of `train`, `job.*`, and `slurm.*`, `kubernetes.*` or `torchrun.*`.
Out: what job.target asks for, in a form that a person can read: a batch script of Slurm, shown, or sent with
submit=true and kept in the run's folder; a PyTorchJob for kubectl; a command to type on each node.
"""

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Sequence

from conf.errors import ConfigError
from data_prep.files import DataError, publish_bytes, publish_json
from launch import slurm
from launch.batch_script import directives, script
from launch.job import Job
from launch.job_time import forecast, notes, too_short
from launch.kubernetes import pytorch_job
from launch.performance.hardware import hardware_of
from launch.plan import planned
from launch.predict import Prediction
from launch.submit_config import SubmitConfig, Target
from launch.torchrun import commands


def submit(config: SubmitConfig, words: Sequence[str]) -> None:
    """Shows, or with submit=true sends, the job of `config`, which these words of a command line made.

    Raises ConfigError or BatchError if the run does not fit its ranks or its time, and DataError for what Slurm can
    cause.
    """
    job = Job.of(config, words)
    cluster = dataclasses.replace(config.cluster, n_devices=config.job.n_ranks)
    prediction = planned(dataclasses.replace(config.train, cluster=cluster))
    match config.job.target:
        case Target.kubernetes:
            print(pytorch_job(config, job), end="")
        case Target.torchrun:
            print(commands(config, job))
        case Target.slurm:
            _with_slurm(config, job, prediction)


def _with_slurm(config: SubmitConfig, job: Job, prediction: Prediction) -> None:
    plan = prediction.plan
    if problem := too_short(config, plan, hardware_of(config.cluster) is not None):
        raise ConfigError([problem])
    slurm.refuse_beyond_partition(config.slurm)
    _note([*notes(config, plan, problem), *_no_requeue(config)])
    send = [*sbatch(config, job), str(job.run / "slurm" / "job.sh")]
    if config.submit:
        _send(config, job, send, prediction)
    else:
        times = f", {config.slurm.chain} times" if config.slurm.chain > 1 else ""
        print(
            f"{script(config, job)}\n--- nothing was sent; submit=true writes this to {send[-1]} and does{times}: ---"
        )
        print(shlex.join(send))
    _note(slurm.doubts(directives(job.name, config.job, config.slurm)))  # what it refuses has been told by now
    print(forecast(config.slurm, plan))


def _note(found: Sequence[str]) -> None:
    for words in found:
        print(f"note: {words}", file=sys.stderr)


def sbatch(config: SubmitConfig, job: Job) -> list[str]:
    """The command, but for the script. Directives stand here again: variables such as SBATCH_TIMELIMIT overrule those
    in a script, and not these."""
    logs = str(job.run / "slurm").replace("%", "%%")
    return ["sbatch", "--parsable", *directives(job.name, config.job, config.slurm), f"--output={logs}/%j.log"]


def _send(config: SubmitConfig, job: Job, send: Sequence[str], prediction: Prediction) -> None:
    """All jobs of a chain, or none."""
    slurm.require()
    if found := slurm.queued([job.name]):
        raise DataError(f"run {config.run.name} waits or runs already: {found[0]}. Let it end, or end it with scancel")
    folder = job.run / "slurm"
    publish_bytes(folder / "job.sh", script(config, job).encode())
    publish_json(job.run / "prediction.json", prediction.to_tree())
    (folder / "chain.idle").unlink(missing_ok=True)  # starts in vain of a chain that is over
    numbers: list[str] = []
    for _ in range(config.slurm.chain):
        done = subprocess.run(send, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            withdrawn = slurm.withdraw(numbers)
            raise DataError(f"Slurm refused the job: {done.stderr.strip()}{withdrawn}\n{shlex.join(send)}")
        numbers.append(done.stdout.strip().partition(";")[0])
    for number in numbers:
        print(f"job {number}: {folder / number}.log")
    end = f"--name={job.name}" if len(numbers) > 1 else numbers[0]
    folder_word = "" if config.run.folder == "runs" else f" {shlex.quote(f'folder={config.run.folder}')}"
    print(
        f"watch: python -m launch logs run={config.run.name}{folder_word} follow=true; end it for good: scancel {end}"
    )


def _no_requeue(config: SubmitConfig) -> list[str]:
    if config.slurm.chain > 1 or slurm.requeues():
        return []
    return [
        "this cluster puts no job back into its queue that does not ask for it (JobRequeue=0). This one does "
        "(--requeue); if the site forbids that, slurm.chain=N sends N jobs at once, each of which goes on "
        "where the one before stopped"
    ]

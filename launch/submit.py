"""`launch submit`: a run as one Slurm job that resumes by itself.

In: the words of the command line, which are those of `train` and `slurm.*`. Out: a batch script that a person can read,
shown, or sent with submit=true and kept in the run's folder. One srun starts all ranks; where they meet follows from
Slurm's own variables, so no torchrun and no agent of its stands between Slurm's signals and the ranks. When the ranks
have saved and left (143), or one of them was killed, the script puts its job back into the queue; an end that another
start would not change (2 to 6) is the end of the job.
"""

import dataclasses
import hashlib
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from data_prep.files import DataError, publish_bytes
from launch import slurm
from launch.plan import planned
from launch.submit_config import SubmitConfig, TrainJobConfig

ROOT = Path(__file__).resolve().parents[1]
OWN_WORD = re.compile(r"[+~]*(slurm([./].*)?|submit)(=.*)?", re.DOTALL)  # a word that train would not know


def submit(config: SubmitConfig, words: Sequence[str]) -> None:
    """Shows, or with submit=true sends, the job of `config`, which these words of a command line made.

    Raises ConfigError or BatchError if the run does not fit its ranks, and DataError for what Slurm can cause.
    """
    job = config.slurm
    cluster = dataclasses.replace(config.cluster, n_devices=job.nodes * job.ranks_per_node)
    planned(dataclasses.replace(config.train, cluster=cluster))
    folder = (Path(config.run.folder) / config.run.name).absolute() / "slurm"
    name, text = _name(config), script(config, words)
    send = [*sbatch(name, job, folder), str(folder / "job.sh")]
    if not config.submit:
        print(f"{text}\n--- nothing was sent; submit=true writes this to {folder / 'job.sh'} and does: ---")
        print(shlex.join(send))
        return
    slurm.require()
    if found := slurm.queued([name]):
        raise DataError(f"run {config.run.name} waits or runs already: {found[0]}. Let it end, or end it with scancel")
    publish_bytes(folder / "job.sh", text.encode())
    done = subprocess.run(send, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"Slurm refused the job: {done.stderr.strip()}\n{shlex.join(send)}")
    number = done.stdout.strip().partition(";")[0]
    print(f"job {number}: {folder / number}.log\nwatch: squeue --me; end it for good: scancel {number}")


def script(config: SubmitConfig, words: Sequence[str]) -> str:
    """Quoted for bash wherever a person's words stand; they are data to it, whatever they spell."""
    job, run = config.slurm, (Path(config.run.folder) / config.run.name).absolute()
    kept = [word for word in words if not OWN_WORD.fullmatch(word)]
    directives = "\n".join(f"#SBATCH {directive}" for directive in _directives(_name(config), job))
    command = " \\\n    ".join(['"$python" -m train', *(shlex.quote(word) for word in kept)])
    path = slurm.python_path(_root())
    return SCRIPT.format(
        what=f"Trains the run {config.run.name} on {job.nodes} nodes x {job.ranks_per_node} ranks.",
        directives=directives,
        work=shlex.quote(str(Path.cwd())),
        run=shlex.quote(str(run)),
        python=shlex.quote(sys.executable),
        python_path="".join(f"{line}\n" for line in path),
        cpus=job.cpus_per_task,
        command=command,
        idle=config.run.max_idle_starts,
    )


def sbatch(name: str, job: TrainJobConfig, folder: Path) -> list[str]:
    """The command, but for the script. Directives stand here again: variables such as SBATCH_TIMELIMIT overrule those
    in a script, and not these."""
    logs = str(folder).replace("%", "%%")
    return ["sbatch", "--parsable", *_directives(name, job), f"--output={logs}/%j.log"]


def _directives(name: str, job: TrainJobConfig) -> list[str]:
    gpus = [] if job.gpus_per_node is None else [f"--gpus-per-node={job.gpus_per_node}"]
    shape = [f"--nodes={job.nodes}", f"--ntasks-per-node={job.ranks_per_node}", *gpus]
    again = [f"--signal=USR1@{job.signal_seconds}", "--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes"]
    return [f"--job-name={name}", *shape, *job.asked(), *again]


def _name(config: SubmitConfig) -> str:
    """By which the run's job is found again in the queue."""
    folder = str((Path(config.run.folder) / config.run.name).absolute())
    return f"{config.run.name}-{hashlib.sha256(folder.encode()).hexdigest()[:6]}"


def _root() -> Path | None:
    """What PYTHONPATH has to begin with."""
    return None if ROOT in (Path.cwd(), Path(sysconfig.get_path("purelib")).resolve()) else ROOT


SCRIPT = """\
#!/bin/bash
# {what} Sent or started again, it goes on from what is saved.
# Written by `python -m launch submit`.
{directives}

set -uo pipefail
cd -- {work} || exit 2
run={run}
python={python}
{python_path}
# A signal to this script goes on to the ranks; to srun itself SIGTERM would mean to kill them.
step= told=
tell() {{ told=1; [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null; }}
trap tell TERM USR1 USR2

attempt=$((${{SLURM_RESTART_COUNT:-0}} + 1))  # the variable is not there at first
unset SLURM_EXPORT_ENV                      # else srun would drop what is exported here
echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, attempt $attempt"

# The ranks meet on the first node, where this script runs, under the address by which Slurm reaches it.
MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
MASTER_ADDR=${{MASTER_ADDR:-$SLURMD_NODENAME}}
MASTER_PORT=$("$python" -c 'from train.parallel import free_port; print(free_port())') || exit 2
# srun tells the largest exit code, in which its own signals count as 143; here the rank that ends first says why.
CRISOL_EXIT_WORD=$run/slurm/$SLURM_JOB_ID.$attempt.exit
export MASTER_ADDR MASTER_PORT CRISOL_EXIT_WORD
newest_attempt() {{ ls -1 -- "$run/attempts" 2>/dev/null | tail -n 1; }}
before=$(newest_attempt)
# A job that starts again counts its steps from 0. What is left of an attempt on a node that was cut off ends its step
# by that number, once the node is back: so each attempt trains in a step of another number. Those before it share the
# cores: srun asks for what is in use once in many seconds only, and a step is over a moment later than its srun.
for ((i = (attempt - 1) % 10; i > 0; i--)); do SLURM_OVERLAP=1 srun --nodes=1 --ntasks=1 true; done

srun --kill-on-bad-exit=1 --wait=60 --distribution=block --cpus-per-task={cpus} --export=ALL \\
    {command} &
step=$!
[ -z "$told" ] || tell
wait "$step"; code=$?
while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
trap '' TERM USR1 USR2
[ ! -r "$CRISOL_EXIT_WORD" ] || read -r code <"$CRISOL_EXIT_WORD"

case $code in
0) exit 0 ;;
[2-6]) echo "the run ended with exit code $code, which another start would not change"; exit "$code" ;;
esac
# A run counts its starts that reach no new step. Those in which it did not come so far as to count are counted here.
idle=$run/slurm/$SLURM_JOB_ID.idle
if [ "$code" != 143 ] && [ "$(newest_attempt)" = "$before" ]; then echo "$attempt" >>"$idle"; else rm -f -- "$idle"; fi
if [ -e "$idle" ] && [ "$(wc -l <"$idle")" -ge {idle} ]; then
    echo "the last {idle} attempts did not come so far as to take up the run: no further one is made"
    exit 6
fi
# Not RUNNING: it was cancelled, is at its time limit, or Slurm requeues it by itself. More restarts than this attempt
# knows of: its node was cut off, and the job runs elsewhere. A controller that does not answer is asked again.
for pause in 0 5 15 40; do
    sleep "$pause"
    shown=$(scontrol show job --oneliner "$SLURM_JOB_ID") && break
done
if [[ $shown == *" JobState=RUNNING "*" Restarts=$((attempt - 1)) "* ]]; then
    echo "exit code $code: back into the queue, to go on from what is saved"
    scontrol requeue "$SLURM_JOB_ID" || echo "it could not be requeued: send it again, it goes on from what is saved"
fi
exit "$code"
"""

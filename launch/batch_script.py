"""The batch script of a run under Slurm, or of one element of a sweep's array, for a person to read.

In: the configuration and the words for the ranks; for an array what is different there
(launch/sweep/slurm_array.py). Out: bash. One srun starts all ranks; where they meet follows from
Slurm's own variables, so no torchrun and no agent of its stands between Slurm's signals and the ranks. Before it, an
srun of train.preflight looks at the nodes; those it names are left out from then on. When the ranks have saved and left
(143), or one of them was killed, the script puts its job back into the queue, or leaves the run to the next job of its
chain; an end that another start would not change (2 to 6) is the end of the job, and of the chain.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import slurm
from launch.job import Job
from launch.submit_config import JobConfig, SubmitConfig, TrainJobConfig


@dataclass(frozen=True)
class Body:
    """What a script trains, in bash."""

    what: str
    verb: str
    """of launch, which writes it"""
    runs: str
    """sets `run` and `words`, those of the first run where there are several"""
    train: str
    """trains, if the preflight has set `code` to 0, and sets it anew"""
    job: str
    """by which Slurm knows this job, and no other"""
    here: str
    """path of the job's own files, but for their endings"""
    passed: str
    """file that holds nodes which have passed the preflight"""
    n_trainings: str
    """how often ranks train in one attempt, at most"""
    idle_file: str
    finished: str = ""
    withdraw: str = ""
    rest: str = ""
    again: str = ""


def script(config: SubmitConfig, job: Job) -> str:
    """Quoted for bash wherever a person's words stand; they are data to it, whatever they spell."""
    is_chain = config.slurm.chain > 1
    body = Body(
        what=f"Trains the run {config.run.name} on {config.job.nodes} nodes x {config.job.ranks_per_node} ranks.",
        verb="submit",
        runs=f"run={shlex.quote(str(job.run))}\nwords=(\n{quoted(job.words)})\n",
        train=TRAIN,
        job="$SLURM_JOB_ID",
        here="$run/slurm/$SLURM_JOB_ID",
        passed="$run/slurm/passed",
        n_trainings="1",
        idle_file='"$run/slurm/chain.idle"' if is_chain else '"$here.idle"',
        finished=FINISHED.format(name=config.run.name) if is_chain else "",
        withdraw=WITHDRAW if is_chain else "",
        rest=REST.format(name=job.name) if is_chain else "",
        again=CHAINED if is_chain else REQUEUED,
    )
    found = directives(job.name, config.job, config.slurm)
    return filled(body, config.job, config.slurm, found, job.work, job.python_path, config.run.max_idle_starts)


def filled(
    body: Body,
    job: JobConfig,
    queue: TrainJobConfig,
    options: list[str],
    work: Path,
    python_path: Path | None,
    idle: int,
) -> str:
    """options: of sbatch. work: where the command was typed. idle: run.max_idle_starts."""
    return SCRIPT.format(
        **vars(body),
        directives="\n".join(f"#SBATCH {word}" for word in options),
        work=shlex.quote(str(work)),
        python=shlex.quote(sys.executable),
        python_path="".join(f"{line}\n" for line in slurm.python_path(python_path)),
        steps=f"({body.n_trainings} + 1)" if job.preflight else body.n_trainings,
        cpus=queue.cpus_per_task,
        gpus="" if job.gpus_per_node is None else " --gpu-bind=none",
        preflight=PREFLIGHT.replace("PASSED", body.passed) if job.preflight else "code=0\n",
        idle=idle,
        in_order=IN_ORDER if job.preflight else "",
    )


def quoted(words: Sequence[str]) -> str:
    """Lines of an array of bash."""
    return "".join(f"    {shlex.quote(word)}\n" for word in words)


def directives(name: str, job: JobConfig, queue: TrainJobConfig) -> list[str]:
    gpus = [] if job.gpus_per_node is None else [f"--gpus-per-node={job.gpus_per_node}"]
    shape = [f"--nodes={job.nodes}", f"--ntasks-per-node={job.ranks_per_node}", *gpus]
    again = ["--requeue"] if queue.chain == 1 else ["--no-requeue", "--dependency=singleton"]
    log = ["--open-mode=append", "--kill-on-invalid-dep=yes"]
    return [f"--job-name={name}", *shape, *queue.asked(), f"--signal=USR1@{queue.signal_seconds}", *again, *log]


SCRIPT = """\
#!/bin/bash
# {what} Sent or started again, it goes on from what is saved.
# Written by `python -m launch {verb}`.
{directives}

set -uo pipefail
cd -- {work} || exit 2
python={python}
{python_path}{runs}
# A signal to this script goes on to the ranks; to srun itself SIGTERM would mean to kill them.
step= told=
tell() {{ told=1; [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null; }}
trap tell TERM USR1 USR2

attempt=$((${{SLURM_RESTART_COUNT:-0}} + 1))  # the variable is not there at first
unset SLURM_EXPORT_ENV                      # else srun would drop what is exported here
job={job}
here={here}
echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, attempt $attempt"
{finished}
# What it was started with: this script, and the variables that say how and where, but no secrets.
[ -e "$here.sh" ] || cp -- "$0" "$here.sh"
env | grep -E '^(SLURM|NCCL|GLOO|CUDA|TORCH|OMP|PYTHON)[A-Z_0-9]*=' | grep -vE '^[^=]*(TOKEN|KEY|SECRET|PASS)' |
    sort >"$here.$attempt.env"

# The ranks meet on the first node, where this script runs, under the address by which Slurm reaches it.
MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
MASTER_ADDR=${{MASTER_ADDR:-$SLURMD_NODENAME}}
# srun tells the largest exit code, in which its own signals count as 143; here the rank that ends first says why.
CRISOL_EXIT_WORD=$here.$attempt.exit
CRISOL_BAD_NODES=$here.$attempt.bad
export MASTER_ADDR MASTER_PORT CRISOL_EXIT_WORD CRISOL_BAD_NODES
newest_attempt() {{ ls -1 -- "$run/attempts" 2>/dev/null | tail -n 1; }}
before=$(newest_attempt)
# A job that starts again counts its steps from 0. What is left of an attempt on a node that was cut off ends its step
# by that number, once the node is back: so each attempt trains in a step of another number. Those before it share the
# cores: srun asks for what is in use once in many seconds only, and a step is over a moment later than its srun.
for ((i = (attempt - 1) % 10 * {steps}; i > 0; i--)); do SLURM_OVERLAP=1 srun --nodes=1 --ntasks=1 true; done

# On all ranks the module named first, by an srun with the options after it; sets `code`. A rank sees all GPUs of its
# node, since one that saw only its own could not reach the others' directly; and all cores of the job, since it shares
# them out, and binds itself near its GPU, by what it sees (train/parallel.py).
ranks() {{
    local module=$1
    shift
    rm -f -- "$CRISOL_EXIT_WORD"
    MASTER_PORT=$("$python" -c 'from train.parallel import free_port; print(free_port())') || exit 2
    srun "$@" --distribution=block --cpus-per-task={cpus} --cpu-bind=none{gpus} --export=ALL \\
        "$python" -m "$module" "${{words[@]}}" &
    step=$!
    [ -z "$told" ] || tell
    wait "$step"; code=$?
    while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
    step=
    [ ! -r "$CRISOL_EXIT_WORD" ] || read -r code <"$CRISOL_EXIT_WORD"
}}

{preflight}{train}trap '' TERM USR1 USR2

# Not RUNNING: it was cancelled, is at its time limit, or Slurm requeues it by itself. More restarts than this attempt
# knows of: its node was cut off, and the job runs elsewhere. A controller that does not answer is asked again.
still_runs() {{
    local pause shown=
    for pause in 0 5 15 40; do
        sleep "$pause"
        shown=$(scontrol show job --oneliner "$job") && break
    done
    [[ $shown == *" JobState=RUNNING "*" Restarts=$((attempt - 1)) "* ]]
}}
{rest}# The nodes that the preflight named, for jobs that wait; what they leave out already stays so.
leave_out() {{
    local id bad old
    [ -s "$CRISOL_BAD_NODES" ] || return 0
    bad=$(sed 'p; s/[.].*//' "$CRISOL_BAD_NODES")  # n2.site is n2 to Slurm
    bad=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -Fx -e "$bad" | paste -sd,)
    if [ -z "$bad" ]; then echo "$CRISOL_BAD_NODES names no node of this job"; return 0; fi
    for id in "$@"; do
        old=$(scontrol show job --oneliner "$id" | sed -n 's/.* ExcNodeList=\\([^ (]*\\).*/\\1/p')
        scontrol update JobId="$id" ExcNodeList="${{old:+$old,}}$bad" && echo "job $id waits for other nodes than $bad"
    done
}}

case $code in
0) exit 0 ;;
[2-6]) echo "the run ended with exit code $code, which another start would not change"; {withdraw}exit "$code" ;;
esac
# A run counts its starts that reach no new step. Those in which it did not come so far as to count are counted here.
# Code 143 alone does not say that the ranks have saved: it is also that of ranks which srun ended for a dead one.
idle={idle_file} newest=$(newest_attempt)
if [ "$newest" = "$before" ]; then
    [ -n "$told" ] || echo "$attempt" >>"$idle"
else
    rm -f -- "$idle"
{in_order}fi
if [ -e "$idle" ] && [ "$(wc -l <"$idle")" -ge {idle} ]; then
    echo "the last {idle} attempts did not come so far as to take up the run: no further one is made"
    {withdraw}exit 6
fi
{again}exit "$code"
"""

TRAIN = """\
[ "$code" != 0 ] || ranks train --kill-on-bad-exit=1 --wait=60
"""

FINISHED = """\
if [ "$run/summary.json" -nt "$run/slurm/job.sh" ] && grep -q '"status": "finished"' "$run/summary.json"; then
    echo "an earlier job of the chain has finished the run {name}: nothing is left to do"
    exit 0
fi
"""

PREFLIGHT = """\
# Not where the attempt before ran on the same nodes, and left them in order this hour: they are as they were. A bad one
# must not stop the others from saying what they see, even if its rank dies at once; nor must one that hangs keep the
# job for long.
passed=PASSED
if [ "$(find "$passed" -mmin -60 -exec cat -- {} ';' 2>/dev/null)" = "$SLURM_JOB_NODELIST" ]; then
    echo "preflight: these nodes passed it, and the attempt before left them in order"
    code=0
else
    ranks train.preflight --kill-on-bad-exit=0 --wait=0 --time=30
    case $code in
    0 | [2-6]) ;;
    *)
        echo "preflight: exit code $code"
        if [ -n "$told" ]; then code=143; elif [ -s "$CRISOL_BAD_NODES" ]; then code=7; else code=1; fi
        ;;
    esac
    [ -z "$told" ] || [ "$code" != 0 ] || code=143
fi
rm -f -- "$passed"
"""

IN_ORDER = """\
    ! grep -qs '"how": "stopped"' "$run/attempts/$newest/ended.json" || echo "$SLURM_JOB_NODELIST" >"$passed"
"""

REST = """\
rest() {{ squeue --me --noheader --states=PENDING --name={name} --format=%i; }}
# Of the chain, by a job that is still the one that trains.
withdraw() {{
    local left
    left=$(still_runs && rest) || return 0
    [ -n "$left" ] || return 0
    scancel $left && echo "the rest of the chain is cancelled:" $left
}}
"""

WITHDRAW = "withdraw; "

REQUEUED = """\
if still_runs; then
    echo "exit code $code: back into the queue, to go on from what is saved"
    if scontrol requeue "$job"; then
        leave_out "$job"
    else
        echo "it could not be requeued: send it again, it goes on from what is saved (or with slurm.chain)"
    fi
fi
"""

CHAINED = """\
if still_runs; then
    left=$(rest)
    if [ -n "$left" ]; then
        leave_out $left
        echo "exit code $code: the next job of the chain goes on from what is saved;" $(wc -w <<<"$left") "left"
    else
        echo "exit code $code: the chain is at its end; send it again, it goes on from what is saved"
    fi
fi
"""

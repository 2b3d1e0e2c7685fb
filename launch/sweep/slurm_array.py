"""The cells of a sweep as one job array of Slurm: each element trains its cells one after the other.

In: chains of cells, cheap ones first, in which a cell may begin from a checkpoint of one before it; the shape of a job;
the sweep's folder. Out: one batch script, which is that of a run (launch/batch_script.py) but for what it trains, and a
file for each element with its cells, in SWEEP/slurm. A cell that is finished is passed over by `train` itself. One that
ends for good (exit codes 2 to 6) is lost, and with it those that would begin from it; the element goes on with the
others. Whatever else ends one, as the time limit or another job's precedence, ends the element, which puts itself back
into the queue and takes that cell up again.
"""

import hashlib
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError
from data_prep.files import DataError, publish_bytes
from launch import slurm
from launch.batch_script import REQUEUED, Body, directives, filled, quoted
from launch.job import python_path
from launch.slurm import Limits
from launch.submit_config import JobConfig, TrainJobConfig


@dataclass(frozen=True)
class Cell:
    run: str
    """name of its run, whose folder is SWEEP/runs/RUN"""
    words: tuple[str, ...]
    """of `train`"""
    branch_from: str | None = None
    """the run of which it takes up a checkpoint"""


@dataclass(frozen=True)
class SweepArray:
    folder: Path
    """of the sweep, by which its jobs are found again"""
    elements: tuple[tuple[Cell, ...], ...]
    job: JobConfig
    queue: TrainJobConfig
    at_once: int | None
    """elements that run at the same time; None: as many as find room"""
    max_idle_starts: int

    @property
    def name(self) -> str:
        plain = re.sub(r"[^A-Za-z0-9._]+", "_", self.folder.name)[:32]
        return f"sweep-{plain}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]}"

    @property
    def place(self) -> Path:
        return self.folder / "slurm"


def sweep_array(
    folder: Path,
    chains: Sequence[Sequence[Cell]],
    job: JobConfig,
    queue: TrainJobConfig,
    *,
    at_once: int | None = None,
    max_idle_starts: int = 3,
) -> SweepArray:
    """Raises ConfigError for what such a job cannot be, and DataError where the cluster has no room for it."""
    folder = folder.absolute()
    if problems := [*_problems(folder, queue, at_once), *_order_problems(chains)]:
        raise ConfigError(problems)
    slurm.refuse_beyond_partition(queue)
    return SweepArray(folder, dealt(chains, slurm.limits()), job, queue, at_once, max_idle_starts)


def dealt(chains: Sequence[Sequence[Cell]], limits: Limits) -> tuple[tuple[Cell, ...], ...]:
    """The cells of each element: a chain's, or where the cluster allows fewer elements than there are chains, those of
    chains i, i + n, i + 2n ... Indices have to be below MaxArraySize; half of MaxJobCount is other people's."""
    if limits.max_array_size < 1:
        raise DataError("this cluster has job arrays switched off (MaxArraySize=0); send the runs by `launch submit`")
    n = max(1, min(len(chains), limits.max_array_size, limits.max_jobs // 2))
    return tuple(tuple(cell for chain in chains[i::n] for cell in chain) for i in range(n))


def array_script(array: SweepArray) -> str:
    """The batch script of every element."""
    n_cells = sum(map(len, array.elements))
    body = Body(
        what=f"Trains {n_cells} runs of a sweep in an array of {len(array.elements)} elements.",
        verb="sweep",
        runs=RUNS.format(sweep=shlex.quote(str(array.folder))),
        train=TRAIN,
        job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",  # SLURM_JOB_ID of the last element is that of the array
        here="$sweep/slurm/$job",
        passed="$here.passed",
        n_trainings="n_cells",
        idle_file='"$here.idle"',
        again=REQUEUED.replace(" (or with slurm.chain)", ""),
    )
    return filled(body, array.job, array.queue, options(array), Path.cwd(), python_path(), array.max_idle_starts)


def options(array: SweepArray) -> list[str]:
    """Of sbatch."""
    limit = "" if array.at_once is None else f"%{array.at_once}"
    return [f"--array=0-{len(array.elements) - 1}{limit}", *directives(array.name, array.job, array.queue)]


def cells_file(array: SweepArray, element: int) -> str:
    """What the script reads in this element: its cells, quoted for bash."""
    cells = array.elements[element]
    lines = [
        f"# Element {element} of a sweep: its runs, one after the other. Read by array.sh.",
        f"n_cells={len(cells)}",
    ]
    for i, cell in enumerate(cells):
        run = shlex.quote(str(array.folder / "runs" / cell.run))
        lines.append(
            f"cell_{i}() {{\n    name={shlex.quote(cell.run)} from={shlex.quote(cell.branch_from or '')}\n"
            f"    run={run}\n    words=(\n{quoted(cell.words)}    )\n}}"
        )
    return "\n".join([*lines, ""])


def sbatch(array: SweepArray) -> list[str]:
    """The command. Directives stand here again: variables such as SBATCH_TIMELIMIT overrule those in a script."""
    logs = str(array.place).replace("%", "%%")
    return ["sbatch", "--parsable", *options(array), f"--output={logs}/%A_%a.log", str(array.place / "array.sh")]


def shown(array: SweepArray) -> str:
    """What `send` would write and do."""
    head = f"--- {array.place}/"
    files = [f"{head}{cells_name(i)} ---\n{cells_file(array, i)}" for i in range(len(array.elements))]
    end = "--- nothing was sent; submit=true writes these files and does: ---"
    return "\n".join([f"{head}array.sh ---\n{array_script(array)}", *files, end, shlex.join(sbatch(array))])


def send(array: SweepArray) -> str:
    """The number of the array. Raises DataError where it is queued already, or Slurm refuses it."""
    slurm.require()
    if found := slurm.queued([array.name]):
        listed = "".join(f"\n  {line}" for line in found[:10])
        raise DataError(
            f"jobs of the sweep {array.folder} wait or run already:{listed}\nLet them end, or end them with "
            f"scancel --name={array.name}; then the same command sends what is left"
        )
    array.place.mkdir(parents=True, exist_ok=True)
    for old in array.place.glob("cells-*.sh"):
        old.unlink()
    for i in range(len(array.elements)):
        publish_bytes(array.place / cells_name(i), cells_file(array, i).encode())
    publish_bytes(array.place / "array.sh", array_script(array).encode())
    words = sbatch(array)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"Slurm refused the sweep {array.folder}: {done.stderr.strip()}\n{shlex.join(words)}")
    return done.stdout.strip().partition(";")[0]


def told(array: SweepArray, number: str) -> str:
    """What a person wants to know after sending."""
    n, at_once = len(array.elements), array.at_once
    limit = "" if at_once is None or at_once >= n else f", {at_once} at a time"
    return (
        f"job {number}: {sum(map(len, array.elements))} runs in {n} element{'s' if n > 1 else ''}{limit}\n"
        f"watch: squeue --me --name={array.name}; logs: {array.place}/{number}_*.log; "
        f"end it for good: scancel {number}"
    )


def cells_name(element: int) -> str:
    return f"cells-{element:04d}.sh"


def _problems(folder: Path, queue: TrainJobConfig, at_once: int | None) -> list[str]:
    found: list[str] = []
    if queue.chain > 1:
        found.append(
            f"slurm.chain={queue.chain}: an element of an array puts itself back into the queue; where the site "
            "forbids that, send the sweep again when the array has ended: finished cells are passed over"
        )
    if at_once is not None and at_once < 1:
        found.append(f"sweep.jobs={at_once} must be at least 1, or null: elements of the array that run at once")
    if "\\" in str(folder) or not str(folder).isprintable():
        found.append(f"the sweep's folder {str(folder)!r}: Slurm cannot name log files below a folder with such signs")
    return found


def _order_problems(chains: Sequence[Sequence[Cell]]) -> list[str]:
    """A cell must come after the one that it begins from, in the same chain; that one may also be finished, and none of
    these."""
    names = [cell.run for chain in chains for cell in chain]
    found = [f"the run {name} is in the sweep's chains twice" for name in {n for n in names if names.count(n) > 1}]
    found += [] if names else ["there is no cell left to train: nothing to send"]
    for chain in chains:
        before: set[str] = set()
        for cell in chain:
            if cell.branch_from in names and cell.branch_from not in before:
                found.append(f"{cell.run} begins from {cell.branch_from}, which does not come before it in its chain")
            before.add(cell.run)
    return found


RUNS = """\
sweep={sweep}
. "$sweep/slurm/cells-$(printf %04d "$SLURM_ARRAY_TASK_ID").sh" || exit 2
cell_0  # sets name, from, run and words
"""

TRAIN = """\
# The cells one after the other; what the preflight has against the words of the first, the cell that has them says
# itself. A cell that ended for good is lost, also for later attempts of this job.
lost=$here.lost
is_lost() { cut -d' ' -f1 -- "$lost" 2>/dev/null | grep -qFx -e "$1"; }
train_cells() {
    local i
    for ((i = 0; i < n_cells; i++)); do
        [ -z "$told" ] || { code=143; return; }
        "cell_$i"
        if is_lost "$name"; then
            echo "$name: lost in an earlier attempt of this job"
            continue
        elif [ -n "$from" ] && is_lost "$from"; then
            echo "$name: not trained, since it begins from $from"
            echo "$name -" >>"$lost"
            continue
        fi
        echo "$(date +%FT%T) $name: run $((i + 1)) of $n_cells"
        before=$(newest_attempt)
        ranks train --kill-on-bad-exit=1 --wait=60
        case $code in
        0) ;;
        [2-6])
            echo "$name: ended with exit code $code, which another start would not change"
            echo "$name $code" >>"$lost"
            ;;
        *) return ;;
        esac
    done
    code=0
    [ -s "$lost" ] || return
    read -r _ code <"$lost"
    echo "all is done, but for what is lost:" $(cut -d' ' -f1 -- "$lost")
    exit "$code"
}
case $code in 0 | [2-6]) train_cells ;; esac
"""

"""Jobs that `launch submit` sends to a real Slurm, whose nodes and jobs are then hurt: they resume by themselves, and
end with the curve of a run that was left in peace.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job
from tests.runs import TINY, curve, rows
from tests.slurm_box import Box, NoSlurmError

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SHORT = ("total_tokens=6144", "evaluation.every_steps=8", "checkpoint.every_steps=6")
STEPS = 24
PATIENCE = 300.0
"""seconds; a start takes ten on a quiet machine, most of it imports"""
SLOW = """\
import sys
if sys.orig_argv[1:3] == ["-m", "train"]:
    import time
    import train.data
    real = train.data.TrainBatches.micro_batches
    def micro_batches(self, step):
        time.sleep(0.3)
        return real(self, step)
    train.data.TrainBatches.micro_batches = micro_batches
"""
"""put before the run in each rank by way of Python's sitecustomize: a run that can be hurt takes a few seconds"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Time enough between SIGTERM and SIGKILL for a save; a requeued job waits for seven seconds, not two minutes."""
    try:
        found = Box(tmp_path_factory.mktemp("slurm") / "box", nodes=3, cpus=1, kill_wait=60)
    except NoSlurmError as error:
        pytest.skip(f"no Slurm to test against ({error}); tests/install_slurm.sh")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> list[tuple[Any, ...]]:
    """On two nodes each rank has the cores of a machine, as many threads, and with them the order of its sums."""
    codes = Job(workplace, *SHORT, "run.name=in_peace", fault=_alone_on_its_node).end()
    assert codes == [0, 0]
    return curve(workplace / "runs" / "in_peace")


def _alone_on_its_node(rank: int) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "1"


class Sent:
    """A run under Slurm."""

    def __init__(self, box: Box, folder: Path, name: str, *words: str):
        self.box, self.run = box, folder / "runs" / name
        slow = folder / "slow"
        slow.mkdir()
        (slow / "sitecustomize.py").write_text(SLOW)
        environment = box.env | {"PYTHONPATH": f"{ROOT}:{slow}"}
        typed = [*TINY, *SHORT, f"run.name={name}", "slurm.nodes=2", "slurm.cpus_per_task=1", *words]
        typed += ["slurm.export=[PATH,HOME,PYTHONPATH]", "submit=true"]
        done = subprocess.run(
            [sys.executable, "-m", "launch", "submit", *typed],
            cwd=folder,
            env=environment,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.number = done.stdout.split()[1].rstrip(":")

    def log(self) -> str:
        file = self.run / "slurm" / f"{self.number}.log"
        return file.read_text() if file.exists() else "(no log)"

    def fact(self, name: str) -> str:
        """Of `scontrol show job`."""
        shown = self.box.ask("scontrol", "show", "job", "--oneliner", self.number)
        return next(word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}="))

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < until, f"{what} did not come:\n{self.log()}"
            time.sleep(0.2)

    def wait_for_step(self, step: int) -> None:
        def reached() -> bool:
            with contextlib.suppress(OSError, ValueError):
                return any(row["step"] >= step for row in rows(self.run))
            return False

        self.wait(f"step {step}", reached)

    def end(self) -> str:
        """Slurm's word for how the job ended."""
        self.wait("the end", lambda: self.fact("JobState") not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"))
        return self.fact("JobState")

    def events(self, name: str) -> list[dict[str, Any]]:
        found = map(json.loads, (self.run / "events.jsonl").read_text().splitlines())
        return [event for event in found if event["event"] == name]


def test_a_job_that_is_preempted_and_warned_resumes_by_itself(here: Path, box: Box, undisturbed: list[tuple[Any, ...]]):
    """F8: SIGTERM as Slurm takes the job off its nodes and requeues it; then SIGUSR1 to the ranks, as before the time
    limit: they save and leave, and the script puts the job back. No step is done twice."""
    sent = Sent(box, here, "preempted")
    sent.wait_for_step(5)
    box.ask("scontrol", "requeue", sent.number)
    sent.wait("the second attempt", lambda: "attempt 2" in sent.log())
    sent.wait_for_step(14)
    box.ask("scancel", "--signal=USR1", sent.number)
    assert sent.end() == "COMPLETED", sent.log()
    assert sent.fact("Restarts") == "2"
    assert "exit code 143: back into the queue" in sent.log()
    assert [event["repeated_steps"] for event in sent.events("started")] == [0, 0, 0]
    assert curve(sent.run) == undisturbed


def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint(
    here: Path, box: Box, undisturbed: list[tuple[Any, ...]]
):
    """F15: its daemon, its ranks and all; the job goes on elsewhere."""
    sent = Sent(box, here, "bereft")
    sent.wait_for_step(9)
    sent.wait("a checkpoint", lambda: bool(sent.events("saved")))
    first, second = box.ask("scontrol", "show", "hostnames", sent.fact("NodeList")).split()
    box.kill_node(second)
    assert sent.end() == "COMPLETED", sent.log()
    assert set(box.ask("scontrol", "show", "hostnames", sent.fact("NodeList")).split()) != {first, second}
    assert sent.fact("Restarts") == "1"
    assert curve(sent.run) == undisturbed


def test_a_refusal_is_the_end_of_the_job_whatever_becomes_of_the_other_ranks(here: Path, box: Box):
    """F20: a vocabulary that the model has no room for: exit code 2, and not what srun makes of the ranks it ends."""
    sent = Sent(box, here, "refused", "model.vocab_size=256")
    assert sent.end() == "FAILED", sent.log()
    assert sent.fact("ExitCode") == "2:0"
    assert "which another start would not change" in sent.log()


def test_the_end_of_the_job_is_known_to_its_ranks(tmp_path: Path, box: Box):
    code = "import time; from train.stop import TimeLimit; limit = TimeLimit.find(None, 0); "
    code += "print(limit.source, round(limit.seconds_left()), limit.problem)"
    words = ("srun", "--nodes=1", "--ntasks=1", "--time=10", f"--chdir={ROOT}", sys.executable, "-c", code)
    source, left, problem = box.ask(*words).strip().rsplit(" ", 2)
    assert source.startswith("the time limit of Slurm job ")
    assert 400 < int(left) <= 600
    assert problem == "None"

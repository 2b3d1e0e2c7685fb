"""Jobs that `launch submit` sends to a real Slurm, whose nodes and jobs are then hurt: they resume by themselves, and
end with the curve of a run that was left in peace.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cables import Cables, NoCablesError
from tests.faults.jobs import Job
from tests.launch.conftest import HOSTILE
from tests.runs import TINY, curve, rows
from tests.slurm_box import Box, NoSlurmError

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SHORT = ("total_tokens=6144", "evaluation.every_steps=8", "checkpoint.every_steps=6")
STEPS = 24
NODES = 5
PATIENCE = 300.0
"""seconds; a start takes ten on a quiet machine, most of it imports"""
SLOW = """\
import sys
if sys.orig_argv[1:3] == ["-m", "train"]:
    import os
    import time
    import train.data
    real, sync = train.data.TrainBatches.micro_batches, os.fsync
    def micro_batches(self, step):
        time.sleep(0.3)
        return real(self, step)
    def fsync(descriptor):
        if os.path.exists(os.environ["SLOW_DISK"]):
            time.sleep(300)
        sync(descriptor)
    train.data.TrainBatches.micro_batches, os.fsync = micro_batches, fsync
"""
"""put before the run in each rank by way of Python's sitecustomize: a run that can be hurt takes a few seconds"""


@pytest.fixture(scope="module")
def cables() -> Cables | str:
    """Or why there are none."""
    try:
        return Cables(NODES)
    except NoCablesError as error:
        return str(error)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, cables: Cables | str) -> Iterator[Box]:
    """Time enough between SIGTERM and SIGKILL for a save; a requeued job waits for seven seconds, not two minutes."""
    folder, network = tmp_path_factory.mktemp("slurm") / "box", cables if isinstance(cables, Cables) else None
    try:
        found = Box(folder, nodes=NODES, cpus=1, kill_wait=60, cables=network)
    except NoSlurmError as error:
        pytest.skip(f"no Slurm to test against ({error}); tests/install_slurm.sh")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> Path:
    """On two nodes each rank has the cores of a machine, as many threads, and with them the order of its sums."""
    codes = Job(workplace, *SHORT, "run.name=in_peace", fault=_alone_on_its_node).end()
    assert codes == [0, 0]
    return workplace / "runs" / "in_peace"


def _alone_on_its_node(rank: int) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "1"


class Sent:
    """A run under Slurm, in a folder whose name is made to be misunderstood by shells."""

    def __init__(self, box: Box, folder: Path, name: str, *words: str, nodes: int = 2):
        self.box, self.run = box, folder / HOSTILE / name
        self._folder, self.slow_disk = folder, folder / "disk is slow"
        (folder / "before").mkdir()
        (folder / "before" / "sitecustomize.py").write_text(SLOW)
        typed = [*TINY, *SHORT, f"run.folder={quoted(HOSTILE)}", f"run.name={name}", f"slurm.nodes={nodes}"]
        typed += ["slurm.cpus_per_task=1", "slurm.export=[PATH,HOME,PYTHONPATH,GLOO_SOCKET_IFNAME,SLOW_DISK]", *words]
        self._typed = [*typed, "submit=true"]
        self.send()

    def send(self) -> None:
        environment = self.box.env | {"PYTHONPATH": f"{ROOT}:{self._folder / 'before'}"}
        environment |= {"GLOO_SOCKET_IFNAME": self.box.interface, "SLOW_DISK": str(self.slow_disk)}
        done = subprocess.run(
            [sys.executable, "-m", "launch", "submit", *self._typed],
            cwd=self._folder,
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

    @property
    def nodes(self) -> list[str]:
        return self.box.ask("scontrol", "show", "hostnames", self.fact("NodeList")).split()

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

    def wait_for_attempt(self, number: int) -> None:
        self.wait(f"attempt {number}", lambda: f", attempt {number}\n" in self.log())

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        found = map(json.loads, (self.run / "events.jsonl").read_text().splitlines())
        return [event for event in found if name in (None, event["event"])]


def quoted(text: str) -> str:
    """For Hydra."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def files(run: Path) -> list[str]:
    """Of a run, but for those that tell of its starts."""
    found = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] not in ("attempts", "slurm", "tensorboard"))


def test_a_job_that_is_requeued_preempted_and_warned_and_loses_a_node_resumes_by_itself(
    here: Path, box: Box, undisturbed: Path
):
    """F8, F15: SIGTERM as Slurm takes the job off its nodes; then as jobs of another partition need them; then SIGUSR1
    to the ranks, as before the time limit: they save and leave, and no step is done twice. Last a node dies, its
    daemon, its ranks and all, and the steps since the last checkpoint are done again elsewhere."""
    sent = Sent(box, here, "preempted")
    sent.wait_for_step(5)
    box.ask("scontrol", "requeue", sent.number)
    sent.wait_for_attempt(2)
    sent.wait_for_step(8)
    box.ask("sbatch", f"--chdir={here}", "--partition=high", f"--nodes={len(box.up())}", "--wrap=true")
    sent.wait_for_attempt(3)
    sent.wait_for_step(11)
    box.ask("scancel", "--signal=USR1", sent.number)
    sent.wait_for_attempt(4)
    sent.wait_for_step(15)
    first, second = sent.nodes
    box.kill_node(second)
    assert sent.end() == "COMPLETED", sent.log()
    assert set(sent.nodes) != {first, second}
    assert sent.fact("Restarts") == "4"
    assert sent.log().count("exit code 143: back into the queue") == 2, sent.log()  # the first was Slurm's own doing
    assert [event["repeated_steps"] for event in sent.events("started")][:4] == [0, 0, 0, 0]
    assert curve(sent.run) == curve(undisturbed)
    assert files(sent.run) == files(undisturbed)
    assert not list(here.rglob("pwned"))


def test_a_rank_that_is_cut_off_and_lives_on_writes_nothing_into_the_run_of_its_successor(
    here: Path, box: Box, undisturbed: Path, cables: Cables | str
):
    """F15: rank 0, which writes, and the job's script; the watchdog that would end the rank at once is frozen until the
    job has gone on elsewhere for a while and the network is back."""
    if isinstance(cables, str):
        pytest.skip(f"no network of its own for each node here ({cables})")
    sent = Sent(box, here, "cut")
    sent.wait_for_step(7)
    first, _ = sent.nodes
    stale, watchdog = (the_one(box.tasks(first), words) for words in (("-m", "train"), ("-m", "train.watch")))
    os.kill(watchdog, signal.SIGSTOP)
    box.set_kill_wait(5)  # rank 1 cannot save without rank 0
    box.cut_off(first)
    sent.wait_for_attempt(2)
    sent.wait("a step of the second attempt", lambda: any(e["attempt"] == 2 for e in sent.events("saved")))
    os.kill(stale, 0)  # alive
    box.reach_again(first)
    os.kill(watchdog, signal.SIGCONT)
    assert sent.end() == "COMPLETED", sent.log()
    sent.wait("the fence", lambda: not Path(f"/proc/{stale}").exists())
    box.set_kill_wait(60)
    assert '"fenced"' in (sent.run / "attempts" / "0001" / "rank-00000.failure.json").read_text()
    assert sent.fact("Restarts") == "1"
    written = [event["attempt"] for event in sent.events()]
    assert written == sorted(written)
    assert curve(sent.run) == curve(undisturbed)
    assert files(sent.run) == files(undisturbed)


def the_one(processes: list[int], words: tuple[str, ...]) -> int:
    """Of them, the one started with these words."""
    wanted = b"\0".join(word.encode() for word in words) + b"\0"
    (found,) = [pid for pid in processes if wanted in cmdline(pid) and b"srun" not in cmdline(pid)]
    return found


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_a_job_that_is_out_of_time_or_cancelled_ends_and_goes_on_when_it_is_sent_again(
    here: Path, box: Box, workplace: Path
):
    """F10: Slurm's time limit comes while the last checkpoint is being written to a disk that takes its time: TIMEOUT,
    and only what came after the checkpoint before is lost. A job that a person cancels saves, and stays away."""
    assert Job(workplace, *SHORT, "run.name=alone", ranks=1).end() == [0]
    sent = Sent(box, here, "late", "slurm.signal_seconds=30", nodes=1)
    sent.wait_for_step(8)
    sent.wait("a checkpoint", lambda: bool(sent.events("saved")))
    sent.slow_disk.touch()
    box.set_kill_wait(2)
    box.ask("scontrol", "update", f"jobid={sent.number}", "EndTime=now+1")
    assert sent.end() == "TIMEOUT", sent.log()
    box.set_kill_wait(60)
    sent.slow_disk.unlink()
    saved = sent.events("saved")[-1]["step"]
    sent.send()
    sent.wait_for_step(14)
    box.ask("scancel", sent.number)
    assert sent.end() == "CANCELLED", sent.log()
    assert "back into the queue" not in sent.log()
    sent.send()
    assert sent.end() == "COMPLETED", sent.log()
    assert [event["step"] for event in sent.events("started")][1] == saved
    assert sent.events("started")[2]["repeated_steps"] == 0
    assert curve(sent.run) == curve(workplace / "runs" / "alone")


def test_a_job_that_makes_no_progress_ends_by_itself(here: Path, box: Box):
    """F1: attempt after attempt died at once; the next one does not try, and Slurm does not start it again."""
    attempt = here / HOSTILE / "idle" / "attempts" / "0001"
    attempt.mkdir(parents=True)
    (attempt / "holder.json").write_text("{}")
    (attempt / "ended.json").write_text('{"how": "failed"}')
    sent = Sent(box, here, "idle", "run.max_idle_starts=1", nodes=1)
    assert sent.end() == "FAILED", sent.log()
    assert sent.fact("ExitCode") == "6:0", sent.log()
    assert sent.fact("Restarts") == "0"


def test_a_refusal_is_the_end_of_the_job_whatever_becomes_of_the_other_ranks(here: Path, box: Box):
    """F20: a vocabulary that the model has no room for: exit code 2, and not what srun makes of the ranks it ends."""
    sent = Sent(box, here, "refused", "model.vocab_size=256")
    assert sent.end() == "FAILED", sent.log()
    assert sent.fact("ExitCode") == "2:0"
    assert "which another start would not change" in sent.log()
    assert sent.fact("Restarts") == "0"


def test_the_end_of_the_job_is_known_to_its_ranks(tmp_path: Path, box: Box):
    code = "import time; from train.stop import TimeLimit; limit = TimeLimit.find(None, 0); "
    code += "print(limit.source, round(limit.seconds_left()), limit.problem)"
    words = ("srun", "--nodes=1", "--ntasks=1", "--time=10", f"--chdir={ROOT}", sys.executable, "-c", code)
    source, left, problem = box.ask(*words).strip().rsplit(" ", 2)
    assert source.startswith("the time limit of Slurm job ")
    assert 400 < int(left) <= 600
    assert problem == "None"

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job
from tests.launch.conftest import HOSTILE
from tests.runs import TINY, curve, rows
from tests.slurm_box import Box
from train.checkpoint.folders import steps_found

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SHORT = ("total_tokens=6144", "evaluation.every_steps=8", "checkpoint.every_steps=6", "health.stuck_seconds=1000")
STEPS = 24
PATIENCE = 600.0
"""seconds; a start takes ten on a quiet machine, most of it imports"""
HELD = """\
import sys
if sys.orig_argv[1:3] == ["-m", "train"]:
    import os
    import time
    from train.parallel import share_cores
    share_cores()  # before torch is imported: else threads that wait spin, and steps take a second
    import train.data
    import train.stop
    place = os.environ["PLACE"] + "/"
    real, sync = train.data.TrainBatches.micro_batches, os.fsync
    def may(step):
        with open(place + "limit") as file:
            return step < int(file.read()) or train.stop.install().code
    def micro_batches(self, step):
        while not may(step):
            time.sleep(0.05)
        return real(self, step)
    def fsync(descriptor):
        while "/checkpoints/" in os.readlink(f"/proc/self/fd/{descriptor}") and os.path.exists(place + "disk is slow"):
            open(place + "disk is waited for", "w").close()
            time.sleep(0.05)
        sync(descriptor)
    train.data.TrainBatches.micro_batches, os.fsync = micro_batches, fsync
"""
"""put before the run in each rank by way of Python's sitecustomize. However slow the test is, what it does comes
between the steps that it is meant for: a run goes as far as it may, and a step or two further when told to stop."""


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
        self._folder, self._place = folder, folder / f"{name}.held"
        self._place.mkdir()
        self._allow(0)
        self._hurried: set[tuple[str, str]] = set()
        (self._place / "sitecustomize.py").write_text(HELD)
        typed = [*TINY, *SHORT, f"run.folder={quoted(HOSTILE)}", f"run.name={name}", f"job.nodes={nodes}"]
        typed += ["slurm.cpus_per_task=1", "slurm.export=[PATH,HOME,PYTHONPATH,GLOO_SOCKET_IFNAME,PLACE]", *words]
        self._typed = [*typed, "submit=true"]
        self.send()

    def send(self) -> None:
        environment = self.box.env | {"PYTHONPATH": f"{ROOT}:{self._place}"}
        environment |= {"GLOO_SOCKET_IFNAME": self.box.interface, "PLACE": str(self._place)}
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
            self._hurry()
            time.sleep(0.2)

    def go_to(self, step: int, attempt: int) -> None:
        """Waits until this attempt has come to the step, where it stays until more is allowed or a signal comes."""
        self._allow(step)

        def reached() -> bool:
            with contextlib.suppress(OSError, ValueError):
                is_there = any(event["attempt"] == attempt for event in self.events("started"))
                return is_there and any(row["step"] >= step for row in rows(self.run))
            return False

        self.wait(f"step {step} of attempt {attempt}", reached)

    def _allow(self, step: int) -> None:
        (self._place / "limit.new").write_text(str(step))
        (self._place / "limit.new").rename(self._place / "limit")

    def wait_for_checkpoint(self, step: int) -> None:
        """Not for its event, which comes with a step after it."""
        self.wait(f"checkpoint {step}", lambda: step in steps_found(self.run / "checkpoints"))

    def slow_disk(self, is_slow: bool) -> None:
        """Returns as soon as a rank waits for it."""
        file = self._place / "disk is slow"
        if not is_slow:
            return file.unlink()
        file.touch()
        self._allow(STEPS)
        return self.wait("a save", (self._place / "disk is waited for").exists)

    def end(self) -> str:
        """Lets it go to its end; Slurm's word for that."""
        self._allow(STEPS)
        return self.wait_for_end()

    def wait_for_end(self) -> str:
        under_way = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")
        self.wait("the end", lambda: self.fact("JobState") not in under_way)
        return self.fact("JobState")

    def _hurry(self) -> None:
        """Back in the queue, a job would wait for seven seconds (one more than slurm.conf's cred_expire)."""
        start = (self.number, self.fact("Restarts"))
        if start not in self._hurried and self.fact("JobState") == "PENDING" and self.fact("Reason") == "BeginTime":
            self._hurried.add(start)
            words = ("scontrol", "update", f"jobid={self.number}", "StartTime=now+2")
            subprocess.run(words, env=self.box.env, capture_output=True, check=False)

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
    sent.go_to(3, attempt=1)
    box.ask("scontrol", "requeue", sent.number)
    sent.go_to(6, attempt=2)
    box.ask("sbatch", f"--chdir={here}", "--partition=high", f"--nodes={len(box.up())}", "--wrap=true")
    sent.go_to(9, attempt=3)
    box.ask("scancel", "--signal=USR1", sent.number)
    sent.go_to(13, attempt=4)
    first, second = sent.nodes
    with box.impatient():  # rank 0 cannot save without rank 1, and srun waits for it for a minute
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
    here: Path, box: Box, undisturbed: Path
):
    """F15: rank 0, which writes, and the job's script; the watchdog that would end the rank at once is frozen until the
    job has gone on elsewhere for a while. Then the network comes back."""
    if box.why_no_cables:
        pytest.skip(f"no network of its own for each node here ({box.why_no_cables})")
    sent = Sent(box, here, "cut")
    sent.go_to(7, attempt=1)
    first, _ = sent.nodes
    stale, watchdog = (the_one(box.tasks(first), words) for words in (("-m", "train"), ("-m", "train.watch")))
    os.kill(watchdog, signal.SIGSTOP)
    with box.impatient():  # rank 1 cannot save without rank 0
        box.cut_off(first)
        sent.go_to(13, attempt=2)
        sent.wait_for_checkpoint(12)
        os.kill(stale, 0)  # alive
        os.kill(watchdog, signal.SIGCONT)
        sent.wait("the fence", lambda: not cmdline(stale))
        box.reach_again(first)
        assert sent.end() == "COMPLETED", sent.log()
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


def test_jobs_end_for_good_where_another_start_would_not_help_and_go_on_when_they_are_sent_again(
    here: Path, box: Box, workplace: Path
):
    """F10: Slurm's time limit comes while a checkpoint is being written to a disk that takes its time: TIMEOUT, and
    only what came after the checkpoint before is lost. A job that a person cancels saves, and stays away. F1, F20: two
    that end by themselves, while the first of them waits for Slurm, which looks at time limits every 30 s."""
    assert Job(workplace, *SHORT, "run.name=alone", ranks=1).end() == [0]
    sent = Sent(box, here, "late", "slurm.signal_seconds=30", nodes=1)
    sent.go_to(7, attempt=1)
    sent.wait_for_checkpoint(6)
    sent.slow_disk(True)
    with box.impatient():
        box.ask("scontrol", "update", f"jobid={sent.number}", "EndTime=now+1")
        idle, refused = idle_job(box, here), Sent(box, here, "refused", "model.vocab_size=256")
        ends_because_it_makes_no_progress(idle)
        ends_with_its_refusal_whatever_becomes_of_the_other_ranks(refused)
        assert sent.wait_for_end() == "TIMEOUT", sent.log()
    sent.slow_disk(False)
    saved = max(steps_found(sent.run / "checkpoints"))
    sent.send()
    sent.go_to(saved + 2, attempt=2)
    box.ask("scancel", sent.number)
    assert sent.end() == "CANCELLED", sent.log()
    assert "back into the queue" not in sent.log()
    sent.send()
    assert sent.end() == "COMPLETED", sent.log()
    assert [event["step"] for event in sent.events("started")][1] == saved
    assert sent.events("started")[2]["repeated_steps"] == 0
    assert curve(sent.run) == curve(workplace / "runs" / "alone")


def idle_job(box: Box, folder: Path) -> Sent:
    """Attempt after attempt died at once."""
    attempt = folder / HOSTILE / "idle" / "attempts" / "0001"
    attempt.mkdir(parents=True)
    (attempt / "holder.json").write_text("{}")
    (attempt / "ended.json").write_text('{"how": "failed"}')
    return Sent(box, folder, "idle", "run.max_idle_starts=1", nodes=1)


def ends_because_it_makes_no_progress(sent: Sent) -> None:
    """The next attempt does not try, and Slurm does not start it again."""
    assert sent.end() == "FAILED", sent.log()
    assert sent.fact("ExitCode") == "6:0", sent.log()
    assert sent.fact("Restarts") == "0"


def ends_with_its_refusal_whatever_becomes_of_the_other_ranks(sent: Sent) -> None:
    """A vocabulary that the model has no room for: exit code 2, and not what srun makes of the ranks it ends."""
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

"""Runs that `launch submit` sends to a real Slurm, held at the steps at which a test does something to them."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.launch.conftest import HOSTILE
from tests.runs import TINY, rows
from tests.slurm_box import Box
from train.checkpoint.folders import steps_found

ROOT = Path(__file__).parents[2]
SHORT = ("total_tokens=6144", "evaluation.every_steps=8", "checkpoint.every_steps=6", "health.stuck_seconds=1000")
STEPS = 24
PATIENCE = 600.0
"""seconds; a start takes ten on a quiet machine, most of it imports"""
HELD = """\
import sys
import train
train.__path__.insert(0, __file__.rpartition("/")[0])
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
MISSED = """\
import os
import sys
with open(os.environ["PLACE"] + "/bad nodes") as file:
    if os.environ.get("SLURMD_NODENAME") in file.read().split():
        sys.path.insert(0, os.environ["PLACE"] + "/old")
"""
"""the same on a node that missed an update, for the real train.preflight: other packages are installed there"""
LOOKS = """\
import os
import sys
with open(os.environ["PLACE"] + "/bad nodes") as file:
    bad = file.read().split()
if os.environ["SLURMD_NODENAME"] in bad:
    with open(os.environ["CRISOL_BAD_NODES"], "a") as file:
        file.write(os.environ["SLURMD_NODENAME"] + "\\n")
    sys.exit(7)
"""
"""stands for train.preflight: says what it is told of the node that it is on"""


class Sent:
    """A run under Slurm, in a folder whose name is made to be misunderstood by shells."""

    def __init__(
        self, box: Box, folder: Path, name: str, *words: str, nodes: int = 2, bad: str = "", looks: bool = False
    ):
        """bad: nodes that the preflight finds bad, which really looks if `looks`, and so takes as long as a start."""
        self.box, self.run = box, folder / HOSTILE / name
        self._folder, self._place = folder, folder / f"{name}.held"
        self._place.mkdir()
        self._allow(0)
        self._hurried: set[tuple[str, str]] = set()
        (self._place / "sitecustomize.py").write_text(HELD + MISSED)
        if looks:
            old = self._place / "old" / "deepspeed-0.1.dist-info"
            old.mkdir(parents=True)
            (old / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.1\n")
        else:
            (self._place / "preflight.py").write_text(LOOKS)
        (self._place / "bad nodes").write_text(bad)
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
        self.numbers = re.findall(r"^job (\d+):", done.stdout, re.MULTILINE)
        self.number = self.numbers[0]

    def log(self) -> str:
        file = self.run / "slurm" / f"{self.number}.log"
        return file.read_text() if file.exists() else "(no log)"

    @property
    def nodes(self) -> list[str]:
        return self.box.ask("scontrol", "show", "hostnames", self.fact("NodeList")).split()

    def fact(self, name: str) -> str:
        """Of `scontrol show job`."""
        return self.of(self.number, name)

    def of(self, number: str, name: str) -> str:
        """The same of any job."""
        shown = self.box.ask("scontrol", "show", "job", "--oneliner", number)
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
        """Not for its event. What was written becomes a checkpoint at one of the steps after it: a few are allowed, one
        by one, as far as the next save is away."""
        further = iter([*range(step + 2, step + 6)])
        asked = time.monotonic()

        def is_there() -> bool:
            nonlocal asked
            if time.monotonic() > asked + 5 and (limit := next(further, None)):
                asked = time.monotonic()
                self._allow(limit)
            return step in steps_found(self.run / "checkpoints")

        self.wait(f"checkpoint {step}", is_there)

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

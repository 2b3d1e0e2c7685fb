"""The command that is typed on each node, and a run of two nodes that it starts."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from conf.compose import ConfigError, compose
from launch.job import Job
from launch.torchrun import commands
from tests.faults.jobs import Job as RanksHere
from tests.launch.conftest import HOSTILE
from tests.launch.desk import APP
from tests.runs import TINY, curve
from train.parallel import free_port

TWO = ("job.target=torchrun", "job.nodes=2")
SHORT = (*TINY, "total_tokens=2560", "checkpoint.every_steps=4")


def written(*words: str) -> str:
    typed = [*TWO, *words]
    config = compose(APP, typed)
    return commands(config, Job.of(config, typed))


def test_the_preflight_comes_first_and_meets_at_a_port_of_its_own():
    text = written("experiment=debug", "run.name=x", "torchrun.endpoint='[fe80::1]:29400'", "torchrun.restarts=3")
    assert re.findall(r"--max-restarts=(\d)", text) == ["0", "3"]
    assert re.findall(r"--rdzv-endpoint=(\S+)", text) == ["[fe80::1]:29401", "[fe80::1]:29400"]
    assert re.findall(r"-m (train\S*)", text) == ["train.preflight", "train"]
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 &&" in text


def test_whatever_was_typed_reaches_the_ranks_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    typed = [*TWO, "experiment=debug", "run.name=x", "torchrun.endpoint=n1:29400", f"a={HOSTILE}", "b=\n\\"]
    config = compose(APP, typed[:5])
    job = dataclasses.replace(Job.of(config, typed), python_path=None)
    text = re.sub(r"\S+ -m torch.distributed.run", "printf '%s\\\\0'", commands(config, job))
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    seen = done.stdout.split("\0")
    assert seen.count(f"a={HOSTILE}") == seen.count("b=\n\\") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("torchrun.endpoint=null", "torchrun.endpoint is required"),
        ("torchrun.endpoint='n1;id:29400'", "must be HOST:PORT"),
        ("torchrun.endpoint=n1:80", "must be HOST:PORT with a port of 1024"),
        ("job.gpus_per_node=1", "torchrun takes what a node has"),
        ("slurm.chain=2", "job.target=torchrun would ignore slurm.chain=2"),
        ("submit=true", "submit=true sends jobs to Slurm only"),
    ],
)
def test_what_cannot_work_is_refused(more: str, why: str):
    with pytest.raises(ConfigError) as error:
        compose(APP, ["experiment=debug", "run.name=x", *TWO, "torchrun.endpoint=n1:29400", more])
    assert why in str(error.value)


def test_the_command_typed_on_two_nodes_trains_as_two_ranks_do(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Both on this machine: two agents, each with a rank of its own, which meet at a port of the loopback."""
    monkeypatch.chdir(here)
    endpoint = f"torchrun.endpoint=127.0.0.1:{free_port()}"
    text = written(*SHORT, "run.name=typed", endpoint, "job.preflight=false", "torchrun.restarts=0")
    options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    nodes = [subprocess.Popen(["bash", "-c", text], start_new_session=True, **options) for _ in range(2)]
    printed = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(printed)
    alone = RanksHere(here, *SHORT, "run.name=forked")
    assert alone.end(600) == [0, 0], alone.printed()
    assert [row[:2] for row in curve(here / "runs" / "typed")] == [row[:2] for row in curve(here / "runs" / "forked")]
    losses = [[row[2] or 0.0 for row in curve(here / "runs" / name)] for name in ("typed", "forked")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # threads of a rank differ, and with them the order of sums

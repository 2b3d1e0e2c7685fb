"""A Slurm to test against, and what reads its scripts; runs to be looked at."""

import shutil
from pathlib import Path

import pytest

from tests.faults.jobs import Job
from tests.runs import outcome
from tests.slurm_box import Cluster

HOSTILE = 'it\'s a "b" $(touch pwned) `touch pwned` ; # % 1 ü'


def directives(script: str) -> dict[str, str]:
    found = (line.removeprefix("#SBATCH --").partition("=") for line in script.splitlines() if "#SBATCH" in line)
    return {name: value for name, _, value in found}


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The one at hand, whose nodes must see pytest's --basetemp, or else one of our own."""
    return Cluster.at_hand() or request.getfixturevalue("box")


COST = ("cluster.usd_per_device_hour=3600", "cluster.price_date=2026-11-01", "cluster.price_rule=a dollar a second")


@pytest.fixture(scope="session")
def made(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs, made once: done, stopped (at step 7), hot (diverged), killed (rank 1 of 2, after step 12)."""
    folder = tmp_path_factory.mktemp("looked-at")
    (folder / "data").symlink_to(workplace / "data")
    assert outcome(folder, "run.name=done", "total_tokens=7680", *COST)[0] == 0
    assert outcome(folder, "run.name=stopped", "run.stop_at_step=7")[0] == 0
    assert outcome(folder, "run.name=hot", "optimizer.peak_lr=1e9", "health.on_nonfinite=stop")[0] == 5
    job = Job(folder, "run.name=killed", *COST)
    job.wait_for_step(folder / "runs" / "killed", 12)
    job.kill(1)
    job.end()
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of them, to be hurt."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return tmp_path / "runs"

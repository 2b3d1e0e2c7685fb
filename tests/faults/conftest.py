import os
from pathlib import Path

import pytest

from tests.faults.jobs import Job
from tests.faults.slurm_runs import SHORT


@pytest.fixture(scope="session")
def undisturbed_on_two(workplace: Path) -> Path:
    """The tiny run on two ranks to which nothing happens: what those that are hurt are compared with."""
    job = Job(workplace, "run.name=undisturbed-on-two")
    assert job.end() == [0, 0], job.printed()
    return workplace / "runs" / "undisturbed-on-two"


@pytest.fixture(scope="session")
def undisturbed_on_two_nodes(workplace: Path) -> Path:
    """On two nodes each rank has the cores of a machine, as many threads, and with them the order of its sums."""
    codes = Job(workplace, *SHORT, "run.name=in_peace", fault=_alone_on_its_node).end()
    assert codes == [0, 0]
    return workplace / "runs" / "in_peace"


def _alone_on_its_node(rank: int) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "1"

"""A Slurm to test against, and what reads its scripts."""

import pytest

from tests.slurm_box import Cluster

HOSTILE = 'it\'s a "b" $(touch pwned) `touch pwned` ; # % 1 ü'


def directives(script: str) -> dict[str, str]:
    found = (line.removeprefix("#SBATCH --").partition("=") for line in script.splitlines() if "#SBATCH" in line)
    return {name: value for name, _, value in found}


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The one at hand, whose nodes must see pytest's --basetemp, or else one of our own."""
    return Cluster.at_hand() or request.getfixturevalue("box")

"""A Slurm to test against, and what reads its scripts."""

from collections.abc import Iterator

import pytest

from tests.slurm_box import Box, Cluster, NoSlurmError

HOSTILE = 'it\'s a "b" $(touch pwned) `touch pwned` ; # % 1 ü'


def directives(script: str) -> dict[str, str]:
    found = (line.removeprefix("#SBATCH --").partition("=") for line in script.splitlines() if "#SBATCH" in line)
    return {name: value for name, _, value in found}


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    try:
        found = Box(tmp_path_factory.mktemp("slurm") / "box", nodes=3, cpus=1, max_array_size=4)
    except NoSlurmError as error:
        pytest.skip(f"no Slurm to test against ({error}); tests/install_slurm.sh")
    yield found
    found.stop()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The one at hand, whose nodes must see pytest's --basetemp, or else one of our own."""
    return Cluster.at_hand() or request.getfixturevalue("box")

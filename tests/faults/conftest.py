from pathlib import Path

import pytest

from tests.faults.jobs import Job


@pytest.fixture(scope="session")
def undisturbed_on_two(workplace: Path) -> Path:
    """The tiny run on two ranks to which nothing happens: what those that are hurt are compared with."""
    job = Job(workplace, "run.name=undisturbed-on-two")
    assert job.end() == [0, 0], job.printed()
    return workplace / "runs" / "undisturbed-on-two"

"""The soak in short: see `make soak` for the long one."""

import re
from pathlib import Path

from tests.faults.soak import Campaign, campaign, drawn


def test_a_run_hurt_at_random_ends_like_the_one_that_never_was(here: Path):
    """F1, F2, F4, F7, F8, F30: on a fast machine the run may end before the last of six faults."""
    asked = Campaign(seed=467, steps=80, faults=6, checkpoint_every=5, freeze=False, folder=str(here))
    assert drawn(asked) == ["kill one", "full disk", "flip", "cut log", "SIGTERM twice", "pause"]
    said: list[str] = []
    assert campaign(asked, said.append), "\n".join(said)
    table = said[-1]
    (n_faults,) = re.findall(r"faults injected +(\d)", table)
    assert int(n_faults) >= 4, table
    for line in ("tokens lost        0", "tokens repeated    0", "other tokens       0", "weights equal      yes"):
        assert line in table, table

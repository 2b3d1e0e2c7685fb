"""The soak in short: see `make soak` for the long one."""

from pathlib import Path

from tests.faults.soak import Campaign, campaign


def test_a_run_hurt_six_times_at_random_ends_like_the_one_that_never_was(here: Path):
    """F1, F2, F4, F7, F8, F30: kills, signals, flipped bits, cut logs and full disks from a seed."""
    said: list[str] = []
    asked = Campaign(seed=4, steps=80, faults=6, checkpoint_every=5, freeze=False, folder=str(here))
    assert campaign(asked, said.append), "\n".join(said)
    table = said[-1]
    for line in ("faults injected    6:", "tokens lost        0", "tokens repeated    0", "weights equal      yes"):
        assert line in table, table

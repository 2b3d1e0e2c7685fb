"""A step that is not to be learnt from → the checkpoint to go back to, how many steps around it are left out, and what
is said if there is no way on."""

from pathlib import Path

from train.checkpoint.peers import Peers
from train.checkpoint.reader import Checkpoint
from train.checkpoint.verify import newest_valid
from train.guard import Incident
from train.health import Reason
from train.health_config import HealthConfig
from train.skips import Skips


class NoWayBackError(Exception):
    """The message says which setting it comes from."""


def nothing_saved(events: Path) -> str:
    """Said where a policy stops the run. events: the file that tells of the step."""
    return (
        f"Nothing of it was saved, and {events} names the rows and layers. A lower optimizer.peak_lr or a longer "
        "warm-up is the usual cure, under a new run.name; or leave steps out with health.skip_steps"
    )


def margin_of(incident: Incident, health: HealthConfig) -> int:
    """Steps on both sides of the flagged one that are left out: none where the data had no part in it."""
    return 0 if incident.finding.reason == Reason.odd_replicas else health.rollback_margin_steps


def way_back(at: int, margin: int, health: HealthConfig, skips: Skips, checkpoints: Path, peers: Peers) -> Checkpoint:
    """The newest checkpoint far enough before step `at`. A collective. Raises NoWayBackError."""
    if len(skips.rollbacks) >= health.max_rollbacks:
        raise NoWayBackError(
            f"It is the end of health.max_rollbacks={health.max_rollbacks}: the run went back so many times"
        )
    behind = margin or health.replica_check_every_steps or 1  # copies were last found equal so many steps before
    found, _ = newest_valid(checkpoints, peers, at_most=at - 1 - behind, refused=skips.refused)
    if found is None:
        raise NoWayBackError(
            f"There is no checkpoint of step {at - 1 - behind} or before to go back to (checkpoint.every_steps, "
            "checkpoint.keep_last, health.rollback_margin_steps)"
        )
    return found

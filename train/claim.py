"""A run's folder → the checkpoint to go on from, or None at the very beginning: is this folder this run's to continue?

Rank 0 holds the folder, all ranks verify their share of the newest checkpoint, rank 0 compares it with the
configuration and the data, and only then writes. What one rank refuses, all refuse.
"""

from collections.abc import Callable

from data_prep.files import publish_json, write_error
from train.checkpoint.folders import remove_leftovers, set_aside
from train.checkpoint.peers import Peers
from train.checkpoint.reader import Checkpoint
from train.checkpoint.room import require_room
from train.checkpoint.verify import PassedOver, newest_valid
from train.config import OptimizerKind
from train.errors import CheckpointError
from train.plan import Plan
from train.run_folder import config_sha256, rest_sha256
from train.setup import Setup, introduce, phases_of


def claim(setup: Setup, plan: Plan, peers: Peers) -> Checkpoint | None:
    """A collective. Raises CheckpointError if no checkpoint can be trusted, the newest belongs to another run, or none
    could be written."""
    _on_first(peers, lambda: _hold(setup, plan))
    found, passed = newest_valid(setup.folder.checkpoints, peers)
    _on_first(peers, lambda: _refuse_strangers(setup, found))
    require_room(setup.folder.checkpoints, _checkpoint_bytes(setup, plan), peers)
    _on_first(peers, lambda: _describe(setup, plan, passed))
    return found


def _on_first(peers: Peers, action: Callable[[], None]) -> None:
    """Rank 0 acts; what it raises is raised on every rank."""
    problem: Exception | None = None
    try:
        if peers.is_first:
            action()
    except Exception as error:
        problem = error
    message = peers.first_message(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    if message is not None:
        raise CheckpointError(message)


def _hold(setup: Setup, plan: Plan) -> None:
    """Keeps other processes out of the run folder."""
    print(introduce(setup, plan), flush=True)
    setup.folder.hold()
    try:
        remove_leftovers(setup.folder.checkpoints)
    except OSError as error:
        raise CheckpointError(
            f"checkpoints could not be saved: {write_error(error, setup.folder.checkpoints)}"
        ) from None


def _checkpoint_bytes(setup: Setup, plan: Plan) -> int:
    """At least: fp32 masters, and the moments that every parameter has."""
    moments = 1 if setup.config.optimizer.kind == OptimizerKind.muon else 2
    return 4 * (1 + moments) * plan.n_params


def _describe(setup: Setup, plan: Plan, passed: list[PassedOver]) -> None:
    """Writes only when nothing is refused. What is damaged goes out of the way of the saves to come."""
    folder = setup.folder
    for one in passed:
        print(f"warning: {one}; an older checkpoint is used", flush=True)
        folder.note("checkpoint_damaged" if one.is_damaged else "checkpoint_refused", step=one.step, problem=str(one))
    try:
        moved = set_aside(folder.checkpoints, [one.step for one in passed if one.is_damaged])
    except OSError as error:
        raise CheckpointError(f"a damaged checkpoint cannot be set aside: {error}") from None
    for message in moved:
        print(f"         {message}", flush=True)
        folder.note("checkpoint_set_aside", what=message)
    folder.describe(setup.config, setup.data / "tokenizer.model")
    publish_json(folder.plan_json, plan.to_tree())


def _refuse_strangers(setup: Setup, found: Checkpoint | None) -> None:
    """A checkpoint belongs to one configuration and one dataset; and a run that had some does not begin anew."""
    folder, config = setup.folder, setup.config
    if found is None:
        if folder.count("saved"):
            raise CheckpointError(
                f"{folder.events_jsonl} tells of checkpoints, but {folder.checkpoints} holds none, and the run is "
                f"not started from step 0 unasked. To begin anew, remove {folder.path} or choose another run.name."
            )
        return
    rebases = config.data.rebase
    digest = rest_sha256(config) if rebases else config_sha256(config)
    if found.state.get("rest_sha256" if rebases else "config_sha256") != digest:
        raise CheckpointError(
            f"{found.path} was made under another configuration (config_sha256 in its state.json). Choose another "
            "run.name; or, if only the data were to change from here on, data.rebase=true."
        )
    expected = setup.resumes
    moved = setup.rebases and expected is not None and expected[0] != found.step
    if moved or expected is None or phases_of(found.state) != expected[1]:
        raise CheckpointError(
            f"a newer checkpoint than {found.path} is damaged, and a new phase of the data was to begin after it, "
            f"or began between the two. Move the damaged one away from {folder.checkpoints}, and start again."
        )

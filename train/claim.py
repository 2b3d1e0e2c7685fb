"""A run's folder → the attempt that this start makes, and the checkpoint to go on from (None at the very beginning).

Rank 0 takes the next attempt (train/attempt.py), if the last one is over and starts have not been in vain; all ranks
verify their share of the newest checkpoint; rank 0 compares it with the configuration and the data, and only then
writes. What one rank refuses, all refuse.
"""

from collections.abc import Callable
from itertools import groupby

from data_prep.files import publish_json, write_error
from train.attempt import Attempt, Identity, has_saved, next_number, open_attempt, reached_before, refuse_idle
from train.branch import adopt
from train.checkpoint.folders import remove_leftovers, set_aside
from train.checkpoint.peers import Peers
from train.checkpoint.reader import Checkpoint
from train.checkpoint.room import checkpoint_bytes, require_room
from train.checkpoint.verify import PassedOver, newest_valid
from train.environment import write_environment
from train.errors import CheckpointError, RunFailedError
from train.layout import layout_of
from train.metrics_file import last_step
from train.parallel import identity, variables
from train.plan import Plan
from train.run_folder import RunFolder, config_sha256, rest_sha256
from train.setup import Setup, introduce, phases_of
from train.skips import Skips

_HOST_BYTES = 64  # the longest name that Linux gives a host


def claim(setup: Setup, plan: Plan, peers: Peers, skips: Skips) -> tuple[Checkpoint | None, Attempt]:
    """A collective; the attempt is also in `setup.folder.attempt` from then on.

    skips: are read here, when no earlier attempt writes them any more; they tell which good checkpoints must not be
    used. Raises HeldError if another process has the folder;
    NoProgressError after too many starts in vain; CheckpointError if no checkpoint can be trusted, the newest belongs
    to another run, or none could be written. On the ranks that only hear of it: a RunFailedError with the same exit
    code.
    """
    folder, me = setup.folder, identity()
    hosts = _hosts(peers, me.host)
    number = on_first(peers, lambda: _take(setup, plan, me, hosts))
    folder.attempt = attempt = open_attempt(folder.attempts, number)
    with attempt.naming_failures(peers.rank, me.host, lambda: (0, "start")):
        skips.read()
        on_first(peers, lambda: _adopt(setup, number))
        found, passed = newest_valid(folder.checkpoints, peers, refused=skips.refused)
        on_first(peers, lambda: _refuse_strangers(setup, found))
        require_room(folder.checkpoints, checkpoint_bytes(setup.config), peers, number)
        n_lost = skips.take_up(found.state) if found else 0
        on_first(peers, lambda: _describe(setup, plan, found, passed, hosts))
        if n_lost:
            on_first(peers, lambda: _restore(setup, skips, n_lost))
    return found, attempt


def _hosts(peers: Peers, host: str) -> list[str]:
    """Of every rank. A collective."""
    mine = list(host.encode()[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0"))
    before, after = peers.rank * _HOST_BYTES, (peers.size - peers.rank - 1) * _HOST_BYTES
    letters = bytes(peers.agree([0] * before + mine + [0] * after))
    names = [letters[i : i + _HOST_BYTES] for i in range(0, len(letters), _HOST_BYTES)]
    return [name.rstrip(b"\0").decode(errors="replace") for name in names]


def on_first(peers: Peers, action: Callable[[], int | None]) -> int:
    """Rank 0 acts; what it returns is returned, and what it raises is raised, on every rank."""
    problem: Exception | None = None
    number = 0
    try:
        if peers.is_first:
            number = action() or 0
    except Exception as error:
        problem = error
    message = peers.first_message(None if problem is None else str(problem))
    exit_code = peers.from_first(getattr(problem, "exit_code", 1))
    if problem is not None:
        raise problem
    if message is not None:
        raise RunFailedError(message, exit_code, is_said=True)
    return peers.from_first(number)


def _take(setup: Setup, plan: Plan, me: Identity, hosts: list[str]) -> int:
    """Keeps other processes out of the run folder. The number of the attempt."""
    folder, run = setup.folder, setup.config.run
    print(introduce(setup, plan), flush=True)
    number = next_number(folder.attempts, me, run.lease_seconds, lambda words: print(words, flush=True))
    furthest = reached(folder)
    refuse_idle(folder.attempts, furthest, run.max_idle_starts)
    facts = {
        "world_size": setup.grid.world_size,
        "hosts": [[name, len(list(ranks))] for name, ranks in groupby(hosts)],
        "reached_before": furthest,
    }
    Attempt.take(folder.attempts, number, me, **facts)
    folder.clear()
    try:
        remove_leftovers(folder.checkpoints, number)
    except OSError as error:
        raise CheckpointError(f"checkpoints could not be saved: {write_error(error, folder.checkpoints)}") from None
    return number


def _adopt(setup: Setup, number: int) -> None:
    """Begins from a checkpoint of another run, where that is so."""
    if setup.origin is None:
        return
    folder, config = setup.folder, setup.config
    own = {
        "config_sha256": config_sha256(config),
        "rest_sha256": rest_sha256(config),
        "branch": setup.origin.branch.to_tree(),
    }
    adopt(setup.origin, folder.checkpoints, folder.metrics_jsonl, own, number)
    folder.note("branched", origin=str(setup.origin.run), step=setup.origin.step)


def reached(folder: RunFolder) -> int:
    """The largest step that the run ever had, saved or not."""
    saved, _ = folder.newest_state() or (0, None)
    return max(last_step(folder.metrics_jsonl), saved, reached_before(folder.attempts))


def _describe(setup: Setup, plan: Plan, found: Checkpoint | None, passed: list[PassedOver], hosts: list[str]) -> None:
    """Writes only when nothing is refused. What is damaged goes out of the way of the saves to come."""
    folder = setup.folder
    assert folder.attempt is not None
    folder.attempt.insist()
    for one in passed:
        print(f"warning: {one}; an older checkpoint is used", flush=True)
        folder.note("checkpoint_damaged" if one.is_damaged else "checkpoint_refused", step=one.step, problem=str(one))
    _set_aside(folder, [one.step for one in passed if one.is_damaged])
    folder.describe(setup.config, setup.data / "tokenizer.model")
    publish_json(folder.plan_json, plan.to_tree())
    write_environment(folder.attempt.path / "environment.json", hosts, variables())
    layout = layout_of(setup.config, setup.grid.world_size, plan.machine.device)
    folder.attempt.describe(from_step=found.step if found else 0, layout=layout)


def _restore(setup: Setup, skips: Skips, n_lost: int) -> None:
    skips.write()
    words = f"{n_lost} of {len(skips.rollbacks)} rollbacks were missing from {skips.path}"
    print(f"warning: {words}; they are taken from the checkpoint", flush=True)
    setup.folder.note("rollbacks_restored", problem=words)


def _set_aside(folder: RunFolder, damaged: list[int]) -> None:
    try:
        moved = set_aside(folder.checkpoints, damaged)
    except OSError as error:
        raise CheckpointError(f"a damaged checkpoint cannot be set aside: {error}") from None
    for message in moved:
        print(f"         {message}", flush=True)
        folder.note("checkpoint_set_aside", what=message)


def _refuse_strangers(setup: Setup, found: Checkpoint | None) -> None:
    """A checkpoint belongs to one configuration and one dataset; and a run that had some does not begin anew."""
    folder, config = setup.folder, setup.config
    if found is None:
        if folder.count("saved") or has_saved(folder.attempts):
            raise CheckpointError(
                f"events.jsonl or attempts/ of {folder.path} tell of checkpoints, but {folder.checkpoints} holds none, "
                f"and the run is not started from step 0 unasked. To begin anew, remove {folder.path} or choose "
                "another run.name."
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

"""Which checkpoint a run may trust: every byte against its manifest, each rank looking at its share of the files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_prep.files import sha256_file
from train.checkpoint.folders import folder_name, steps_found
from train.checkpoint.manifest import FileFacts, Manifest, parse, read_bytes, read_manifest, require_plain
from train.checkpoint.peers import ALONE, Peers
from train.checkpoint.reader import Checkpoint
from train.errors import CheckpointError, UnreadableError

T = TypeVar("T")
Refused = Callable[[Mapping[str, Any]], str | None]
"""a checkpoint's state → why it must not be used although it is good, None if it may; equal on all ranks"""


@dataclass(frozen=True)
class PassedOver:
    """A checkpoint that is newer than the one taken."""

    step: int
    problem: str
    is_damaged: bool
    """False: it verifies, but was refused"""

    def __str__(self) -> str:
        return self.problem


def newest_valid(
    folder: Path, peers: Peers = ALONE, at_most: int | None = None, refused: Refused = lambda _: None
) -> tuple[Checkpoint | None, list[PassedOver]]:
    """The newest checkpoint, of at most this step if one is given, that verifies and is not refused; and each newer one
    that was looked at, with the reason why not. A collective.

    (None, []) if there is none at all. Raises CheckpointError if there are some and none can be used: a run never
    starts again from step 0 unasked; and UnreadableError, rather than going back behind it, for one that may be good.
    """
    passed: list[PassedOver] = []
    steps = [step for step in steps_found(folder) if at_most is None or step <= at_most] if peers.is_first else []
    for position in range(peers.from_first(len(steps))):
        step = peers.from_first(steps[position] if peers.is_first else 0)
        try:
            found = verify(folder / folder_name(step), peers)
        except UnreadableError:
            raise
        except CheckpointError as error:
            passed.append(PassedOver(step, str(error), is_damaged=True))
            continue
        reason = peers.first_message(refused(found.state))
        if reason is None:
            return found, passed
        passed.append(PassedOver(step, f"{found.path} is not used: {reason}", is_damaged=False))
    if passed:
        raise CheckpointError(
            "no checkpoint can be trusted, and the run is not started from step 0 unasked:\n  "
            + "\n  ".join(map(str, passed))
            + f"\nTo give up this run's progress, remove {folder.parent}; or use another run.name."
        )
    return None, []


def verify(path: Path, peers: Peers = ALONE) -> Checkpoint:
    """Checks every byte of a checkpoint. A collective. Raises CheckpointError, on all ranks, that names the file.

    A file that the manifest does not name is not part of the checkpoint, and is never read; and of those that it names
    nothing is believed before all bytes are found to be those that were written.
    """
    manifest = _together(lambda: _intact(path, peers), path, peers)
    return _together(lambda: _opened(path, manifest), path, peers)


def _together(action: Callable[[], T], path: Path, peers: Peers) -> T:
    """What the action gives on this rank, if it fails on none."""
    result, problem, may_be_good = None, None, False
    try:
        result = action()
    except CheckpointError as error:
        problem, may_be_good = str(error), isinstance(error, UnreadableError)
    except OSError as error:
        problem, may_be_good = f"{path} cannot be read: {error}", True
    message = peers.first_message(problem)
    if peers.agree([int(may_be_good)])[0]:
        raise UnreadableError(f"{message}. Nothing was changed: it may be good, so an older one is not taken unasked")
    if result is None or message is not None:
        raise CheckpointError(message or "")
    return result


def _intact(path: Path, peers: Peers) -> Manifest:
    """The manifest, after a look at this rank's share of its files."""
    manifest = read_manifest(path)
    if path.name.startswith("step-") and path.name != folder_name(manifest.step):
        raise CheckpointError(f"{path} holds the checkpoint of step {manifest.step}, by its manifest.json")
    for name in sorted(manifest.files)[peers.rank :: peers.size]:
        _verify_file(path / name, manifest.files[name])
    return manifest


def _verify_file(file: Path, facts: FileFacts) -> None:
    require_plain(file)
    if (size := file.stat().st_size) != facts.n_bytes:
        raise CheckpointError(f"{file} has {size} bytes, {facts.n_bytes} were written")
    if sha256_file(file) != facts.sha256:
        raise CheckpointError(f"{file} was altered after it was written: its checksum does not match")


def _opened(path: Path, manifest: Manifest) -> Checkpoint:
    state = path / "state.json"
    checkpoint = Checkpoint(path, manifest.step, parse(state, read_bytes(state)), manifest.tensor_hashes)
    checkpoint.check({name: facts.n_bytes for name, facts in manifest.files.items()})
    return checkpoint

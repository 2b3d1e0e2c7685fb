"""Before the first step: can checkpoints be written at all? A run that cannot save its work should not begin it."""

import os
import shutil
from pathlib import Path

from data_prep.files import sync_folder, write_error
from model.arithmetic import count_parameters
from train.checkpoint.peers import Peers
from train.config import TrainConfig
from train.errors import CheckpointError
from train.optimizer_config import OptimizerKind


def checkpoint_bytes(config: TrainConfig) -> int:
    """Of one, at least: fp32 masters, and the moments that every parameter has."""
    moments = 1 if config.optimizer.kind == OptimizerKind.muon else 2
    return 4 * (1 + moments) * count_parameters(config.model).n_params


def require_room(folder: Path, n_bytes: int, peers: Peers, attempt: int = 0) -> None:
    """Every rank writes and removes a small file in the folder of all checkpoints, which is made if it is not there;
    rank 0 compares the room on its disk with the `n_bytes` of one checkpoint. A collective.

    Raises CheckpointError on every rank. A quota is not seen here, but at the first save.
    """
    problem = None
    try:
        _try_out(folder, folder / f".write-test-{peers.rank:05d}.a{attempt:04d}.tmp")
        if peers.is_first and (free := shutil.disk_usage(folder).free) < n_bytes:
            problem = (
                f"{folder} is to hold checkpoints of {size_words(n_bytes)} each, and there are {size_words(free)} free "
                "on its disk: not one could be saved. Free some space, or set run.folder to another disk."
            )
    except OSError as error:
        problem = f"checkpoints could not be saved: {write_error(error, folder)}"
    message = peers.first_message(problem)
    if message is not None:
        raise CheckpointError(f"{message} No step was made.")


def _try_out(folder: Path, file: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    try:
        with file.open("wb") as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        file.unlink(missing_ok=True)


def size_words(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.1f} MiB"

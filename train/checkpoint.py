"""What is saved, how it becomes valid, and which one a resumed run takes.

A checkpoint is a folder `step-00000500/` of safetensors files with the fp32 masters and both Adam moments of every
parameter, whole and by its name in the model (so it knows nothing of ranks or ZeRO stages), a `state.json` with
everything that is not a tensor, and a `manifest.json` with size and SHA-256 of each file. It is written under a
temporary name, the manifest last, synced, and renamed: a folder called step-N is complete, or was damaged later, which
its checksums tell. There is no pointer file to lose: the newest checkpoint is the one with the largest step that
verifies. Nothing is ever unpickled.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.files import DataError, publish_json, sha256_file, sync_folder, write_error
from train.engine.core import Engine
from train.engine.errors import NumericsError
from train.engine.whole import STATE_KINDS

SCHEMA_VERSION = 1
PART_BYTES = 256 * 2**20
"""a state kind is cut into files of about this size, so that writing never needs a second copy of the model"""


class CheckpointError(Exception):
    """No usable checkpoint, or none could be written."""

    exit_code = 4


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, kinds: tuple[str, ...] = STATE_KINDS) -> Iterator[tuple[str, str, Tensor]]:
        """(kind, parameter name, whole fp32 tensor), one tensor in memory at a time."""
        from safetensors import safe_open

        for kind in kinds:
            for part in sorted(self.path.glob(f"{kind}-*.safetensors")):
                with safe_open(part, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a dict)
                        yield kind, name, file.get_tensor(name)


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def save(folder: Path, step: int, engine: Engine, state: dict[str, Any], *, is_first: bool) -> str | None:
    """Writes step's checkpoint below `folder`; a collective, rank 0 writes. Returns None, or why it was not possible.

    On failure nothing is left but the checkpoints there were before. Raises NumericsError if a tensor is not finite: a
    checkpoint that cannot be trained on must not push out those that can.
    """
    writer = _Writer(folder, step) if is_first else None
    for kind, name, tensor in engine.read_state():
        if writer:
            writer.add(kind, name, tensor)
    problem = writer.finish(state) if writer else None
    if engine.any_rank(writer is not None and writer.not_finite is not None):
        which = f": {writer.not_finite}" if writer else ""
        raise NumericsError(f"the state after step {step} is not finite{which}. It was not saved")
    failed = engine.any_rank(problem is not None)
    return problem or ("rank 0 could not write the checkpoint" if failed else None)


def steps_found(folder: Path) -> list[int]:
    """Steps of the folders that look like checkpoints, newest first."""
    found = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted((int(digits) for digits in found if digits.isdigit()), reverse=True)


def newest_valid(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a message for each newer one that does not.

    (None, []) if there is none at all. Raises CheckpointError if there are some and none verifies: a run never starts
    again from step 0 unasked.
    """
    messages: list[str] = []
    for step in steps_found(folder):
        try:
            return verify(folder / folder_name(step)), messages
        except CheckpointError as error:
            messages.append(str(error))
    if messages:
        raise CheckpointError(
            "no checkpoint can be trusted, and the run is not started from step 0 unasked:\n  "
            + "\n  ".join(messages)
            + f"\nTo give up this run's progress, remove {folder}; or use another run.name."
        )
    return None, []


def opened(folder: Path, step: int) -> Checkpoint:
    """The checkpoint that rank 0 has verified already, for the other ranks."""
    path = folder / folder_name(step)
    return Checkpoint(path, step, _read_json(path / "state.json"))


def verify(path: Path) -> Checkpoint:
    """Checks every byte against the manifest. Raises CheckpointError that names the file."""
    manifest = _read_json(path / "manifest.json")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema version {manifest.get('schema_version')}, expected {SCHEMA_VERSION}")
    try:
        for name, facts in manifest["files"].items():
            _verify_file(path / name, facts["bytes"], facts["sha256"])
        if "state.json" not in manifest["files"]:
            raise CheckpointError(f"{path / 'manifest.json'} does not name state.json")
        return Checkpoint(path, int(manifest["step"]), _read_json(path / "state.json"))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'manifest.json'} is not a checkpoint's manifest: {error!r}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _verify_file(file: Path, n_bytes: int, sha256: str) -> None:
    if not file.is_file() or file.name.startswith("."):
        raise CheckpointError(f"{file} is missing")
    if (size := file.stat().st_size) != n_bytes:
        raise CheckpointError(f"{file} has {size} bytes, {n_bytes} were written")
    if sha256_file(file) != sha256:
        raise CheckpointError(f"{file} was altered after it was written: its checksum does not match")


def remove_old(folder: Path, saved_step: int, keep_last: int) -> None:
    """After the save of `saved_step`: leaves the newest `keep_last` checkpoints up to it, and no interrupted saves.

    Later ones go first: the run was resumed before them, so they did not verify.
    """
    steps = steps_found(folder)
    later = [step for step in steps if step > saved_step]
    for step in later + [step for step in steps if step <= saved_step][keep_last:]:
        doomed = folder / folder_name(step)
        hidden = folder / f".{doomed.name}.old"
        os.replace(doomed, hidden)  # at no time is there a folder step-N with half its files
        shutil.rmtree(hidden)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    for leftover in [*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")]:
        shutil.rmtree(leftover)


class _Writer:
    """Rank 0's side of a save. After a first failure it takes no more, so that the collective can run to its end."""

    def __init__(self, folder: Path, step: int):
        self._final = folder / folder_name(step)
        self._temporary = folder / f".{self._final.name}.tmp"
        self._step = step
        self.not_finite: str | None = None
        """the first tensor that holds NaN or infinity"""
        self._problem: str | None = None
        self._pending: dict[str, Tensor] = {}
        self._pending_kind = ""
        self._n_parts = 0
        self._guarded(self._open)

    def add(self, kind: str, name: str, tensor: Tensor) -> None:
        if self.not_finite is None and not bool(tensor.isfinite().all()):
            self.not_finite = f"{kind} of {name}"
        pending_bytes = sum(t.numel() * t.element_size() for t in self._pending.values())
        if kind != self._pending_kind or pending_bytes >= PART_BYTES:
            self._guarded(self._write_part)
            self._n_parts = 0 if kind != self._pending_kind else self._n_parts
            self._pending_kind = kind
        if self._problem is None:
            self._pending[name] = tensor.contiguous()

    def finish(self, state: dict[str, Any]) -> str | None:
        self._guarded(self._write_part)
        if self.not_finite is None:
            self._guarded(lambda: self._publish(state))
        if self._problem or self.not_finite:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return self._problem

    def _guarded(self, action: Any) -> None:
        if self._problem is not None:
            return
        try:
            action()
        except OSError as error:
            self._problem = str(write_error(error, self._final))
        except DataError as error:
            self._problem = str(error)
        except Exception as error:  # safetensors reports a full disk as its own error type
            self._problem = f"cannot write {self._final}: {error}"

    def _open(self) -> None:
        if self._temporary.exists():
            shutil.rmtree(self._temporary)
        self._temporary.mkdir(parents=True)

    def _write_part(self) -> None:
        from safetensors.torch import save_file

        if not self._pending:
            return
        path = self._temporary / f"{self._pending_kind}-{self._n_parts:05d}.safetensors"
        save_file(self._pending, path)
        path.chmod(self._temporary.stat().st_mode & 0o666)  # safetensors lets only the owner read
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        self._pending = {}
        self._n_parts += 1

    def _publish(self, state: dict[str, Any]) -> None:
        publish_json(self._temporary / "state.json", state)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(self._temporary.iterdir())
        }
        publish_json(
            self._temporary / "manifest.json",
            {"schema_version": SCHEMA_VERSION, "step": self._step, "files": files},
        )
        if self._final.exists():  # a damaged one of the same step, passed over at resume
            shutil.rmtree(self._final)
        os.replace(self._temporary, self._final)
        sync_folder(self._final.parent)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content

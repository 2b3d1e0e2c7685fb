"""A run that begins where another one stands, because so far the two are the same run.

In: `run.branch_from`, the folder of a run with equal settings but for its length, its schedule and what it measures.
Its steps are the steps that this run would have made, as long as every learning rate was equal: the newest checkpoint
of that stretch becomes a checkpoint of this run, and the rows of metrics.jsonl up to there become its rows. So many
lengths of one warmup-stable-decay run cost the longest one and the cooldowns of the others (Hägele et al., arXiv
2405.18392), and each ends with the numbers, bit for bit, that it would have had alone. No torch.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from data_prep.files import DataError, publish_bytes, sync_folder, write_error
from train.batch import BatchPlan, solve_batch
from train.checkpoint.folders import folder_name, hidden_name, remove, steps_found
from train.checkpoint.manifest import NAME, FileFacts, manifest_bytes, parse, read_bytes, read_manifest
from train.config import TrainConfig
from train.errors import CheckpointError
from train.metrics_file import read_rows
from train.run_folder import config_of, identity
from train.schedule import lr_of

FREE = ("run.name", "total_tokens", "schedule.", "evaluation.every_steps")
"""what may differ from the other run: the first three as far as learning rates stay equal, the last changes nothing"""
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


@dataclass(frozen=True)
class Branch:
    """What a run has from another one; kept in its checkpoints."""

    root: str
    """the run whose weights were drawn"""
    run: str
    """the run that it began from"""
    step: int
    tokens: int
    device_seconds: dict[str, float]
    """by purpose, which the other run had spent: contained in this one's totals, and paid once"""

    def to_tree(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        tree = self.to_tree()
        spent = tree.pop("device_seconds")
        return tree | {"device_hours": {purpose: seconds / 3600 for purpose, seconds in spent.items()}}

    @staticmethod
    def of(state: Mapping[str, Any]) -> "Branch | None":
        """Of a checkpoint's state; None if its run began by itself. Raises DataError."""
        try:
            return None if state.get("branch") is None else Branch(**state["branch"])
        except TypeError as error:
            raise DataError(f"the checkpoint's state.json tells of a branch that is not understood: {error}") from None


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run, from which this one may begin."""

    run: Path
    path: Path
    step: int
    state: dict[str, Any]

    @property
    def branch(self) -> Branch:
        held = Branch.of(self.state)
        root = self.run.name if held is None else held.root
        return Branch(root, self.run.name, self.step, self.state["tokens_seen"], dict(self.state["device_seconds"]))


def find_origin(config: TrainConfig) -> Origin:
    """The newest checkpoint of run.branch_from until which this run would have done the same. Raises ConfigError where
    there is none; its tensors are not looked at."""
    run = Path(str(config.run.branch_from))
    try:
        held = config_of(run)
    except DataError as error:
        raise ConfigError([f"run.branch_from={run}: {error}"]) from None
    if differences := _differences(config, held):
        raise ConfigError([f"run.branch_from={run} is another run from its first step on: {', '.join(differences)}"])
    equal = steps_with_equal_rates(config, held)
    for step in steps_found(run / "checkpoints"):
        if 0 < step <= equal and (state := _state(run, step)) is not None:
            return Origin(run, run / "checkpoints" / folder_name(step), step, state)
    raise ConfigError([_no_origin(run, equal)])


def steps_with_equal_rates(config: TrainConfig, other: TrainConfig) -> int:
    """How many steps from the first on have the same learning rate in both, the last one of either left out: a run
    that has nothing left to do cannot be begun."""
    mine, theirs = _batch(config), _batch(other)
    for step in range(1, min(mine.total_steps, theirs.total_steps + 1)):
        if lr_of(step, config, mine) != lr_of(step, other, theirs):
            return step - 1
    return max(0, min(mine.total_steps - 1, theirs.total_steps))


def adopt(origin: Origin, checkpoints: Path, metrics_jsonl: Path, state: Mapping[str, Any], attempt: int) -> None:
    """Makes the checkpoint one of this run, with what `state` says instead; its rows come first, so that a run with
    the checkpoint has them. Raises DataError or CheckpointError; what was begun is begun anew by the next start."""
    rows = [row for row in read_rows(origin.run / "metrics.jsonl") if row["step"] <= origin.step]
    publish_bytes(metrics_jsonl, "".join(json.dumps(row) + "\n" for row in rows).encode())
    temporary = checkpoints / hidden_name(origin.step, attempt)
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        _fill(temporary, origin, state)
        os.replace(temporary, checkpoints / folder_name(origin.step))
        sync_folder(checkpoints)
    except OSError as error:
        remove(temporary)
        raise write_error(error, checkpoints) from error


def _fill(folder: Path, origin: Origin, state: Mapping[str, Any]) -> None:
    manifest = read_manifest(origin.path)
    files = dict(manifest.files)
    for name in files.keys() - {"state.json"}:
        _link(origin.path / name, folder / name)
    text = json.dumps({**origin.state, **state}, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    publish_bytes(folder / "state.json", text)
    files["state.json"] = FileFacts(len(text), hashlib.sha256(text).hexdigest())
    publish_bytes(folder / NAME, manifest_bytes(origin.step, files, manifest.tensor_hashes))


def _link(source: Path, target: Path) -> None:
    """The same bytes under a second name, as files of a checkpoint never change; copied where the disk has no such."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target, follow_symlinks=False)


def _state(run: Path, step: int) -> dict[str, Any] | None:
    """None where it is not as it was written, or belongs to data that were changed on the way."""
    path = run / "checkpoints" / folder_name(step)
    try:
        content, manifest = read_bytes(path / "state.json"), read_manifest(path)
        if manifest.files["state.json"].sha256 != hashlib.sha256(content).hexdigest():
            return None
        state = parse(path / "state.json", content)
        return state if len(state["data"]["phases"]) == 1 and "device_seconds" in state else None
    except (CheckpointError, KeyError, TypeError):
        return None


def _differences(config: TrainConfig, held: TrainConfig) -> list[str]:
    mine, theirs = _kept(config), _kept(held)
    return [
        f"{key} {theirs.get(key)!r} → {mine.get(key)!r}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]


def _kept(config: TrainConfig) -> dict[str, Any]:
    found = identity(config)
    return {key: value for key, value in found.items() if not key.startswith(FREE)}


def _batch(config: TrainConfig) -> BatchPlan:
    """Steps and tokens do not depend on how they are dealt out."""
    size = config.batch.global_batch_size
    return solve_batch(
        global_batch_size=size, micro_batch_size=size, dp_size=1, seq_len=config.data.seq_len,
        total_tokens=config.total_tokens,
    )  # fmt: skip


def _no_origin(run: Path, equal: int) -> str:
    steps = sorted(steps_found(run / "checkpoints"))
    there = f"its checkpoints are of steps {', '.join(map(str, steps))}" if steps else "it has no checkpoint"
    if equal == 0:
        return (
            f"run.branch_from={run}: the learning rates differ from the first step on. Two runs share their beginning "
            "with schedule=wsd or constant, and the same peak and warm-up"
        )
    return (
        f"run.branch_from={run}: the two runs are the same until step {equal}, and {there}: none of those can be "
        f"begun from. Train that run with checkpoint.keep_steps=[{equal}], or leave run.branch_from out"
    )

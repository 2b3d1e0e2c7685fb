"""Divides the inputs into tasks that are named by their content, and knows which are done.

In: the sorted inputs. Out: tasks, each with an id that is a hash of everything its shards depend on: names and contents
of its files, tokenizer, format, split. So a task done is recognised by its id after a crash, in another order, or with
other files beside it; changed inputs give other ids, and only those are done again.

The borders between tasks are drawn by the files' own names and sizes, so a file added in the middle moves the borders
near it, not all that follow (content-defined chunking, as in LBFS, Muthitacharoen et al. 2001).
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import OnBad
from data_prep.document import Reason
from data_prep.encode import Encoder
from data_prep.files import DataError
from data_prep.inputs import Input
from data_prep.manifest import OUR_SHARD, shard_stems
from data_prep.shards import EOS_POLICY, SCHEMA_VERSION, Sidecar, read_sidecar, remove_shard, size_problems

TEMPORARY = re.compile(r"\..+\.tmp\d+")  # what `files.published` leaves behind when it is killed
ID_DIGITS = 16


@dataclass(frozen=True)
class Task:
    id: str
    inputs: tuple[Input, ...]

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.inputs)


def plan(inputs: Sequence[Input], task_bytes: int, encoder: Encoder) -> list[Task]:
    """Every input in exactly one task, in the order given; a task has at most `task_bytes`, or one single file."""
    return [Task(task_id(group, encoder), group) for group in groups(inputs, task_bytes)]


def groups(inputs: Sequence[Input], task_bytes: int) -> Iterator[tuple[Input, ...]]:
    group: list[Input] = []
    size = 0
    for item in inputs:
        if group and size + item.bytes > task_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(item)
        size += item.bytes
        if size >= task_bytes // 2 and _is_border(item, task_bytes):
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _is_border(item: Input, task_bytes: int) -> bool:
    """A draw by the file's name, more likely for larger files: about two in each half of `task_bytes`."""
    draw = int.from_bytes(hashlib.sha256(item.name.encode()).digest()[:8]) / 2**64
    return draw < item.bytes / (task_bytes / 4)


def task_id(inputs: Sequence[Input], encoder: Encoder) -> str:
    """16 hexadecimal digits over everything that decides the bytes of the task's shards."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "eos_policy": EOS_POLICY,
        "inputs": [[item.name, item.bytes, item.sha256] for item in inputs],
        "format": {k: v for k, v in dataclasses.asdict(encoder.source).items() if k != "paths"},
        "tokenizer_sha256": encoder.tokenizer.sha256,
        "val_fraction": encoder.val_fraction,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]


def finished(task: Task, encoder: Encoder, folder: Path) -> bool:
    """True when all shards of the task lie there with the sizes their sidecars say, and made under rules as strict."""
    for split in encoder.splits:
        stem = folder / f"{split}-{task.id}"
        try:
            sidecar = read_sidecar(stem)
        except DataError:
            return False
        if size_problems(stem, sidecar) or (sidecar.task, sidecar.tokenizer_sha256) != (
            task.id,
            encoder.tokenizer.sha256,
        ):
            return False
        if encoder.on_bad is OnBad.error and _skipped_bad_ones(sidecar):
            return False
    return True


def _skipped_bad_ones(sidecar: Sidecar) -> bool:
    return any(reason != Reason.empty for count in sidecar.inputs for reason in count.rejected)


def strangers(tasks: Sequence[Task], encoder: Encoder, folder: Path) -> list[str]:
    """Names of our shards in the folder that belong to no task of this plan: left by a run with other inputs."""
    planned = {f"{split}-{task.id}" for task in tasks for split in encoder.splits}
    return sorted(stem for stem in shard_stems(folder) - planned if OUR_SHARD.fullmatch(stem))


def remove(stems: Sequence[str], folder: Path) -> None:
    for stem in stems:
        remove_shard(folder / stem)


def clear_temporaries(folder: Path) -> None:
    """Removes what a killed run left half-written; only for who holds the folder alone."""
    for file in folder.iterdir():
        if TEMPORARY.fullmatch(file.name):
            with contextlib.suppress(OSError):
                file.unlink()

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import jobs
from data_prep.config import Jsonl, OnBad, TextFiles
from data_prep.encode import Encoder
from data_prep.files import DataError, exclusive
from data_prep.inputs import Input
from data_prep.split import is_held_out
from data_prep.tokenizer import Tokenizer


def item(name: str, n_bytes: int = 1000, content: str = "") -> Input:
    return Input(Path(name), name, n_bytes, 0, hashlib.sha256(f"{name}{content}".encode()).hexdigest())


INPUTS = [item(f"f{i:04d}") for i in range(400)]


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(TextFiles(["a"]), tokenizer, tokenizer.token_bytes(), 0.1, OnBad.error)


@pytest.mark.parametrize("task_bytes", [1, 999, 1000, 5000, 20_000, 10**9])
def test_every_input_is_in_exactly_one_task_in_order(task_bytes: int):
    groups = list(jobs.groups(INPUTS, task_bytes))
    assert [file for group in groups for file in group] == INPUTS
    assert all(len(group) == 1 or sum(file.bytes for file in group) <= task_bytes for group in groups)


def test_tasks_are_not_crumbs():
    groups = list(jobs.groups(INPUTS, 20_000))
    assert all(sum(file.bytes for file in group) >= 10_000 for group in groups[:-1])


def test_a_file_added_removed_or_changed_redoes_only_the_tasks_around_it(encoder: Encoder):
    before = {task.id for task in jobs.plan(INPUTS, 20_000, encoder)}
    assert len(before) > 25
    redone: list[int] = []
    for i in range(50, 250, 20):
        added = [*INPUTS[:i], item(f"{INPUTS[i - 1].name}b"), *INPUTS[i:]]
        removed = [*INPUTS[:i], *INPUTS[i + 1 :]]
        changed = [*INPUTS[:i], item(INPUTS[i].name, content="new"), *INPUTS[i + 1 :]]
        for inputs in (added, removed, changed):
            after = {task.id for task in jobs.plan(inputs, 20_000, encoder)}
            redone.append(len(after - before))
    assert min(redone) >= 1
    assert sum(redone) / len(redone) < 3


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: dataclasses.replace(encoder, val_fraction=0.2),
        lambda encoder: dataclasses.replace(encoder, source=Jsonl(["a"])),
        lambda encoder: dataclasses.replace(encoder, source=Jsonl(["a"], text_field="body")),
    ],
)
def test_what_decides_the_bytes_of_a_shard_decides_its_name(encoder: Encoder, change: Callable[[Encoder], Encoder]):
    assert jobs.task_id(INPUTS, encoder) != jobs.task_id(INPUTS, change(encoder))


def test_what_does_not_decide_them_does_not(encoder: Encoder):
    other = dataclasses.replace(encoder, source=TextFiles(["b"]), on_bad=OnBad.skip)
    moved = [dataclasses.replace(file, path=Path("/elsewhere", file.name), modified_ns=5) for file in INPUTS]
    assert jobs.task_id(INPUTS, encoder) == jobs.task_id(moved, other)


def test_two_runs_cannot_write_to_one_folder_at_once(tmp_path: Path):
    with (
        exclusive(tmp_path, "wait"),
        pytest.raises(DataError, match=r"another process is writing to .*; wait"),
        exclusive(tmp_path, "wait"),
    ):
        pass
    with exclusive(tmp_path, "wait"):
        pass


def test_temporary_files_of_a_killed_run_are_cleared_and_nothing_else(tmp_path: Path):
    for name in (".train-0123456789abcdef.bin.tmp4711", ".bashrc", "notes.tmp1", "x.tmp"):
        (tmp_path / name).touch()
    jobs.clear_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bashrc", "notes.tmp1", "x.tmp"]


def test_the_held_out_share_is_what_was_asked_and_follows_the_text_alone():
    texts = [f"document {i}" for i in range(4000)]
    held_out = [text for text in texts if is_held_out(text, 0.1)]
    assert 300 < len(held_out) < 500
    assert not any(is_held_out(text, 0.0) for text in texts)
    assert set(held_out) <= {text for text in texts if is_held_out(text, 0.2)}
    digest = hashlib.sha256(b"document 0").hexdigest()
    assert is_held_out("document 0", int(digest[:16], 16) / 2**64 + 1e-9)
    assert not is_held_out("document 0", int(digest[:16], 16) / 2**64 - 1e-9)

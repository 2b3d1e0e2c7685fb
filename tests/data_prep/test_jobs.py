import dataclasses
import hashlib
from pathlib import Path

import pytest

from data_prep import jobs
from data_prep.files import DataError, exclusive
from data_prep.inputs import Input, Span
from data_prep.jobs import Task
from data_prep.split import is_held_out

READING = {"kind": "text"}


def span(name: str, n_bytes: int = 1000, version: str = "1", source: str = "s") -> Span:
    return Span(Input(f"/there/{name}", name, source, n_bytes, version), 0, n_bytes)


SPANS = [span(f"f{i:04d}") for i in range(400)]


def plan(spans: list[Span]) -> tuple[Task, ...]:
    return jobs.plan(spans, 20_000, READING)


@pytest.mark.parametrize("task_bytes", [1, 999, 1000, 5000, 20_000, 10**9])
def test_every_span_is_in_exactly_one_task_in_order(task_bytes: int):
    groups = list(jobs.groups(SPANS, task_bytes))
    assert [item for group in groups for item in group] == SPANS
    assert all(len(group) == 1 or sum(item.stop for item in group) <= task_bytes for group in groups)


def test_tasks_are_not_crumbs():
    groups = list(jobs.groups(SPANS, 20_000))
    assert all(sum(item.stop for item in group) >= 10_000 for group in groups[:-1])


def test_no_task_mixes_sources():
    spans = [span(f"{source}/f{i:04d}", source=source) for source in ("a", "b", "c") for i in range(7)]
    tasks = plan(spans)
    assert [task.source for task in tasks] == ["a", "b", "c"]
    assert [item for task in tasks for item in task.spans] == spans


def test_a_file_added_removed_or_changed_redoes_only_the_tasks_around_it():
    before = {task.id for task in plan(SPANS)}
    assert len(before) > 25
    redone: list[int] = []
    for i in range(50, 250, 20):
        added = [*SPANS[:i], span(f"{SPANS[i - 1].input.name}b"), *SPANS[i:]]
        removed = [*SPANS[:i], *SPANS[i + 1 :]]
        changed = [*SPANS[:i], span(SPANS[i].input.name, version="2"), *SPANS[i + 1 :]]
        redone += [len({task.id for task in plan(spans)} - before) for spans in (added, removed, changed)]
    assert min(redone) >= 1
    assert sum(redone) / len(redone) < 3


def test_what_decides_the_documents_of_a_task_decides_its_id():
    (task,) = plan(SPANS[:3])
    other = [
        plan([span("f0000", version="2"), *SPANS[1:3]]),
        plan([span("f0000", n_bytes=999), *SPANS[1:3]]),
        plan([Span(SPANS[0].input, 1, 1000), *SPANS[1:3]]),
        jobs.plan(SPANS[:3], 20_000, {"kind": "jsonl"}),
    ]
    assert len({task.id, *(item.id for (item,) in other)}) == 5


def test_where_the_corpus_lies_does_not():
    moved = [Span(dataclasses.replace(item.input, url=f"/elsewhere/{item.input.name}"), 0, item.stop) for item in SPANS]
    assert [task.id for task in plan(moved)] == [task.id for task in plan(SPANS)]


def test_two_runs_cannot_write_to_one_folder_at_once(tmp_path: Path):
    with (
        exclusive(tmp_path, "wait"),
        pytest.raises(DataError, match=r"another process is writing to .*; wait"),
        exclusive(tmp_path, "wait"),
    ):
        pass
    with exclusive(tmp_path, "wait"):
        pass


def test_several_may_share_a_folder_but_then_none_has_it_alone(tmp_path: Path):
    with (
        exclusive(tmp_path, "wait", shared=True),
        exclusive(tmp_path, "wait", shared=True),
        pytest.raises(DataError, match="another process"),
        exclusive(tmp_path, "wait"),
    ):
        pass
    with (
        exclusive(tmp_path, "wait"),
        pytest.raises(DataError, match="another process"),
        exclusive(tmp_path, "wait", shared=True),
    ):
        pass


def test_temporary_files_of_a_killed_run_are_cleared_and_nothing_else(tmp_path: Path):
    for name in (".train-0123456789abcdef.bin.tmp-node-1-4711", ".bashrc", "notes.tmp1", "x.tmp"):
        (tmp_path / name).touch()
    jobs.clear_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bashrc", "notes.tmp1", "x.tmp"]


def test_the_held_out_share_is_what_was_asked_and_follows_the_text_alone():
    texts = [f"document {i}".encode() for i in range(4000)]
    held_out = [text for text in texts if is_held_out(text, 0.1)]
    assert 300 < len(held_out) < 500
    assert not any(is_held_out(text, 0.0) for text in texts)
    assert set(held_out) <= {text for text in texts if is_held_out(text, 0.2)}
    digest = hashlib.sha256(b"document 0").hexdigest()
    assert is_held_out(b"document 0", int(digest[:16], 16) / 2**64 + 1e-9)
    assert not is_held_out(b"document 0", int(digest[:16], 16) / 2**64 - 1e-9)

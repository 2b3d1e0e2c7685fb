"""What the elements of a job array, and those who watch them, may count on."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from data_prep.config import DataPrepConfig, Stage, TokenizerConfig
from data_prep.dedup.config import ExactDedup
from data_prep.files import DataError, exclusive
from data_prep.jobs import Backlog
from data_prep.pipeline import outstanding, prepare
from tests.data_prep.conftest import config


def dealt_out(settings: Mapping[str, object], out: Path, corpus: Path, stage: Stage, n: int) -> None:
    for task in reversed(range(n)):
        prepare(config(out, corpus, stage=stage, task=task, n_tasks=n, **settings))


def status(capsys: pytest.CaptureFixture[str], settings: DataPrepConfig) -> dict[str, str]:
    capsys.readouterr()
    prepare(settings)
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_elements_without_a_job_have_nothing_to_do(tmp_path: Path, corpus: Path):
    """`resolve` is one job, and belongs to the first element; the others come first here."""
    out, settings = tmp_path / "out", {"dedup": ExactDedup()}
    prepare(config(out, corpus, stage=Stage.plan, **settings))
    for stage in (Stage.sign, Stage.catalog, Stage.copies, Stage.resolve):
        dealt_out(settings, out, corpus, stage, 3)
    _, backlogs = outstanding(config(out, corpus, **settings))
    known = {stage: backlog.left for stage, backlog in backlogs.items() if backlog is not None}
    assert known == {"plan": 0, "sign": 0, "catalog": 0, "copies": 0, "resolve": 0, "tokenizer": 1, "publish": 1}
    assert backlogs[Stage.encode] is None  # no tokenizer yet


def test_a_backlog_names_the_elements_with_something_left():
    finished = [True, False, True, True, True, True, True]
    backlog = Backlog(tuple((10 + i, done) for i, done in enumerate(finished)))
    assert backlog.elements(3) == [1]
    assert backlog.left_of(1, 3) == [11]
    assert (backlog.left, backlog.elements(100)) == (1, [1])


def test_status_may_be_asked_while_others_work(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    prepare(config(out, corpus, stage=Stage.plan))
    with exclusive(out, "wait", shared=True):
        found = status(capsys, config(out, corpus, stage=Stage.status))
        with pytest.raises(DataError, match="another process"):
            prepare(config(out, corpus, stage=Stage.tokenizer))
    assert found["plan"] == "done"
    assert found["encode"] == "waits for the stages before it"


def test_status_does_not_take_what_other_settings_left_for_done(
    tmp_path: Path, dataset: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    found = status(capsys, config(copy, corpus, stage=Stage.status))
    assert (found["plan"], found["tokenizer"], found["publish"]) == ("done", "done", "done")
    other = config(copy, corpus, stage=Stage.status, tokenizer=TokenizerConfig(vocab_size=410))
    found = status(capsys, other)
    assert (found["plan"], found["tokenizer"], found["publish"]) == ("to do", "to do", "to do")


def test_inputs_that_come_while_an_array_works_are_noticed(tmp_path: Path, corpus: Path):
    texts = shutil.copytree(corpus, tmp_path / "texts")
    out = tmp_path / "out"
    for stage in (Stage.plan, Stage.tokenizer):
        prepare(config(out, texts, stage=stage))
    dealt_out({}, out, texts, Stage.encode, 2)
    (texts / "zz.txt").write_text("one more\n" * 9)
    with pytest.raises(DataError, match="the inputs are not those that stage=plan found"):
        prepare(config(out, texts, stage=Stage.publish))


def test_what_a_dead_node_left_half_written_goes_with_the_next_command(tmp_path: Path, corpus: Path):
    left = tmp_path / "out" / "work" / "dedup" / "signatures" / ".0123456789abcdef.tmp-node-1-4711"
    left.parent.mkdir(parents=True)
    left.touch()
    prepare(config(tmp_path / "out", corpus, stage=Stage.plan))
    assert not left.exists()

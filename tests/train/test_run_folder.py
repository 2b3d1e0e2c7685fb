"""The folder of a run: which configuration it holds, how far it has come, and events that cannot be written."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.check import to_yaml
from tests.runs import tiny
from train.attempt import Attempt, Identity
from train.checkpoint.folders import folder_name
from train.checkpoint.manifest import FileFacts, manifest_bytes
from train.claim import reached
from train.run_folder import RunFolder

ME = Identity(host="n1", boot_id="b1", pid_namespace="pid:[1]", pid=17, pid_started=100)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tiny("run.name=x", f"run.folder={tmp_path}"))
    folder.checkpoints.mkdir(parents=True)
    folder.attempts.mkdir()
    return folder


def cut_inside_a_line(text: str) -> str:
    return text[: text.index("d_model") + 4]


def cut_after_a_line(text: str) -> str:
    return text[: text.index("loss:")]


def garbled(text: str) -> str:
    return text.replace("seed:", "sfed:", 1)


@pytest.mark.parametrize("hurt", [cut_inside_a_line, cut_after_a_line, garbled, lambda text: ""])
def test_a_damaged_configuration_says_so_and_what_to_do(folder: RunFolder, hurt: Callable[[str], str]):
    words = ("run.name=x", f"run.folder={folder.path.parent}", "checkpoint.every_steps=10", "loss.z_loss=0.001")
    config = tiny(*words, "schedule.warmup_tokens=1280")
    folder.config_yaml.write_text(to_yaml(config))
    assert folder.differences(config) == []
    folder.config_yaml.write_text(hurt(to_yaml(config)))
    (problem,) = folder.differences(config)
    assert f"{folder.config_yaml} is damaged, or another version" in problem
    assert "It can be removed if this command is the one" in problem
    folder.config_yaml.write_text(to_yaml(config))
    assert "already holds another run" in folder.differences(tiny(*words))[0]


def test_only_a_checkpoint_that_is_one_tells_how_far_a_run_has_come(folder: RunFolder):
    checkpoint = folder.checkpoints / folder_name(5)
    checkpoint.mkdir()
    state = b"{}"
    facts = FileFacts(len(state), hashlib.sha256(state).hexdigest())
    (checkpoint / "state.json").write_bytes(state)
    (checkpoint / "manifest.json").write_bytes(manifest_bytes(5, {"state.json": facts, "index.jsonl": facts}, {}))
    (folder.checkpoints / folder_name(99_999_999)).mkdir()
    shutil.copytree(checkpoint, folder.checkpoints / folder_name(77))
    assert reached(folder) == 5


def test_events_that_cannot_be_written_are_told_once_and_caught_up_with(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
):
    folder.attempt = Attempt.take(folder.attempts, 1, ME)
    folder.events_jsonl.mkdir()
    for step in range(3):
        folder.note("saved", step=step)
    assert capsys.readouterr().out.count("warning") == 1
    folder.events_jsonl.rmdir()
    folder.note("saved", step=3)
    assert capsys.readouterr().out.count("nothing is missing") == 1
    lines = folder.events_jsonl.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if line] == [0, 1, 2, 3]

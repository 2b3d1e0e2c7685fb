import re
import subprocess
import sys
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from data_prep.__main__ import APP
from data_prep.config import DataPrepConfig, ModelType, OnBad, Stage
from data_prep.sources.config import SOURCES, Jsonl, PythonStdlib, TextFiles
from tests.runs import cpu_seconds_of_commands


def problems_of(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(APP, words)
    return caught.value.problems


def test_the_default_is_the_standard_library_with_a_small_tokenizer():
    config: DataPrepConfig = compose(APP, ["out=data/x"])
    assert config == DataPrepConfig(out="data/x", source=PythonStdlib())
    assert (config.stage, config.on_bad_document) == (Stage.all, OnBad.error)
    assert (config.tokenizer.model_type, config.tokenizer.vocab_size) == (ModelType.bpe, 4096)


def test_sources_bring_their_own_keys():
    assert compose(APP, ["out=x", "source=text", "source.paths=[a, b]"]).source == TextFiles(paths=["a", "b"])
    config = compose(APP, ["out=x", "source=jsonl", "source.paths=[a]", "source.text_field=body"])
    assert config.source == Jsonl(paths=["a"], text_field="body")


def test_every_source_has_a_yaml_file_and_is_its_own_kind():
    folder = Path(__file__).parents[2] / "conf" / "source"
    assert {path.stem for path in folder.glob("*.yaml")} == set(SOURCES)
    for name in SOURCES:
        given = {"python_stdlib": [], "python_site": [], "hugging_face": ["source.dataset=a"]}
        paths = given.get(name, ["source.paths=[a]"])
        assert compose(APP, ["out=x", f"source={name}", *paths]).source.kind == name


NESTED = ("source.paths", "tokenizer.vocab_size", "tokenizer.sample_bytes")


def test_all_problems_come_at_once_and_name_their_keys():
    found = problems_of(
        "out=''",
        "source=text",
        "source.paths=[]",
        "val_fraction=1.5",
        "tokenizer.vocab_size=100",
        "tokenizer.sample_bytes=0",
    )
    assert [key for key in NESTED if not any(key in problem for problem in found)] == []
    found = problems_of("out=''", "val_fraction=1.5", "task_bytes=0")
    assert [problem.split("=")[0].split()[0] for problem in found] == ["out", "val_fraction", "task_bytes"]


def test_training_settings_beside_a_given_tokenizer_are_refused_because_they_would_do_nothing():
    found = problems_of("out=x", "tokenizer.model=a.model", "tokenizer.vocab_size=8192", "tokenizer.seed=3")
    assert [problem.split("=")[0] for problem in found] == ["tokenizer.vocab_size", "tokenizer.seed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=0"], "give both"),
        (["n_tasks=3"], "give both"),
        (["stage=encode", "task=3", "n_tasks=3"], r"must lie in 0 ... 2"),
        (["task=0", "n_tasks=3"], "stage=all is done by one process"),
        (["stage=publish", "task=0", "n_tasks=3"], "stage=publish is done by one process"),
        (["workers=0"], "workers=0 must be at least 1"),
    ],
)
def test_a_share_of_a_job_array_is_checked(words: list[str], message: str):
    assert re.search(message, problems_of("out=x", *words)[0])


def test_a_required_path_and_a_misspelt_key_are_named():
    assert "source.paths" in problems_of("out=x", "source=text")[0]
    assert "`val_fraction`" in problems_of("out=x", "val_fractoin=0.1")[0]
    assert "out" in problems_of()[0]


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-m", "data_prep", *words], cwd=root, capture_output=True, text=True)


def test_help_answers_quickly_and_writes_nothing(tmp_path: Path):
    before = set(Path(__file__).parents[2].iterdir())
    started = cpu_seconds_of_commands()
    done = command("--help")
    assert done.returncode == 0, done.stderr
    assert "python -m data_prep out=data/stdlib" in done.stdout
    assert cpu_seconds_of_commands() - started < 5  # about one second on a quiet machine
    assert set(Path(__file__).parents[2].iterdir()) == before


def test_a_mistake_ends_with_exit_code_2_and_no_traceback():
    done = command("out=x", "val_fraction=2")
    assert done.returncode == 2
    assert "val_fraction=2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_gets_no_traceback():
    root = Path(__file__).parents[2]
    line = f"{sys.executable} -m data_prep --help | head -n 1"
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, shell=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr

"""F19: bad configurations. Each is refused within seconds with exit code 2, the key, and what would be right; nothing
is started and nothing is written."""

import os
import sys
import time
from pathlib import Path

import pytest

from conf.app import RESOLVERS, App
from conf.check import defaults_of, read_config
from conf.compose import compose, entry
from conf.errors import ConfigError
from data_prep.__main__ import APP as DATA
from data_prep.config import DataPrepConfig, TokenizerConfig
from data_prep.pipeline import prepare
from data_prep.sources.config import TextFiles
from launch.__main__ import LAUNCH_DATA
from tests.corpus import write_corpus
from tests.runs import TINY, cpu_seconds_of_commands, finish, outcome, start
from train.__main__ import APP as TRAIN
from train.config import TrainConfig

CPU_SECONDS = 5.0
APPS = {"train": TRAIN, "data": DATA, "launch": LAUNCH_DATA}
NEEDED = {"train": ["run.name=x"], "data": ["out=x"], "launch": ["out=x"]}
DEEP = 8000

LINES: list[tuple[str, str, str]] = [
    # typos and keys that do not exist
    ("train", "optimizer.peak_lrr=1", "`optimizer.peak_lrr`; did you mean `optimizer.peak_lr`"),
    ("train", "btch.global_batch_size=3", "did you mean `batch.global_batch_size`"),
    ("train", "+optimizer.nesterov=1", "unknown key `optimizer.nesterov`"),
    ("train", "++optimizer.peaklr=1", "did you mean `optimizer.peak_lr`"),
    ("train", "data.sources.web.foldr=a", "did you mean `data.sources.web.folder`"),
    ("train", "=3", "unknown key ``"),
    ("train", "debug", "`debug` is not an override; write key=value"),
    ("train", "", "is not an override"),
    ("data", "tokenizer.vocab_sise=400", "did you mean `tokenizer.vocab_size`"),
    ("data", "sourc=text", "did you mean `source`"),
    ("launch", "slurm.partitionn=cpu", "did you mean `slurm.partition`"),
    # keys taken away, and what would be passed over in silence
    ("train", "~optimizer.peak_lr", "`~optimizer.peak_lr` takes nothing away"),
    ("train", "~model", "`~model` takes nothing away"),
    ("train", "hydra.run.dir=elsewhere", "`hydra.run.dir` has no effect here"),
    ("train", "hydra/launcher=basic", "`hydra/launcher` has no effect here"),
    ("data", "hydra.searchpath=[x]", "`hydra.searchpath` has no effect here"),
    # groups
    ("train", "model=debgu", "`model=debgu` is no option of model; did you mean `debug`"),
    ("train", "model=../../etc/passwd", "is no option of model"),
    ("train", "experiment=/etc/passwd", "is no option of experiment"),
    ("train", "experiment=null", "is no option of experiment"),
    ("train", "+experiment=debug", "write experiment=debug, without +"),
    ("train", "data@foo=stdlib", "Did you mean to override data"),
    ("train", "modle=debug", "unknown key `modle`; did you mean `model`"),
    ("train", "schedule.kind=cosin", "`schedule` has no kind `cosin`"),
    ("data", "source=jsnol", "did you mean `jsonl`"),
    ("data", "dedup=[minhash, exact]", "is no option of dedup"),
    # wrong types
    ("train", "total_tokens=12:30:45", "`total_tokens` must be an integer, got text '12:30:45'"),
    ("train", "run.time_limit_seconds=24:00:00", "`run.time_limit_seconds` must be a finite number or null"),
    ("train", "run.name=2026_11_20", "`run.name` must be text, got an integer 20261120"),
    ("train", "total_tokens=1e6", "write 1_000_000"),
    ("train", "total_tokens=", "`total_tokens` must be an integer, got text ''"),
    ("train", "total_tokens=[1]", "`total_tokens` must be an integer, got a list"),
    ("train", "total_tokens=null", "`total_tokens` must be an integer, got null"),
    ("train", "total_tokens=true", "`total_tokens` must be an integer, got true or false"),
    ("train", "model={d_model: [3]}", "`model.d_model` must be an integer"),
    ("train", "batch.global_batch_size=8,16", "gives several values"),
    ("train", "batch.global_batch_size=range(1,5)", "gives several values"),
    ("train", "run=null", "`run` is a section"),
    ("train", "sample.prompts=hello", "`sample.prompts` must be a list"),
    ("data", "on_bad_document=skp", "`on_bad_document` must be one of error, skip"),
    ("data", "workers=two", "`workers` must be an integer or null"),
    ("launch", "slurm.time_limit_minutes=24:00:00", "`slurm.time_limit_minutes` must be"),
    # numbers
    ("train", "run.seed=-1", "run.seed=-1 must be 0 or more"),
    ("train", "optimizer.peak_lr=nan", "`optimizer.peak_lr` must be a finite number"),
    ("train", "optimizer.peak_lr=-inf", "`optimizer.peak_lr` must be a finite number"),
    ("train", "optimizer.peak_lr=1e-400", "optimizer.peak_lr=0.0 must be above 0"),
    ("train", "total_tokens=" + "9" * 30, "`total_tokens` is out of range"),
    ("train", "optimizer.peak_lr=" + "9" * 400, "`optimizer.peak_lr` is out of range"),
    ("train", "total_tokens=" + "9" * 5000, "is not an override"),
    ("data", "val_fraction=-0.1", "val_fraction=-0.1 must lie in 0"),
    ("data", "task_bytes=0", "task_bytes=0 must be at least 1"),
    ("data", "task=3", "give both, or neither"),
    # text
    ("train", "run.name=../x", "1 to 64 of letters"),
    ("train", "run.name='$(touch x)'", "1 to 64 of letters"),
    ("train", "run.name=" + "a" * 65, "1 to 64 of letters"),
    ("train", "run.name=.hidden", "1 to 64 of letters"),
    ("train", "run.folder=", "run.folder is empty"),
    ("train", "data.folder=", "data.folder is empty"),
    ("train", "data.folder=a\0b", "is not an override"),
    ("train", "data.folder=\ud800", "is not an override"),
    ("train", "optimizer.peak_lr\t=1", "is not an override"),
    ("data", "out=", "out is empty"),
    ("data", "source.paths=['https://me:secret@host/x']", "source.paths[0] is a URL with a password"),
    ("data", "source.paths=[a, 's3://bucket/x?X-Amz-Signature=secret']", "source.paths[1] is a URL with"),
    # code, the environment, and other interpolations
    ("train", "_target_=os.system", "`_target_` is refused: a configuration never names code"),
    ("train", "+model._target_=os.system", "`model._target_` is refused"),
    ("train", "data.sources={web: {folder: a, _target_: os.system}}", "`data.sources.web._target_` is refused"),
    ("train", "data.sources={_target_: {folder: a}}", "`data.sources._target_` is refused"),
    ("train", "data.weight_schedule=[{from_tokens: 1, _target_: x}]", "`data.weight_schedule[0]._target_` is refused"),
    ("data", "+source._target_=torch.load", "`source._target_` is refused"),
    ("train", "run.folder=${oc.env:HOME}", "`run.folder`: Unsupported interpolation type oc.env"),
    ("train", "run.folder='a${oc.env:HOME}b'", "`run.folder`: Unsupported interpolation type oc.env"),
    ("train", "sample.prompts=['${oc.env:HOME}']", "`sample.prompts[0]`: Unsupported interpolation type oc.env"),
    ("train", "run.folder=${oc.decode:'[1]'}", "Unsupported interpolation type oc.decode"),
    ("train", "run.folder=${hydra:runtime.cwd}", "Unsupported interpolation type hydra"),
    ("train", "run.folder=${now:%Y}", "Unsupported interpolation type now"),
    ("train", "run.folder=${mine:x}", "Unsupported interpolation type mine"),
    ("train", "run.folder=${run.nme}", "`run.folder`: Interpolation key 'run.nme' not found"),
    ("train", "run.folder=${run.folder}", "`run.folder`: Recursive interpolation"),
    ("launch", "slurm.account=${oc.env:HOME}", "Unsupported interpolation type oc.env"),
    # depth
    ("train", "model=" + "[" * DEEP, "`model` is given 8,000 brackets inside of each other, at most 32 are read"),
    ("train", "model=" + "[" * DEEP + "]" * DEEP, "8,000 brackets"),
    ("train", "model=" + "{a: " * DEEP + "1" + "}" * DEEP, "8,000 brackets"),
    ("train", "run.folder=" + "${a:" * DEEP + "}" * DEEP, "8,000 brackets"),
    ("train", "run.folder='" + "[" * DEEP, "is not an override"),
    ("train", "data.folder=" + "x" * 100_000, "has 100,012 characters, a word of the command line at most 65,536"),
    ("train", "data.folder=" + "x " * 9_000, "has 18,000 characters outside of quotes"),
    ("train", f"sample.prompts=[{','.join('a' * 5000)}]", "has 4,999 commas, a word of the command line at most 1,000"),
    ("data", f"source.paths=[{','.join('a' * 5000)}]", "put it into a YAML file conf/source/NAME.yaml"),
]

FILES: list[tuple[str, bytes, str]] = [
    ("a tab", b"total_tokens:\t5\n\tmodel: 3\n", "line"),
    ("not YAML", b"total_tokens: [1, 2\n", "line"),
    ("a key given twice", b"total_tokens: 5\ntotal_tokens: 6\n", "the key `total_tokens` is given twice"),
    ("base 60", b"total_tokens: 12:30:45\n", "12:30:45 would be read as 45045"),
    ("octal", b"total_tokens: 010\n", "010 would be read as 8"),
    ("not UTF-8", b"run: {name: caf\xe9}\n", "is not UTF-8 (byte"),
    ("an anchor bomb", b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "an anchor or alias"),
    ("a merge key", b"run: {<<: {name: x}}\n", "a key must be text"),
    ("a tag", b"run: !!python/object/apply:os.system [true]\n", "the tag"),
    ("too deep", b"[" * 5000, "nested deeper"),
    ("too large", b"# " + b"x" * (1 << 20), "more than 1,048,576 bytes"),
    ("NUL", b"total_tokens: \0\n", "is not YAML"),
    ("a date that is none", b"run: {name: 2026-13-45}\n", "is not YAML that can be used"),
    ("a list", b"- 1\n", "is not a mapping"),
    ("code", b"model:\n  deep: [{_target_: os.system}]\n", "`model.deep[0]._target_` is refused"),
    ("Hydra's own settings", b"hydra:\n  callbacks: {a: {}}\n", "`hydra` has no effect"),
    ("a way out", b"defaults: [../../../etc/x]\n", "`defaults` leaves the folder"),
    ("the environment", b"run: {folder: '${oc.env:HOME}'}\n", "Unsupported interpolation type oc.env"),
    ("a typo", b"total_tokenz: 5\n", "did you mean `total_tokens`"),
    ("text for a number", b"total_tokens: 1e6x\n", "`total_tokens` must be an integer"),
]


def refused(app: App, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is printed for this command line. Fails unless it ends with code 2, in time, without having begun."""
    monkeypatch.setattr(sys, "argv", ["program", *words])
    began, used = False, time.process_time()

    def task(_: object) -> int:
        nonlocal began
        began = True
        return 0

    with pytest.raises(SystemExit) as ended:
        entry(app, task)
    printed = "".join(capsys.readouterr())
    assert (ended.value.code, began) == (2, False), printed
    assert time.process_time() - used < CPU_SECONDS
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize(("name", "word", "answer"), LINES, ids=lambda value: ascii(value)[1:40])
def test_a_bad_word_is_refused(
    name: str,
    word: str,
    answer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """F19: a word of the command line, beside all that is needed for a start."""
    monkeypatch.chdir(tmp_path)
    text = ["source=text"] if "source.paths" in word else []
    printed = refused(APPS[name], [*NEEDED[name], *text, word], capsys, monkeypatch)
    assert answer in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run.name=a", "run.name=b"], ["note: `run.name` is given 2 times: the last value holds, b"]),
        (["run.name=a", "model=debug", "++run.name='b c'", "run.name=a"], ["`run.name` is given 3 times", ", a"]),
        (["experiment=llama_100m", "run.name=a", "experiment=debug"], ["`experiment` is given 2 times", ", debug"]),
        (["run.name=a", "run.name='a'"], []),
        (["run.name=a", "optimizer={peak_lr: 1.0}", "optimizer={beta1: 0.5}"], []),
    ],
)
def test_a_key_given_twice_says_which_value_holds(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """F19: the last one, for scripts that append "$@"; one line for a key, of one process."""
    for is_first in (True, False):
        monkeypatch.setattr(sys, "argv", ["program", "total_tokens=100_000_000", *words])
        with pytest.raises(SystemExit):
            entry(TRAIN, lambda config: None, speaks=lambda is_first=is_first: is_first)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == (1 if expected and is_first else 0)
        assert all(part in told[0] for part in expected if told)


def test_text_as_typed_that_is_given_twice_says_so_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """F19: a prompt may hold what is no value to Hydra."""
    from train.sample import SampleCommand

    monkeypatch.setattr(sys, "argv", ["program", "run=x", "prompt=[a ", "prompt={b "])
    with pytest.raises(SystemExit):
        entry(App("sample", SampleCommand, {}, verbatim=("prompt",)), lambda config: None)
    assert capsys.readouterr().err == "note: `prompt` is given 2 times: the last value holds, {b \n"


def test_as_much_as_a_word_may_hold_is_read_in_seconds():
    """F19: with commas and brackets inside of quotes not counted."""
    started = time.process_time()
    prompts = ",".join(["'[, [, [, [, [,'", *("a b c d e" for _ in range(999))])
    assert (
        len(compose(TRAIN, ["run.name=x", "total_tokens=1000", f"sample.prompts=[{prompts}]"]).sample.prompts) == 1000
    )
    assert time.process_time() - started < 10  # one on a quiet machine


@pytest.mark.parametrize(("what", "content", "answer"), FILES, ids=[what for what, _, _ in FILES])
def test_a_bad_file_is_refused(
    what: str,
    content: bytes,
    answer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """F19: a YAML file of the user's own (`--config-dir`)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(b"# @package _global_\n" + content)
    words = ["--config-dir", str(tmp_path), "experiment=mine", "run.name=x"]
    assert answer in refused(TRAIN, words, capsys, monkeypatch)
    assert [path.name for path in tmp_path.rglob("*")] == ["experiment", "mine.yaml"]


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--experimental-rerun=job.pickle", "would unpickle a file"),
        ("--multirun", "--multirun is refused"),
        ("--config-dir=/nowhere", "is not a folder"),
        ("--config-name=other", "unknown flag `--config-name=other`"),
        ("--conf", "unknown flag `--conf`"),
        ("--cfg", "--cfg takes a word"),
    ],
)
def test_a_bad_flag_is_refused(
    flag: str, answer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """F19, and security: the flag that unpickles."""
    assert answer in refused(TRAIN, ["run.name=x", flag], capsys, monkeypatch)


def test_a_file_of_the_name_of_one_of_ours_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """F19: which of the two is meant would depend on Hydra's search path."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "debug.yaml").write_text("n_layers: 3\n")
    printed = refused(TRAIN, ["--config-dir", str(tmp_path), "run.name=x"], capsys, monkeypatch)
    assert "has the name of one of our own files" in printed


@pytest.mark.parametrize("content", ["", "total_tokens: 5\n"])
def test_a_file_that_does_not_say_where_its_keys_belong_is_told_how(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """F19: forgotten at the head of an experiment; "unknown key `experiment`" would help nobody."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    words = ["--config-dir", str(tmp_path), "experiment=mine", "run.name=x"]
    assert "must begin with the line `# @package _global_`" in refused(TRAIN, words, capsys, monkeypatch)


def test_a_folder_that_cannot_be_walked_through_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """F19: folders in folders, deeper than the system follows a name."""
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("x" * 250).mkdir()
        monkeypatch.chdir("x" * 250)  # one by one; their whole name is too long
    os.chdir(tmp_path)
    printed = refused(TRAIN, ["--config-dir", str(tmp_path), "run.name=x"], capsys, monkeypatch)
    assert f"--config-dir={tmp_path} cannot be read: " in printed
    assert len(printed) < 1000


def test_a_file_of_the_users_own_and_an_interpolation_of_another_key_work(tmp_path: Path):
    """F19: what is refused above is refused for its fault alone."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nrun:\n  folder: ${run.name}/runs\n")
    config = compose(TRAIN, ["experiment=mine", "run.name=x"], tmp_path)
    assert config.run.folder == "x/runs"


def test_no_resolver_is_left():
    """Security, rule 3: a resolver that a later version brings along must be forgotten too."""
    from omegaconf.basecontainer import BaseContainer

    compose(TRAIN, ["run.name=x"])
    assert BaseContainer._resolvers == {}, f"add to RESOLVERS, which are {RESOLVERS}"  # pyright: ignore[reportPrivateUsage]


SAVED: list[tuple[str, bytes, str]] = [
    *[
        case
        for case in FILES
        if case[0] in ("a key given twice", "base 60", "not UTF-8", "an anchor bomb", "a tag", "too deep", "NUL")
    ],
    ("code", b"run: {name: x}\nmodel: {_target_: os.system}\n", "`model._target_` is refused"),
    ("a key of no version", b"run: {name: x}\nmodle: {}\n", "did you mean `model`"),
    ("a list", b"[1]", "is not a mapping"),
    ("nothing", b"", "is not a mapping"),
]


@pytest.mark.parametrize(("what", "content", "answer"), SAVED, ids=[what for what, _, _ in SAVED])
def test_the_configuration_in_a_runs_folder_is_not_trusted(what: str, content: bytes, answer: str, tmp_path: Path):
    """F19, and security: config.yaml of a run or of weights may come from anywhere."""
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(TrainConfig, tmp_path / "config.yaml")
    assert any(answer in problem for problem in caught.value.problems), caught.value


def test_an_interpolation_in_a_saved_configuration_is_only_text(tmp_path: Path):
    """Security, rule 2: read without resolvers, and without interpolation."""
    from conf.check import to_yaml

    config = compose(TRAIN, ["run.name=x", "run.folder='\\${oc.env:HOME}'"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(TrainConfig, tmp_path / "config.yaml").run.folder == "${oc.env:HOME}"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("train", ["run.name=x", "run.folder=${oc.env:HOME}"]),
        ("data_prep", ["out=x", "source=jsnol"]),
        ("launch", ["data", "out=x", "slurm.partitionn=cpu"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_the_real_command_says_it_in_seconds(module: str, words: list[str], tmp_path: Path):
    """F19: as typed: exit 2 within 5 CPU seconds, before torch is imported, and nothing on the disk."""
    before = cpu_seconds_of_commands()
    code, printed = finish(start(tmp_path, *words, module=module))
    assert code == 2, printed
    assert cpu_seconds_of_commands() - before < CPU_SECONDS
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


# --- F18: what may change when a run goes on --------------------------------------------------------------------------


def test_every_key_may_change_or_makes_another_run():
    """F18: each key of TrainConfig is named as free to change, or it is part of what makes the run this run."""
    from conf.check import flatten, to_tree
    from train.config import FREE_TO_CHANGE
    from train.optimizer_config import OPTIONS
    from train.run_folder import identity

    mixture = "data.sources={web: {folder: a, weight: 1}}"
    for schedule in OPTIONS["schedule"]:
        config = compose(TRAIN, ["run.name=x", "data.folder=null", mixture, f"schedule={schedule}"])
        every, fixed = flatten(to_tree(config)), identity(config)
        free = every.keys() - fixed.keys()
        assert free | fixed.keys() == every.keys()
        for section in ("model.", "optimizer.", "schedule.", "evaluation."):
            assert not [key for key in free if key.startswith(section)], section
        assert {
            "run.seed",
            "run.name",
            "run.start_from",
            "total_tokens",
            "data.seq_len",
            "data.packing",
        } <= fixed.keys()
        assert {"batch.global_batch_size", "parallel.precision", "data.sources.web.weight"} <= fixed.keys()
    names = defaults_of(TrainConfig)
    unknown = [key for key in FREE_TO_CHANGE if key.split(".")[0] not in names]
    assert unknown == []
    for key in FREE_TO_CHANGE:
        if "*" not in key and not key.endswith("."):
            assert key in flatten(names), f"{key} is free to change, and does not exist"


CHANGED: list[tuple[str, str]] = [
    ("batch.global_batch_size=16", "batch.global_batch_size 8 → 16"),
    ("data.seq_len=16", "data.seq_len 32 → 16"),
    ("run.seed=1", "run.seed 0 → 1"),
    ("model.d_ff=96", "model.d_ff 64 → 96"),
    ("schedule=wsd", "schedule.kind 'cosine' → 'wsd'"),
    ("parallel.precision=bf16", "parallel.precision 'fp32' → 'bf16'"),
    ("total_tokens=25_600", "total_tokens 12800 → 25600"),
    ("data.folder=other_text", "data"),
    ("data.folder=other_tokenizer", "tokenizer"),
]


def test_a_run_goes_on_with_nothing_changed_but_what_may(here: Path, monkeypatch: pytest.MonkeyPatch):
    """F18: batch, length, seed, model, schedule, precision, data and tokenizer; refused with the difference, before
    anything is touched, and the unchanged command still goes on."""
    from train.parallel import rank_grid
    from train.setup import check

    words = [*TINY, "run.name=x", "run.stop_at_step=2"]
    code, printed = outcome(here, *words[len(TINY) :])
    assert code in (0, 143), printed
    monkeypatch.chdir(here)
    texts = write_corpus(here / "texts", seed=1)
    model = TokenizerConfig(model="data/tiny/tokenizer.model")
    prepare(DataPrepConfig("other_text", TextFiles([str(texts)]), tokenizer=model, val_fraction=0.1))
    of_its_own = TokenizerConfig(vocab_size=420)
    prepare(DataPrepConfig("other_tokenizer", TextFiles([str(texts)]), tokenizer=of_its_own, val_fraction=0.1))
    before = {path: path.read_bytes() for path in (here / "runs").rglob("*") if path.is_file()}
    for word, answer in CHANGED:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            check(compose(TRAIN, [*words, word]), rank_grid())
        assert getattr(caught.value, "exit_code", 1) in (2, 3), caught.value
        assert answer in str(caught.value), word
    check(compose(TRAIN, [*words, "batch.micro_batch_size=2", "checkpoint.every_steps=5"]), rank_grid())
    assert {path: path.read_bytes() for path in (here / "runs").rglob("*") if path.is_file()} == before

"""Configuration: composed by Hydra, decided by us."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from conf.app import CONF_FOLDER, App
from conf.check import build, defaults_of, flatten, read_config, to_yaml
from conf.compose import compose
from conf.errors import ConfigError
from data_prep.__main__ import APP as DATA_APP
from train.__main__ import APP as TRAIN_APP
from train.config import TrainConfig
from train.optimizer_config import OPTIONS, WsdSchedule


def problems_of(*overrides: str, app: App = TRAIN_APP) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(app, overrides)
    return caught.value.problems


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF_FOLDER / "experiment").glob("*.yaml")))
def test_every_experiment_composes(experiment: str):
    assert isinstance(compose(TRAIN_APP, [f"experiment={experiment}", "run.name=x"]), TrainConfig)


@pytest.mark.parametrize("app", [TRAIN_APP, DATA_APP], ids=lambda app: app.config_name)
def test_every_option_of_every_group_composes(app: App):
    groups = (
        {"source", "clean", "dedup"}
        if app is DATA_APP
        else {"model", "data", "optimizer", "schedule", "parallel", "cluster"}
    )
    required = ["run.name=x"] if app is TRAIN_APP else ["out=x"]
    also = {
        "source": ["source.paths=[a]"],
        "hugging_face": ["source.dataset=a"],
        "python_stdlib": [],
        "python_site": [],
    }
    for group in groups:
        for option in sorted(path.stem for path in (CONF_FOLDER / group).glob("*.yaml")):
            compose(app, [f"{group}={option}", *required, *also.get(option, also.get(group, []))])


@pytest.mark.parametrize("kind", sorted(OPTIONS["schedule"]))
def test_each_schedule_arrives_as_its_own_class(kind: str):
    config = compose(TRAIN_APP, [f"schedule={kind}", "run.name=x"])
    assert type(config.schedule) is OPTIONS["schedule"][kind]


def test_an_experiment_wins_over_groups_and_the_command_line_over_both():
    assert compose(TRAIN_APP, ["experiment=debug", "run.name=x"]).total_tokens != TrainConfig.total_tokens
    assert compose(TRAIN_APP, ["experiment=debug", "run.name=x", "total_tokens=77_777"]).total_tokens == 77_777


@pytest.mark.parametrize(
    "path", sorted(CONF_FOLDER.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_yaml_file_never_says_a_default_again(path: Path):
    """One home per default: a value said twice drifts."""
    app = DATA_APP if path.parent.name in ("source", "tokenizer") else TRAIN_APP
    said = flatten({key: value for key, value in (yaml.safe_load(path.read_text()) or {}).items() if key != "defaults"})
    defaults = flatten(defaults_of(app.schema))
    prefix = "" if path.parent.name == "experiment" else f"{path.parent.name}."
    assert [key for key, value in said.items() if defaults.get(prefix + key, "no default") == value] == []


def test_unknown_keys_are_named_with_the_nearest_right_one_all_at_once():
    found = problems_of("run.name=x", "optimizer.peak_lrr=1", "btch.global_batch_size=3")
    assert found == [
        "unknown key `optimizer.peak_lrr`; did you mean `optimizer.peak_lr`?",
        "unknown key `btch.global_batch_size`; did you mean `batch.global_batch_size`?",
    ]


def test_a_key_appended_with_plus_is_refused():
    assert problems_of("run.name=x", "+optimizer.nesterov=1")[0].startswith(
        "unknown key `optimizer.nesterov`; known here"
    )


def test_a_key_misspelled_in_a_yaml_file_is_refused():
    tree = {"run": {"name": "x"}, "schedule": {"kind": "wsd", "decay_fracton": 0.1}}
    with pytest.raises(ConfigError, match=r"schedule\.decay_fracton.*did you mean `schedule\.decay_fraction`"):
        build(TrainConfig, tree)


def test_code_cannot_be_named():
    assert "never names code to run" in problems_of("run.name=x", "+model._target_=os.system")[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.name=2026_11_20", "`run.name` must be text, got an integer 20261120"),
        ("total_tokens=1e6", "`total_tokens` must be an integer, got a number 1000000\\.0; write 1_000_000"),
        ("total_tokens=true", "`total_tokens` must be an integer, got true or false True"),
        ("optimizer.peak_lr=fast", "`optimizer.peak_lr` must be a finite number, got text 'fast'"),
        ("optimizer.peak_lr=nan", "`optimizer.peak_lr` must be a finite number"),
        ("cluster.memory_gib=inf", "`cluster.memory_gib` must be a finite number or null"),
        ("model={d_modell: 3}", "d_modell"),
        ("sample.prompts=['']", "empty prompt"),
        ("parallel.precision=int4", "`parallel.precision` must be one of fp32, bf16"),
        ("schedule.min_lr_ratio=[0.1]", "`schedule.min_lr_ratio` must be a finite number"),
        ("model=5", "`model=5` is no option of model"),
        ("sample.prompts=hello", "`sample.prompts` must be a list"),
        ("schedule.kind=cosin", "`schedule` has no kind `cosin`"),
        ("=3", "unknown key ``"),
        ("model=debgu", "no option of model; did you mean `debug`"),
        ("run.name=../x", "1 to 64 of letters"),
        ("parallel.zero_stage=0", "zero_stage=1 on one process is plain training"),
        ("model.n_heads=5", "does not divide by model.n_heads=5; nearest widths 125 and 130"),
        ("model.n_kv_heads=3", "n_kv_heads can be one of"),
        ("schedule.warmup_tokens=9000000", "longer than total_tokens"),
        ("checkpoint.keep_last=1", "at least 2"),
        ("checkpoint.keep_every_steps=250", "must be a multiple of checkpoint.every_steps=100"),
        ("checkpoint={keep_best: true, every_steps: 30}", "seldom meet"),
        ("health={on_loss_spike: rollback, rollback_margin_steps: 150}", "set checkpoint.keep_last=3 or more"),
        ("optimizer.beta2=1", r"must lie in \[0, 1\)"),
        ("cluster.usd_per_device_hour=2.0", "needs cluster.price_date"),
    ],
)
def test_a_wrong_value_is_answered_with_what_it_must_be(override: str, words: str):
    import re

    overrides = [override] if override.startswith("run.name") else ["run.name=x", override]
    found = problems_of(*overrides)
    assert any(re.search(words, problem) for problem in found), found


def test_a_missing_run_name_is_asked_for():
    assert problems_of("experiment=debug") == ["`run.name` is required: pass run.name=VALUE"]


def test_all_problems_come_in_one_list():
    found = problems_of("run.name=a/b", "total_tokens=0", "data.seq_len=1", "parallel.zero_stage=7")
    assert len(found) == 4


def read_back(config: TrainConfig, folder: Path) -> TrainConfig:
    (folder / "config.yaml").write_text(to_yaml(config))
    return read_config(TrainConfig, folder / "config.yaml")


def test_a_saved_configuration_reads_back_equal(tmp_path: Path):
    config = compose(TRAIN_APP, ["experiment=debug", "schedule=wsd", "run.name=x", "cluster.price_date='2026-11-20'"])
    again = read_back(config, tmp_path)
    assert again == config
    assert isinstance(again.schedule, WsdSchedule)


def test_every_setting_has_a_reader():
    """A key that nothing reads would be silently ignored."""
    import train.config
    import train.data_config

    root = Path(train.config.__file__).parents[1]
    code = "\n".join(
        path.read_text()
        for folder in ("train", "model", "launch")
        for path in (root / folder).glob("**/*.py")
        if not path.name.endswith("config.py")
    )
    settings = vars(train.config) | vars(train.data_config)
    schemas = [value for value in settings.values() if isinstance(value, type) and dataclasses.is_dataclass(value)]
    unread = [
        f"{schema.__name__}.{field.name}"
        for schema in schemas
        for field in dataclasses.fields(schema)
        if field.name != "kind" and f".{field.name}" not in code and f"{field.name}=" not in code
    ]
    # head_dim and the like are read through properties of the configuration itself
    own = (root / "model" / "config.py").read_text()
    assert [name for name in unread if f"self.{name.split('.')[1]}" not in own] == []


def typed(*words: str) -> tuple[int, str]:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "train", *words], cwd=CONF_FOLDER.parent, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_mistakes_beside_hydras_own_flags_are_answered_the_same_way(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndata:\n  folder: /nowhere\n")
    words = ("--config-dir", str(tmp_path), "experiment=mine", "run.name=x", "batch.global_batch_size=9")
    code, printed = typed(*words)
    assert code == 2, printed
    assert "nearest global batch sizes: 8 and 16" in printed
    assert "Traceback" not in printed


def test_several_jobs_in_one_process_are_refused():
    before = set(CONF_FOLDER.parent.iterdir())
    code, printed = typed("-m", "run.name=x", "batch.global_batch_size=8,16")
    assert code == 2, printed
    assert "--multirun is refused" in printed
    assert set(CONF_FOLDER.parent.iterdir()) == before


def test_hydra_never_advises_to_append_a_key():
    assert "To append" not in " ".join(problems_of("run.name=x", "model={d_modell: 3}"))


# --- mappings from free names, and lists of sections


MIXTURE = "data.sources={web: {folder: a, weight: 0.7}, code: {folder: b, weight: 0.3}}"


def test_a_mapping_from_free_names_is_given_and_changed_on_the_command_line():
    config = compose(TRAIN_APP, ["run.name=x", "data.folder=null", MIXTURE, "data.sources.code.weight=2"])
    assert {name: (source.folder, source.weight) for name, source in config.data.sources.items()} == {
        "web": ("a", 0.7),
        "code": ("b", 2.0),
    }
    one_by_one = ["data.folder=null", "data.sources.web.folder=a", "data.sources.code={folder: b}"]
    assert list(compose(TRAIN_APP, ["run.name=x", *one_by_one]).data.sources) == ["web", "code"]


def test_a_mapping_from_free_names_survives_yaml(tmp_path: Path):
    config = compose(TRAIN_APP, ["run.name=x", "data.folder=null", MIXTURE])
    assert read_back(config, tmp_path) == config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.sources.web.foldr=a"], "unknown key `data.sources.web.foldr`; did you mean `data.sources.web.folder`?"),
        (
            ["data.sources={web: {folder: a, weight: much}}"],
            "`data.sources.web.weight` must be a finite number or null",
        ),
        (["data.sources.web.weight=1"], "`data.sources.web.folder` is required: pass data.sources.web.folder=VALUE"),
        (["data.sources=5"], "`data.sources` must be a mapping from names (text), got 5"),
        (["data.sources={web: a}"], "`data.sources.web` is a section with keys of its own, not the value 'a'"),
        (["data.weight_schedule=5"], "`data.weight_schedule` must be a list of sections, got 5"),
        (["data.weight_schedule=[{weights: {a: 1}}]"], "`data.weight_schedule[0].from_tokens` is required"),
        (["data.weight_schedule=[{from_tokens: 1, weights: {a: x}}]"], "`data.weight_schedule[0].weights.a` must be"),
    ],
)
def test_a_wrong_element_is_answered_with_its_place(words: list[str], expected: str):
    found = problems_of("run.name=x", "data.folder=null", *words)
    assert any(problem.startswith(expected) for problem in found), found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.folder=null"], "data needs one of the two"),
        ([MIXTURE], "data needs one of the two"),
        (["data.folder=null", MIXTURE, "data.sources.web.weight=null"], "web lack a weight"),
        (["data.folder=null", MIXTURE, "data.sources.web.weight=-1"], "weight=-1.0 must be 0 or more"),
        (["data.folder=null", MIXTURE, "data.sources.web.weight=0", "data.sources.code.weight=0"], "every weight is 0"),
        (["data.folder=null", MIXTURE, "data.sources.web.max_epochs=0"], "max_epochs=0.0 must be above 0"),
        (["data.folder=null", "data.sources={a b: {folder: x}}"], "'a b' may hold letters"),
        (
            ["data.folder=null", MIXTURE, "data.weight_schedule=[{from_tokens: 5, weights: {web: 1}}]"],
            "must name every source once: web, code",
        ),
        (
            ["data.folder=null", MIXTURE, "data.weight_schedule=[{from_tokens: 5, weights: {web: 0, code: 0}}]"],
            "one of them above 0",
        ),
        (
            [
                "data.folder=null",
                MIXTURE,
                "data.weight_schedule=[{from_tokens: 5, weights: {web: 1, code: 1}},"
                "{from_tokens: 5, weights: {web: 1, code: 0}}]",
            ],
            "must be above 0 and grow",
        ),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(words: list[str], expected: str):
    assert any(expected in problem for problem in problems_of("run.name=x", *words))

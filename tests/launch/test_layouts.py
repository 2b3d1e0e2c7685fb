"""Changes that make a run fit, and the search over layouts."""

from itertools import pairwise

import pytest

from conf.compose import App, ConfigError, compose
from launch.layouts import ROOM, _layouts, fastest, smallest_changes
from launch.plan import plan
from launch.plan_config import PlanConfig
from launch.predict import Prediction, predict
from train.optimizer_config import OPTIONS
from train.plan import Machine

APP = App("launch_plan", PlanConfig, OPTIONS)
WORDS = (
    "run.name=x", "model=llama3_8b", "parallel.precision=bf16", "cluster=h100", "data.seq_len=4096",
    "batch.global_batch_size=512", "batch.micro_batch_size=4", "cluster.n_devices=64", "total_tokens=1_000_000_000",
)  # fmt: skip


def config_of(*words: str) -> PlanConfig:
    return compose(APP, [*WORDS, *words])


def machine_of(config: PlanConfig) -> Machine:
    n_devices, memory_gib = config.cluster.n_devices, config.cluster.memory_gib
    assert n_devices is not None
    assert memory_gib is not None
    return Machine("GPU", n_devices, 989.4e12, "data sheet", int(memory_gib * 2**30))


def again(words: tuple[str, ...], asked: tuple[str, ...] = ()) -> Prediction:
    """What a person gets who adds the words of a change to those that they had typed."""
    config = config_of(*asked, *words)
    return predict(config.train, machine_of(config))


def test_each_change_makes_the_run_fit_and_is_the_smallest_of_its_key():
    asked = ("parallel=zero2",)
    config = config_of(*asked)
    assert again((), asked).plan.fits is False
    changes = smallest_changes(config.train, machine_of(config))
    assert ("batch.micro_batch_size=2",) in [change.words for change in changes]
    for change in changes:
        typed = again(change.words, asked)
        assert typed.plan.fits
        assert typed.plan.memory == change.prediction.plan.memory


def test_of_several_values_that_would_do_the_nearest_is_proposed():
    config = config_of("parallel=zero2", "model.n_layers=16")
    words = [change.words for change in smallest_changes(config.train, machine_of(config))]
    assert ("batch.micro_batch_size=2",) in words
    assert ("batch.micro_batch_size=1",) not in words


def test_two_keys_are_turned_where_one_is_not_enough():
    asked = ("model=llama3_70b", "batch.micro_batch_size=1")
    config = config_of(*asked)
    changes = smallest_changes(config.train, machine_of(config))
    assert changes
    assert all(len(change.words) == 2 and again(change.words, asked).plan.fits for change in changes)


def test_the_search_finds_the_fastest_layouts_that_fit():
    config = config_of()
    search = fastest(config.train, machine_of(config))
    found = search.best
    assert len(found) == 10
    assert search.n_tried > 100
    times = [change.prediction.step.total for change in found if change.prediction.step]
    assert all(first <= second for first, second in pairwise(times))
    assert all(change.prediction.plan.fits for change in found)
    typed = again(found[0].words)
    assert typed.step == found[0].prediction.step
    for micro in (1, 2, 4):  # nothing that a person would try first is faster and fits
        for stage in (1, 2, 3):
            by_hand = again((f"batch.micro_batch_size={micro}", f"parallel.zero_stage={stage}"))
            assert by_hand.step is not None
            tight = by_hand.plan.memory.total > (1 - ROOM) * 79.6 * 2**30
            assert tight or by_hand.step.total >= times[0]


def test_layouts_that_cannot_exist_are_not_proposed():
    """3 key/value heads cannot be cut in two, and DeepSpeed breaks compiled blocks at ZeRO 3."""
    config = config_of("model.n_heads=24", "model.n_kv_heads=3", "model.d_model=3072", "parallel.compile=inductor")
    found = fastest(config.train, machine_of(config)).best
    assert {change.prediction.config.parallel.tp_size for change in found} == {1}
    assert 3 not in {change.prediction.config.parallel.zero_stage for change in found}


def test_the_table_names_the_words_to_type(capsys: pytest.CaptureFixture[str]):
    plan(config_of("search=true", "cluster.usd_per_device_hour=2.0", "cluster.price_date=2026-11-20"))
    lines = capsys.readouterr().out.splitlines()
    assert "layouts tried; those that fit with 3% of memory to spare, fastest first" in lines[0]
    ranked = lines[2:12]
    assert [int(line[:2]) for line in ranked] == list(range(1, 11))
    for line in lines[-3:]:  # typed, each is accepted, and is the row of its number
        number, *words = line.split()
        assert f"{again(tuple(words)).plan.expected_mfu:.1%}" in ranked[int(number) - 1]


def test_the_search_keeps_away_from_the_brim():
    config = config_of()
    search = fastest(config.train, machine_of(config))
    assert search.n_tight > 0
    assert all(change.prediction.plan.memory.total <= 0.97 * 79.6 * 2**30 for change in search.best)


def test_what_an_expert_would_miss_is_said_with_the_reason(capsys: pytest.CaptureFixture[str]):
    words = ("model=gpt3_1.3b", "data.seq_len=2048", "batch.global_batch_size=96")
    plan(config_of("search=true", *words))
    text = capsys.readouterr().out
    assert "left out: parallel.tp_size=2 and above: model.vocab_size=50257 does not divide" in text
    assert "left out: dp 64: batch.global_batch_size=96 does not divide by it; nearest 64 and 128" in text


def test_changes_come_smallest_first():
    config = config_of("model.n_layers=24")
    changes = smallest_changes(config.train, machine_of(config))
    assert len(changes) > 2
    assert [change.rungs for change in changes] == sorted(change.rungs for change in changes)


def test_three_keys_are_turned_where_two_are_not_enough():
    asked = ("model=llama3_70b", "cluster.n_devices=16", "batch.micro_batch_size=8", "data.seq_len=8192")
    config = config_of(*asked)
    changes = smallest_changes(config.train, machine_of(config))
    assert changes
    assert all(len(change.words) == 3 and again(change.words, asked).plan.fits for change in changes)


def test_a_search_without_a_described_cluster_says_what_is_missing():
    with pytest.raises(ConfigError, match="gpus_per_node, link_bytes_per_second"):
        plan(config_of("search=true", "cluster.link_bytes_per_second=null"))


def test_a_search_in_which_nothing_fits_says_so():
    with pytest.raises(
        ConfigError,
        match=r"on 64 devices fits with 3% to spare: the one that needs least takes \d+.\d GiB of a device's 4.0",
    ):
        plan(config_of("search=true", "cluster.memory_gib=4"))


@pytest.mark.parametrize(
    ("n_devices", "words"),
    [
        (6, "512 does not divide by 3 or 6, .* 6 devices can have; batch.global_batch_size=510 or 516 does, or "
            "cluster.n_devices=4$"),
        (1000, "512 does not divide by 125, 250, 500 or 1000, .*; batch.global_batch_size=1000 does, or "
               "cluster.n_devices=512$"),
    ],
)  # fmt: skip
def test_devices_that_the_batch_does_not_divide_by_are_not_called_too_small(n_devices: int, words: str):
    with pytest.raises(
        ConfigError, match=f"no layout on {n_devices} devices can exist: batch.global_batch_size={words}"
    ):
        plan(config_of("search=true", f"cluster.n_devices={n_devices}"))


def test_another_reason_against_every_layout_is_told_in_the_words_of_its_rule():
    with pytest.raises(ConfigError, match=r"parallel.hpz_size=7 does not divide 64 data-parallel ranks"):
        plan(config_of("search=true", "parallel.zero_stage=3", "parallel.hpz_size=7"))


def test_sizes_that_are_no_powers_of_two_are_searched_where_the_devices_have_them():
    nodes = ("cluster.gpus_per_node=6", "cluster.n_devices=6", "model.d_ff=12288", "batch.global_batch_size=480")
    six = (
        "model.n_heads=24",
        "model.n_kv_heads=24",
        "model.d_model=3072",
        "data.seq_len=3072",
        "model.vocab_size=128256",
    )
    config = config_of(*nodes, *six)
    tried = list(_layouts(config.train, machine_of(config)))
    assert {dict(keys)["parallel.tp_size"] for keys in tried} == {1, 2, 3, 6}
    assert {5, 6} < {dict(keys)["batch.micro_batch_size"] for keys in tried}
    assert all(480 % (6 // (keys["parallel.tp_size"] * keys["parallel.sp_size"])) == 0 for keys in map(dict, tried))


def test_comparing_and_searching_at_once_is_refused():
    with pytest.raises(ConfigError, match="ask one"):
        config_of("search=true", "reproduce=tables")


def test_a_gpu_that_was_found_is_predicted_as_we_describe_it():
    """Named as by nvidia-smi; a board that is none of those described is left alone."""
    config = config_of("cluster=local", "cluster.device=cuda", "cluster.n_devices=8").train
    for name, described in (
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB"),
        ("NVIDIA GB200", "GB200 NVL72"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
    ):
        found = predict(config, Machine(name, 8, 989.4e12, "data sheet", None)).hardware
        assert (found and found.name) == described

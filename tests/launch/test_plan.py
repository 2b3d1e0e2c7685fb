"""The plan: right numbers, at once, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conf.compose import App, compose
from conf.errors import ConfigError
from launch.machine import find_machine
from launch.plan import plan, planned
from launch.plan_config import PlanConfig
from launch.predict import predict
from tests.runs import cpu_seconds_of_commands
from train.__main__ import APP
from train.batch import BatchError
from train.optimizer_config import OPTIONS
from train.plan import GIB, Plan, render, summary_rows

ROOT = Path(__file__).resolve().parents[2]
H100 = ("cluster=h100", "run.name=x")


def plan_of(*overrides: str) -> Plan:
    return planned(compose(APP, [*H100, *overrides])).plan


def test_a_small_plan_by_hand():
    """Llama 3.2 1B, 1 B tokens on 8 GPUs in bf16: every line worked out with a pencil."""
    plan = plan_of(
        "model=llama_1b", "parallel.precision=bf16", "parallel=zero2", "cluster.n_devices=8", "data.seq_len=2048",
        "batch.global_batch_size=512", "batch.micro_batch_size=2", "total_tokens=1_048_576_000",
        "cluster.usd_per_device_hour=2.0", "cluster.price_rule=example", "cluster.price_date=2026-11-20",
    )  # fmt: skip
    n = 1_235_814_400
    assert plan.n_params == n
    assert plan.total_steps == 1000
    assert plan.flops_full_per_token == 6 * plan.n_params_matmul + 12 * 16 * 2048 * 2048
    assert plan.flops_causal_per_token == 6 * plan.n_params_matmul + 6 * 16 * 2048 * 2048
    assert (plan.memory.weights, plan.memory.gradients, plan.memory.optimizer) == (2 * n, n // 2, 12 * n // 8)
    assert plan.seconds == pytest.approx(plan.flops_causal / (8 * 989.4e12 * plan.expected_mfu))
    assert plan.cost_usd == pytest.approx(2.0 * 8 * plan.seconds / 3600)
    assert plan.energy_kwh == pytest.approx(0.7 * 8 * plan.seconds / 3600)


def test_large_figures_are_written_out():
    rows = summary_rows(plan_of("total_tokens=1_000_000_000_000", "model=llama3_8b", "parallel.precision=bf16"))
    assert "e+" not in rows["time"] + rows["energy"]
    assert f"{int(float(rows['energy'].split(' ')[0].replace(',', ''))):,} kWh" in rows["energy"]


def test_a_price_without_a_rule_is_not_called_no_price():
    priced = ("cluster.usd_per_device_hour=2.0", "cluster.price_date=2026-11-20")
    assert "USD (cluster.price_rule is not given, 2026-11-20)" in summary_rows(plan_of(*priced))["cost"]
    assert "USD (spot, 2026-11-20)" in summary_rows(plan_of(*priced, "cluster.price_rule=spot"))["cost"]
    assert summary_rows(plan_of())["cost"] == "no price given"


def test_a_plan_says_that_masked_documents_make_its_count_too_high(capsys: pytest.CaptureFixture[str]):
    for masked in (True, False):
        plan(
            compose(
                App("launch_plan", PlanConfig, OPTIONS),
                [*H100, "parallel.precision=bf16", f"data.mask_documents={str(masked).lower()}"],
            )
        )
        assert ("a run counts inside documents alone" in capsys.readouterr().out) == masked


def test_time_is_predicted_where_the_cluster_is_described_and_assumed_elsewhere():
    predicted = plan_of("model=llama_1b", "parallel.precision=bf16")
    assert predicted.mfu_is == "predicted"
    assert 0.25 < predicted.expected_mfu < 0.6
    assumed = plan_of("model=llama_1b", "parallel.precision=bf16", "cluster.link_bytes_per_second=null")
    assert (assumed.mfu_is, assumed.expected_mfu) == ("assumed", pytest.approx(0.4))
    assert assumed.seconds == pytest.approx(assumed.flops_causal / (989.4e12 * 0.4))


def test_the_peak_is_that_of_the_precision():
    assert plan_of("parallel.precision=bf16").machine.peak_flops_per_second == 989.4e12
    assert plan_of("parallel.precision=fp32").machine.peak_flops_per_second == 66.9e12


def test_memory_counts_what_each_option_keeps():
    """A second copy of the weights, one moment instead of two, gathered weights, buffers of collectives, a reserve."""
    small = ("model=llama_1b", "parallel.precision=bf16", "cluster.n_devices=8", "batch.global_batch_size=64")
    plain, muon = plan_of(*small).memory, plan_of(*small, "optimizer=muon").memory
    matrices = 16 * (2 * 2048 * (2048 + 512) + 3 * 2048 * 8192)
    assert plain.optimizer - muon.optimizer == 4 * matrices // 8
    three, hpz = (plan_of(*small, "parallel=zero3", *more).memory for more in ((), ("parallel.hpz_size=4",)))
    n = 1_235_814_400
    assert (three.second_copy, hpz.second_copy) == (0, 2 * n // 4)
    assert (plain.gathered, three.gathered) == (0, 2 * 1_000_000_000)
    assert plan_of(*small, "parallel.tp_size=2").memory.buckets > plain.buckets == 0
    assert three.buckets > 2 * 2 * 50_000_000
    assert plain.reserve == 2 * 2**30
    assert plan_of("cluster.device=cpu", "cluster.peak_flops_per_second=1.0e+11").memory.reserve == 0


def test_what_was_asked_and_what_is_used_stand_side_by_side():
    text = render(plan_of("total_tokens=1_000_000"))
    assert "1,000,000 asked, 1,007,616 used (whole steps)" in text
    assert "asked" not in render(plan_of("total_tokens=819_200"))


def test_a_run_that_does_not_fit_is_said_not_to():
    plan = plan_of("model=llama_1b", "model.n_layers=200")
    assert plan.fits is False
    assert "DOES NOT FIT" in render(plan)
    assert plan_of("model=debug").fits is True


def test_a_batch_that_does_not_divide_over_the_cluster_is_refused():
    with pytest.raises(BatchError, match="3 data-parallel ranks = 24; nearest global batch sizes: 24 and 48"):
        plan_of("cluster.n_devices=3")


@pytest.mark.parametrize("words", [["experiment=debug"], ["experiment=llama_100m", "cluster=h200"]])
def test_the_command_answers_within_two_seconds(words: list[str], tmp_path: Path):
    started = cpu_seconds_of_commands()
    done = subprocess.run(
        [sys.executable, "-m", "launch", "plan", *words],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in (
        "parameters",
        "tokens",
        "compute",
        "layout",
        "machine",
        "memory of",
        "time",
        "speed",
        "cost",
        "how sure",
    ):
        assert f"  {row}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "data not prepared yet" in done.stdout
    assert cpu_seconds_of_commands() - started < 4  # two seconds on an idle machine


def test_every_part_of_memory_and_time_is_shown(capsys: pytest.CaptureFixture[str]):
    words = (
        "model=llama_1b",
        "parallel=zero3",
        "parallel.precision=bf16",
        "cluster.n_devices=16",
        "data.seq_len=2048",
        "batch.micro_batch_size=2",
    )
    asked = compose(App("launch_plan", PlanConfig, OPTIONS), [*H100, *words])
    plan(asked)
    text = capsys.readouterr().out
    found = planned(asked.train).plan
    for part in ("weights", "gathered", "gradients", "masters, moments", "activations", "logits", "communication"):
        assert f"\n    {part} " in text
    for part in ("matrix products", "attention", "ZeRO 3, exposed", "optimizer", "nodes waiting", "total"):
        assert f"  {part} " in text
    assert f"FITS, spare{(79.6 * GIB - found.memory.total) / GIB:>15.2f} GiB" in text
    assert "half were within 3.6% of the predicted step time" in " ".join(text.split())


def test_a_gpu_whose_peak_is_not_known_is_refused_not_measured_on_this_computer():
    with pytest.raises(ConfigError, match=r"set cluster.fp32_flops_per_second to the dense figure"):
        plan_of("cluster.fp32_flops_per_second=null", "parallel.precision=fp32")
    with pytest.raises(ConfigError, match=r"set cluster.bf16_flops_per_second to the dense figure"):
        plan_of("cluster.bf16_flops_per_second=null", "parallel.precision=bf16")


def test_a_prediction_can_be_kept_and_compared_later():
    config = compose(APP, [*H100, "model=llama_1b", "parallel.precision=bf16", "cluster.n_devices=4"])
    found = predict(config, find_machine(config.cluster, config.parallel.precision))
    tree = json.loads(json.dumps(found.to_tree()))
    parts = dict(tree["step_seconds"])
    total = parts.pop("total")
    assert total == pytest.approx(sum(parts.values()))
    assert tree["tokens_per_second"] * total == pytest.approx(found.plan.tokens_per_step)
    assert tree["memory_bytes"]["total"] == found.plan.memory.total
    assert (tree["hardware"], tree["n_devices"]) == ("H100 SXM", 4)


def test_tensor_parallelism_over_nodes_is_said(capsys: pytest.CaptureFixture[str]):
    words = ("model=llama2_13b", "model.n_heads=32", "model.n_kv_heads=32", "parallel.tp_size=16", "data.seq_len=2048")
    plan(compose(App("launch_plan", PlanConfig, OPTIONS), [*H100, *words, "cluster.n_devices=16"]))
    assert "TP ACROSS NODES of 8" in capsys.readouterr().out


def test_the_update_counts_where_it_needs_more_than_activations():
    """bf16 at ZeRO 1: gradients of one backward beside their sums, and both joined when they are reduced."""
    small = ("model=llama_1b", "parallel.precision=bf16", "cluster.n_devices=8", "batch.micro_batch_size=1")
    n = 1_235_814_400
    once, twice = (plan_of(*small, f"batch.global_batch_size={rows}", "data.seq_len=128").memory for rows in (8, 16))
    assert (once.gradients, twice.gradients) == (4 * n, 6 * n)
    assert (once.update, twice.update) == (2 * n + 6 * 500_000_000, 6 * 500_000_000)
    assert once.total == 2 * n + 4 * n + once.optimizer + once.update + once.reserve


def test_an_unknown_command_is_answered_with_those_there_are():
    done = subprocess.run([sys.executable, "-m", "launch", "plam"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "`plam` is not one of the commands" in done.stderr
    assert "python -m launch plan" in done.stderr

"""`launch advise`: what to train for a budget, against a surface whose law is known, over real shapes."""

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.app import App
from conf.check import build, to_tree
from conf.compose import compose
from conf.errors import ConfigError
from data_prep.manifest import Manifest
from launch.advise import advise, command_words
from launch.advise_base import sweep_words
from launch.advise_config import AdviseConfig, BudgetConfig, ShapeConfig
from launch.advise_law import Candidates, Supply, best, regret
from launch.advise_made import Advice, advice
from launch.advise_rows import Evidence, evidence
from launch.advise_text import advice_text
from launch.scaling.law import Law
from launch.scaling.repeated import Repeated
from launch.submit_config import SubmitConfig
from model.arithmetic import count_parameters, flops_per_token
from model.config import ModelConfig
from tests.launch.scaling.surfaces import ledger
from train.__main__ import APP as TRAIN
from train.optimizer_config import OPTIONS

APP = App("launch_advise", AdviseConfig, OPTIONS)
TRUE = Law(E=1.2, A=79.0, B=200.0, alpha=0.35, beta=0.33)
SEQ = 128
BASE = (
    "run.name=advised",
    "model={vocab_size: 512, n_layers: 2, d_model: 64, n_heads: 4, n_kv_heads: 4, d_ff: 192}",
    f"data={{folder: data/none, seq_len: {SEQ}}}",
    "batch={global_batch_size: 8, micro_batch_size: 4}",
    "cluster={device: cpu, peak_flops_per_second: 1.0e+12, expected_mfu: 0.5, memory_gib: 8}",
    "fit.resamples=40",
)
PRICE = ("cluster.usd_per_device_hour=2", "cluster.price_rule=rented", "cluster.price_date=2026-11-01")
SHAPES = ((32, 2), (64, 3), (96, 4), (128, 5), (192, 6), (256, 7))


def network(width: int, layers: int, heads_of: int = 16) -> ModelConfig:
    heads = width // heads_of
    return ModelConfig(
        vocab_size=512, n_layers=layers, d_model=width, n_heads=heads, n_kv_heads=heads, d_ff=3 * width
    )  # fmt: skip


def a_run(model: ModelConfig, tokens: int, loss: float, **changed: Any) -> dict[str, Any]:
    """As `summary.json` has it."""
    counts, (full, causal) = count_parameters(model), flops_per_token(model, SEQ)
    return {
        "schema_version": 1,
        "run_name": f"w{model.d_model}-{tokens}",
        "status": "finished",
        "model": {"d_model": model.d_model, "n_layers": model.n_layers, "vocab_size": 512},
        "n_params": counts.n_params,
        "n_params_matmul": counts.n_params_matmul,
        "n_params_non_embedding": counts.n_params_non_embedding,
        "seq_len": SEQ,
        "tokens_seen": tokens,
        "unique_tokens": tokens,
        "flops_full": full * tokens,
        "flops_causal": causal * tokens,
        "val_loss": loss,
        "bits_per_byte": loss / 3,
        "schedule_finished": True,
        "seed": 1,
        "data": {"tokenizer_sha256": "t" * 64, "validation_sha256": "v" * 64},
    } | changed


def sweep(noise: float = 0.004, seed: int = 3) -> list[dict[str, Any]]:
    """24 runs of six shapes on the known surface."""
    rng, made = np.random.default_rng(seed), []
    for width, layers in SHAPES:
        model = network(width, layers)
        n = float(count_parameters(model).n_params_matmul)
        for tokens in (2**20, 2**22, 2**23, 2**25):
            loss = float(TRUE.loss(n, float(tokens))) * math.exp(noise * rng.standard_normal())
            made.append(a_run(model, tokens, loss))
    return made


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger(tmp_path_factory.mktemp("advise") / "ledger.jsonl", sweep())


def config_of(rows: Path, *words: str) -> AdviseConfig:
    return compose(APP, [*BASE, f"ledger={rows}", *words])


@pytest.fixture(scope="module")
def found(rows: Path) -> Advice:
    """For 1e14 FLOPs, which is inside of what was sampled."""
    return advice(config_of(rows, "budget.flops=1e14", "supply=60_000_000"))


@pytest.fixture(scope="module")
def config(rows: Path) -> AdviseConfig:
    return config_of(rows, "budget.flops=1e14", "shape.aspect=28")


@pytest.fixture(scope="module")
def known(config: AdviseConfig) -> Evidence:
    """Of the rows, worked out once."""
    return evidence(config)


def spending(config: AdviseConfig, **budget: float) -> AdviseConfig:
    return replace(config, budget=BudgetConfig(**budget))


def by_hand(width: int, layers: int) -> tuple[int, int]:
    """(N in matmuls, FLOPs of a token) of a gated network whose keys are not shared, its attention causal."""
    n = layers * (4 * width * width + 3 * width * 3 * width) + 512 * width
    return n, 6 * n + 6 * layers * width * SEQ


def every_shape(aspect: float) -> list[tuple[int, int]]:
    """Of whole heads of 16, a quarter shallower to a quarter deeper than the aspect says."""
    depths = {
        w: {max(1, round(max(1, w / aspect) * f)) for f in (0.8, 0.9, 1, 1.12, 1.25)} for w in range(16, 1025, 16)
    }
    return [(width, layers) for width in depths for layers in depths[width]]


def test_the_advised_run_is_near_the_best_of_the_true_law_and_its_intervals_hold_the_truth(found: Advice):
    true_best = min(
        (float(TRUE.loss(float(n), 1e14 / flops)), float(n), 1e14 / flops)
        for n, flops in (by_hand(width, layers) for width, layers in every_shape(28))
    )
    really = float(TRUE.loss(found.shape.n, float(found.tokens)))
    assert really - true_best[0] < 2e-3  # a fifth of what runs scatter by
    assert found.loss_interval.holds(really, 95)
    assert found.run_interval.low80 < found.loss_interval.low80
    assert found.loss == pytest.approx(really, rel=2e-3)
    closed_n, closed_d = TRUE.optimum(1e14, found.evidence.family.cost)
    assert 0.85 * found.regret.n.low95 < closed_n < 1.15 * found.regret.n.high95
    assert 0.85 * found.regret.d.low95 < closed_d < 1.15 * found.regret.d.high95
    assert found.outside.where == ()


def test_the_advised_shape_is_real_and_the_tokens_are_whole_steps_within_the_budget(found: Advice):
    model = found.shape.model
    assert model.problems() == []
    assert (model.head_width, model.d_model, model.n_kv_heads) == (16, 16 * model.n_heads, model.n_heads)
    assert model.d_ff == 3 * model.d_model
    n, flops = by_hand(model.d_model, model.n_layers)
    assert (found.shape.n, found.shape.flops_per_token) == (n, flops)
    step = 8 * SEQ
    assert found.tokens % step == 0
    assert 1e14 - flops * step < flops * found.tokens <= 1e14
    assert found.epochs == found.tokens / 60_000_000


def test_it_is_the_best_of_all_real_shapes_counted_one_by_one(config: AdviseConfig, known: Evidence):
    found = advice(config, known)
    law, lowest = found.evidence.family.fit.law, []
    for width, layers in every_shape(28):
        n, flops = by_hand(width, layers)
        d = int(1e14 // (flops * 8 * SEQ)) * 8 * SEQ
        loss = law.E + law.A / n**law.alpha + law.B / d**law.beta
        lowest.append((float(loss), width, layers, d))
    model = found.shape.model
    assert min(lowest)[1:] == (model.d_model, model.n_layers, found.tokens)
    assert min(lowest)[0] == pytest.approx(found.loss, rel=1e-12)


def test_the_words_make_the_advised_run_for_train(found: Advice):
    typed = [*BASE, "runs=x", "budget.flops=1e14", "supply=60_000_000", "model.n_layers=7", "extrapolate=2"]
    words = command_words(found, typed)
    assert shlex.split(advice_text(found, words).splitlines()[-1])[:3] == ["python", "-m", "train"]
    assert shlex.split(advice_text(found, words).splitlines()[-1])[3:] == words
    composed = compose(TRAIN, [word for word in words if not word.startswith("fit.")])
    assert words == [word for word in words if not word.startswith("fit.")]
    assert composed == found.prediction.config
    assert count_parameters(composed.model).n_params == found.prediction.plan.n_params
    assert composed.total_tokens == found.tokens


def test_money_and_hours_buy_what_the_predicted_speed_gives(config: AdviseConfig, known: Evidence):
    priced = replace(config, cluster=replace(config.cluster, usd_per_device_hour=2.0, price_date="2026-11-01"))
    by_hours, by_usd = advice(spending(config, device_hours=0.05), known), advice(spending(priced, usd=0.1), known)
    assert (by_hours.shape, by_hours.tokens) == (by_usd.shape, by_usd.tokens)
    plan = by_usd.prediction.plan
    flops = by_usd.shape.flops_causal
    assert plan.device_hours == pytest.approx(flops * by_usd.tokens / (1e12 * 0.5) / 3600)
    assert plan.cost_usd is not None
    assert plan.cost_usd == 2 * plan.device_hours
    assert 0.1 - 2 * flops * 8 * SEQ / 0.5e12 / 3600 < plan.cost_usd <= 0.1 * (1 + 1e-9)


def test_on_a_cluster_it_is_cut_laid_out_and_paid_for(rows: Path):
    words = [
        "ledger=x",
        "run.name=big",
        "model=llama_100m",
        "data={folder: data/none, seq_len: 1024}",
        "batch.global_batch_size=256",
        "parallel={precision: bf16, tp_size: 4}",
        "cluster=h100",
        "cluster.n_devices=16",
        *PRICE,
        "fit.resamples=40",
        "budget.usd=400",
        "extrapolate=1e9",
    ]
    found = advice(compose(APP, [*words[1:], f"ledger={rows}"]))
    model, plan = found.shape.model, found.prediction.plan
    assert model.n_kv_heads % 4 == 0
    assert model.d_ff % 256 == 0
    assert (model.n_heads, model.head_width) == (3 * model.n_kv_heads, 64)
    assert plan.mfu_is == "predicted"
    assert plan.cost_usd is not None
    assert 395 < plan.cost_usd <= 400.0001
    text = advice_text(found, command_words(found, words))
    assert "OUTSIDE of what was sampled, allowed by extrapolate=1e+09: N " in text
    assert "400.00 USD for training alone (rented, 2026-11-01)" in text or "399" in text
    assert "BEWARE      model.vocab_size=32768, but the rows have 512" in text
    line = text.splitlines()[-1]
    assert "python -m launch submit" in line
    job = App("launch_submit", SubmitConfig, OPTIONS)
    submitted = compose(job, shlex.split(line)[4:])
    assert submitted.train == found.prediction.config
    assert submitted.job.nodes == 2
    quick = advice(compose(APP, [*words[1:], f"ledger={rows}", "search=true"]))
    assert quick.prediction.plan.fits
    assert quick.loss < found.loss  # four ranks share each of its small layers in the layout as given
    assert "parallel.tp_size=1" in command_words(quick, words)


def test_outside_of_what_was_sampled_no_loss_is_named_unless_asked_for(config: AdviseConfig, known: Evidence):
    with pytest.raises(ConfigError) as refused:
        advice(spending(config, flops=2e16), known)
    told = str(refused.value)
    sampled = max(by_hand(*shape)[1] * 2**25 for shape in SHAPES)
    assert f"FLOPs {2e16 / sampled:.3g} times the most sampled ({sampled:.3g})" in told
    assert "extrapolate=16 to see it" in told
    assert not re.search(r"loss (of )?\d", told)
    with pytest.raises(ConfigError, match=r"D .* times the largest sampled"):
        advice(replace(spending(config, flops=2e16), extrapolate=10.0), known)
    far = advice(replace(spending(config, flops=2e16), extrapolate=16.0), known)
    assert far.outside.factor == pytest.approx(2e16 / sampled, rel=0.05)
    assert "allowed by extrapolate=16: N" in advice_text(far, [])


def test_the_way_back_finds_the_fewest_flops_that_reach_a_loss(config: AdviseConfig, known: Evidence):
    found = advice(spending(config, loss=2.6), known)
    law = found.evidence.family.fit.law
    assert found.loss <= 2.6 < found.loss + 1e-4

    def least(law: Law) -> float:
        """Over all shapes: tokens by the law, solved for them."""
        needed = []
        for width, layers in every_shape(28):
            n, flops = by_hand(width, layers)
            left = 2.6 - law.E - law.A / n**law.alpha
            needed += [flops * (law.B / left) ** (1 / law.beta)] if left > 0 else []
        return min(needed)

    step = found.shape.flops_per_token * 8 * SEQ
    assert least(law) <= found.flops < least(law) + step
    assert found.reach is not None
    assert found.reach.flops.holds(least(TRUE), 95)
    assert found.reach.reached == 1
    assert "FLOPs" in advice_text(found, [])


def test_a_loss_that_nothing_reaches_is_refused_with_the_least_that_can_be(config: AdviseConfig, known: Evidence):
    with pytest.raises(ConfigError, match=r"E = 1\.\d+ \(95 % interval 1\.\d+ to 1\.\d+\) is what no size"):
        advice(spending(config, loss=1.0), known)
    with pytest.raises(ConfigError, match="1,000,000 unique tokens, however often") as refused:
        advice(replace(spending(config, loss=1.9), supply=1_000_000), known)
    law = known.family.fit.law
    usable = Repeated(law, 15.39, 5.31)
    g = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    parameters = g * (g * 1e6) ** (law.beta / law.alpha)
    least = law.E + law.A / (parameters * 6.31) ** law.alpha + law.B / (1e6 * 16.39) ** law.beta
    assert float(usable.loss(1e30, 1e30, 1e6)) == pytest.approx(float(least))
    assert f"just above {least:.4g}" in str(refused.value)


def test_text_that_repeats_is_worth_less_and_the_shape_follows(config: AdviseConfig, known: Evidence):
    fresh, scarce = advice(config, known), advice(replace(config, supply=4_000_000), known)
    law = Repeated(scarce.evidence.family.fit.law, 15.39, 5.31)
    lowest = []
    for width, layers in every_shape(28):
        n, flops = by_hand(width, layers)
        d = float(int(1e14 // (flops * 8 * SEQ)) * 8 * SEQ)
        lowest.append((float(law.loss(float(n), d, min(d, 4e6))), width, layers))
    assert min(lowest)[1:] == (scarce.shape.model.d_model, scarce.shape.model.n_layers)
    assert min(lowest)[0] == pytest.approx(scarce.loss, rel=1e-12)
    assert scarce.loss > fresh.loss
    assert scarce.epochs is not None
    assert scarce.epochs > 1
    assert "as published for C4 (Muennighoff et al. 2023, arXiv 2305.16264): 0 rows repeat" in advice_text(scarce, [])


def test_half_lives_come_from_rows_that_repeat_where_these_tell(tmp_path: Path):
    worn = Repeated(TRUE, 6.0, 1e4)
    repeats = []
    for width, layers in SHAPES[1:5]:
        model = network(width, layers)
        n = float(count_parameters(model).n_params_matmul)
        for epochs in (2, 4, 8, 16, 32):
            loss = float(worn.loss(n, float(epochs * 2**20), float(2**20)))
            tokens = epochs * 2**20
            repeats.append(a_run(model, tokens, loss, run_name=f"rep-{width}-{epochs}", unique_tokens=2**20))
    file = ledger(tmp_path / "l.jsonl", [*sweep(noise=1e-4), *repeats])
    known = evidence(config_of(file, "budget.flops=1e14", "fit.rows.divergence_margin=10"))
    assert known.wear.r_d == pytest.approx(6.0, rel=0.1)
    assert known.wear.source.endswith("from 20 rows that repeat")
    assert dict(known.dropped)["rep-64-2"].startswith("2 epochs")


def test_regret_is_what_each_law_would_have_done_better():
    """Two laws in equal number, one of which wants networks a hundred times larger."""
    n = np.geomspace(1e5, 1e9, 801)
    shapes, supply = Candidates(n, 6 * n, 1), Supply(np.inf, 15.39, 5.31)
    small, large = Law(1.0, 20.0, 400.0, 0.3, 0.3), Law(1.0, 80.0, 100.0, 0.3, 0.3)
    laws = Law(*(np.repeat([getattr(small, k), getattr(large, k)], 50) for k in ("E", "A", "B", "alpha", "beta")))
    advised = best(small, supply, shapes, 1e18)
    found = regret(laws, supply, shapes, 1e18, advised)

    def alone(law: Law) -> float:
        return float(law.loss(*law.optimum(1e18)))

    lost = float(large.loss(n[advised], 1e18 / 6 / n[advised])) - alone(large)
    assert found.if_low == pytest.approx(0, abs=1e-4)
    assert found.if_high == pytest.approx(lost, rel=1e-3)
    assert found.high90 == pytest.approx(lost, rel=1e-3)
    assert found.n.low80 == pytest.approx(float(small.optimum(1e18)[0]), rel=0.03)
    assert found.n.high80 == pytest.approx(float(large.optimum(1e18)[0]), rel=0.03)
    assert lost > 0.05


def test_the_data_at_hand_says_how_much_text_there_is_and_must_be_of_the_same_tokenizer(
    workplace: Path, rows: Path, tmp_path: Path
):
    folder = workplace / "data" / "tiny"
    manifest = Manifest.load(folder)
    with pytest.raises(ConfigError, match="tokenizer tttttttttttt"):
        advice(config_of(rows, "budget.flops=1e12", f"data.folder={folder}"))
    same = [one | {"data": {"tokenizer_sha256": manifest.tokenizer_sha256}} for one in sweep()]
    file = ledger(tmp_path / "l.jsonl", same)
    found = advice(config_of(file, "budget.flops=1e13", f"data.folder={folder}", "extrapolate=4"))
    assert found.supply.tokens == sum(shard.tokens for shard in manifest.shards_of("train"))


def test_folders_of_runs_and_their_ledger_say_the_same(rows: Path, tmp_path: Path, known: Evidence):
    for one in sweep():
        folder = tmp_path / "runs" / one["run_name"]
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(one))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "summary.json").write_text("[1]")
    ours = evidence(compose(APP, [*BASE, f"runs={tmp_path / 'runs'}", "budget.flops=1e14"]))
    assert ours.family.fit.law.alpha == pytest.approx(known.family.fit.law.alpha, rel=1e-6)
    assert {(one.d_model, one.n_layers, one.seq_len, one.vocab_size) for one in ours.sampled} == {
        (*shape, SEQ, 512) for shape in SHAPES
    }
    assert "broken" in ours.dropped[0][0]


def test_rows_that_carry_no_advice_are_refused(rows: Path, tmp_path: Path, config: AdviseConfig):
    silent = ledger(tmp_path / "s.jsonl", [{k: v for k, v in one.items() if k != "model"} for one in sweep()])
    with pytest.raises(ConfigError, match=r"shape.aspect=D_MODEL/N_LAYERS"):
        advice(replace(config, ledger=str(silent), shape=ShapeConfig()))
    two = ledger(tmp_path / "two.jsonl", sweep()[:2])
    with pytest.raises(ConfigError, match="2 usable rows"):
        advice(replace(config, ledger=str(two)))
    with pytest.raises(ConfigError, match=r"runs=.*none"):
        advice(replace(config, ledger=None, runs=str(tmp_path / "none")))


def test_what_the_machine_cannot_do_is_refused(config: AdviseConfig, known: Evidence):
    with pytest.raises(ConfigError, match=r"no width up to 65_536 can be cut.*model.vocab_size=512 does not divide"):
        advice(replace(config, parallel=replace(config.parallel, tp_size=3), cluster=replace(config.cluster)), known)
    with pytest.raises(ConfigError, match=r"supply: 900 unique tokens are less than one step"):
        advice(replace(config, supply=900), known)
    with pytest.raises(ConfigError, match="does not buy one step of 1,024 tokens of the smallest shape"):
        advice(spending(config, flops=1e3), known)
    with pytest.raises(ConfigError, match="search=true compares predicted times"):
        advice(replace(config, search=True), known)
    warm = replace(config, schedule=replace(config.schedule, warmup_tokens=10**9))
    with pytest.raises(ConfigError, match=r"of the advised run: schedule.warmup_tokens"):
        advice(warm, known)
    with pytest.raises(ConfigError, match="total_tokens is what is advised"):
        advise(config, ["total_tokens=5"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"budget": BudgetConfig(flops=1e14, usd=3.0)}, "given: budget.flops= and budget.usd="),
        ({"budget": BudgetConfig()}, "given: none of them"),
        ({"budget": BudgetConfig(flops=-1.0)}, "budget.flops=-1.0 must be above 0"),
        ({"budget": BudgetConfig(usd=5.0)}, "budget.usd=5 needs a price"),
        ({"runs": "a"}, "given: runs= and ledger="),
        ({"ledger": None}, "given: none of them"),
        ({"extrapolate": 0.5}, "extrapolate=0.5 is a factor of at least 1"),
        ({"supply": 0}, "supply=0 must be at least 1 token"),
        ({"shape": ShapeConfig(aspect=-2.0)}, "shape.aspect=-2.0 must be above 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(config: AdviseConfig, changed: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        build(AdviseConfig, to_tree(replace(config, **changed)))
    assert said in str(caught.value)


def test_it_is_asked_from_the_command_line(rows: Path):
    words = [sys.executable, "-m", "launch", "advise", *BASE, f"ledger={rows}", "budget.flops=1e14"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("advice for 1e+14 FLOPs (causal)\n  by the law of 24 runs: E 1.")
    assert "inside what was sampled" in done.stdout


def test_what_is_not_typed_is_as_the_sweep_had_it(tmp_path: Path):
    """The largest cell that is not held out; what is of one run alone, such as its folder, is not carried."""
    alone = ["run.folder=sweeps/s/runs", "run.labels.sweep=s", "cluster.device=cpu", "checkpoint.keep_steps=[5]"]
    common = ["schedule=wsd", "data.seq_len=128", "optimizer.beta2=.9", "model.init=mup", "model.mup_base_width=32"]
    cells = [
        {"run": f"d{width}", "n_params_matmul": width, "tokens": 10, "held_out": width == 96,
         "words": [*alone, *common, f"model.d_model={width}", "total_tokens=10"]}
        for width in (32, 64, 96)
    ]  # fmt: skip
    choice = {"loss": "bits_per_byte", "delta": 0.01, "rows": {"min_tokens": 5e5, "max_flops": None}}
    (tmp_path / "plan.json").write_text(json.dumps({"fit": choice, "cells": [*cells, {"run": "strange"}, 3]}))
    asked = f"ledger={tmp_path / 'ledger.jsonl'}"
    words, source = sweep_words([asked, "optimizer.beta2=.95", "fit.delta=0.1"])
    law = ['fit.loss="bits_per_byte"', "fit.rows.min_tokens=500000.0"]
    kept = ["schedule=wsd", "data.seq_len=128", "model.init=mup", "model.mup_base_width=32", "model.d_model=64"]
    assert words == [*law, *kept]
    assert source == f"d64, the largest cell of {tmp_path / 'plan.json'}"
    assert sweep_words([f"runs={tmp_path / 'runs'}", "model=llama_100m", "fit.delta=1"])[0] == [
        *law, "schedule=wsd", "data.seq_len=128", "optimizer.beta2=.9"
    ]  # fmt: skip
    assert sweep_words([asked, "experiment=debug"]) == ([], "")
    for damaged in ("{", "[]", '{"cells": 3}', '{"cells": [{"words": [1]}]}'):
        (tmp_path / "plan.json").write_text(damaged)
        assert sweep_words([asked]) == ([], "")

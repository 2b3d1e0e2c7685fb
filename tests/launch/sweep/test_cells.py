"""Axes become cells: whole configurations of `train`, of the size, length, rate and beginning that was asked for."""

import dataclasses
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from launch.again import TRAIN
from launch.sweep.cells import Cell, cells
from launch.sweep.config import CELL
from launch.sweep.rules import Rule, Setting, micro_batch, sequences, setting, warmup
from launch.sweep.table import remarks
from model.arithmetic import count_parameters, flops_per_token
from tests.launch.sweep.words import APP, sweep_of
from train.batch import solve_batch
from train.config import TrainConfig
from train.schedule import lr_of

ROOT = Path(__file__).resolve().parents[3]
MUP = ("model.init=mup", "model.mup_base_width=32", "model.mup_base_head_dim=8")


def made(*words: str) -> list[Cell]:
    return cells(sweep_of(*words))[0]


def rates(config: TrainConfig) -> list[float]:
    size = config.batch.global_batch_size
    batch = solve_batch(
        global_batch_size=size, micro_batch_size=size, dp_size=1, seq_len=config.data.seq_len,
        total_tokens=config.total_tokens,
    )  # fmt: skip
    return [lr_of(step, config, batch) for step in range(1, batch.total_steps + 1)]


def test_every_combination_is_a_cell_cheap_ones_first_and_held_out_ones_last():
    found = made(
        "sweep.seeds=[0,1]", "sweep.lr_factors=[0.5,1]", "sweep.held_out=[{d_model: 8, n_layers: 1, tokens: 5120}]"
    )
    assert len(found) == 2 * 2 * 2 * 2 + 1
    assert len({cell.name for cell in found}) == len(found)
    own = [cell.own_flops_causal for cell in found[:-1]]
    assert own == sorted(own)
    assert [cell.held_out for cell in found] == [False] * 16 + [True]
    assert {cell.config.optimizer.peak_lr for cell in found} == {0.003, 0.0015}


def test_words_of_a_cell_compose_to_its_configuration():
    for cell in made("sweep.held_out=[{d_model: 64, n_layers: 2, tokens: 5120}]"):
        assert compose(TRAIN, cell.words()) == cell.config


def test_budgets_of_compute_give_every_size_as_many_tokens_as_they_pay_for():
    found = made("sweep.tokens=[]", "sweep.flops=[1.0e+9,3.0e+9]", "sweep.branch=false")
    assert len(found) == 4
    for cell in found:
        per_token = flops_per_token(cell.config.model, 32)[1]
        budget = min((1e9, 3e9), key=lambda flops: abs(flops - cell.flops_causal))
        assert 0 <= cell.flops_causal - budget < per_token * cell.tokens_per_step
        assert cell.flops_causal == per_token * cell.tokens


def test_lengths_may_be_multiples_of_the_parameters():
    for cell in made("sweep.tokens=[]", "sweep.tokens_per_param=[2]"):
        assert 0 <= cell.tokens - 2 * count_parameters(cell.config.model).n_params_matmul < cell.tokens_per_step


def test_longer_cells_begin_where_a_shorter_one_leaves_the_constant_rate():
    found = {cell.name: cell for cell in made("sweep.tokens=[2560,5120,10240]")}
    for cell in found.values():
        if cell.parent is None:
            assert (cell.shared_steps, cell.root, cell.config.run.branch_from) == (0, cell.name, None)
            continue
        parent = found[cell.parent]
        assert cell.config.run.branch_from == f"sweeps/tiny/runs/{parent.name}"
        mine, theirs, shared = rates(cell.config), rates(parent.config), cell.shared_steps
        assert mine[:shared] == theirs[:shared]
        assert mine[shared] != theirs[shared]
        assert shared in parent.config.checkpoint.keep_steps
        assert parent.root == cell.root
    assert sum(cell.own_steps for cell in found.values()) == 2 * (40 + 2 + 4)  # the longest, and cooldowns


@pytest.mark.parametrize("words", [("sweep.branch=false",), ("schedule=cosine",), ("sweep.rule=step_law",)])
def test_nothing_is_shared_where_the_rates_differ(words: tuple[str, ...]):
    assert all(cell.parent is None and cell.root == cell.name for cell in made(*words))


def test_shapes_keep_the_proportions_of_the_base():
    (cell,) = made("sweep.shapes=[{d_model: 96, n_layers: 5}]", "sweep.tokens=[5120]")
    model = cell.config.model
    assert (model.n_heads, model.n_kv_heads, model.d_ff, model.head_width, model.n_layers) == (12, 6, 192, 8, 5)
    (cell,) = made("sweep.shapes=[{d_model: 40, n_layers: 1, n_kv_heads: 1, d_ff: 72}]", "sweep.tokens=[5120]")
    assert (cell.config.model.n_heads, cell.config.model.n_kv_heads, cell.config.model.d_ff) == (5, 1, 72)


def test_families_are_the_base_with_their_words():
    found = made("sweep.families={gelu: ['model.mlp=gelu']}", "sweep.tokens=[5120]")
    assert {cell.family: str(cell.config.model.mlp) for cell in found} == {"transformer": "swiglu", "gelu": "gelu"}
    assert all(cell.config.run.labels == {"family": cell.family, "sweep": "tiny"} for cell in found)


def test_warm_up_follows_the_size_and_is_cut_to_the_shortest_run():
    words = ("sweep.warmup_tokens_per_param=0.1", "sweep.max_warmup_ratio=0.2")
    for cell in made(*words, "sweep.held_out=[{d_model: 64, n_layers: 4, tokens: 51200}]"):
        asked = int(min(0.1 * cell.counts.n_params_matmul, 0.2 * 2560))
        assert cell.config.schedule.warmup_tokens == asked


def test_rules_are_those_of_their_papers():
    base = Setting(3e-3, 8192, 0.95)
    assert setting(Rule.fixed, base, 10**8, 10**8, 10**9) == base
    at_origin = setting(Rule.porian, base, 108_000_000, 1, 1)
    assert at_origin.peak_lr == pytest.approx(0.0047)
    assert at_origin.tokens_per_step == pytest.approx(160 * 2048)
    assert at_origin.beta2 == 0.95
    eighth = setting(Rule.porian, base, 13_500_000, 1, 1)
    assert (eighth.peak_lr, eighth.tokens_per_step) == (pytest.approx(0.0094), pytest.approx(40 * 2048))
    assert eighth.beta2 == 0.99
    step = setting(Rule.step_law, base, 1, 10**9, 10**11)
    assert step.peak_lr == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert step.tokens_per_step == pytest.approx(0.58 * 1e11**0.571)


def test_batches_are_whole_and_can_be_shared_out():
    assert [sequences(size, 32, 4) for size in (1, 100, 500, 520)] == [4, 4, 16, 16]
    assert [micro_batch(12, most) for most in (1, 5, 8, 100)] == [1, 4, 6, 12]
    assert warmup(None, 500, 10**6, 10_000, 0.1) == 500
    assert warmup(1.0, 500, 10**6, 10_000, 0.1) == 1000


def test_cells_that_would_tell_nothing_are_named():
    found, left = cells(sweep_of("sweep.steps_at_least=15", "sweep.most_tokens_per_param=0.3"))
    assert {cell.name for cell in found} == {"d32-l2-5.12k-s0"}
    assert found[0].parent is None  # its beginning is no cell any more
    assert dict(left) == {
        "d16-l1-2.56k-s0": "10 steps, below sweep.steps_at_least=15",
        "d32-l2-2.56k-s0": "10 steps, below sweep.steps_at_least=15",
        "d16-l1-5.12k-s0": "0.488 tokens per parameter, above sweep.most_tokens_per_param=0.3",
    }


def test_held_out_run_alone_takes_all_places():
    words = ("sweep.jobs=2", "sweep.held_out=[{d_model: 64, n_layers: 2, tokens: 5120}]")
    *others, last = made(*words)
    assert {cell.ranks for cell in others} == {1}
    assert (last.ranks, last.config.batch.global_batch_size, last.config.batch.micro_batch_size) == (2, 8, 4)
    assert {cell.ranks for cell in made(*words, "submit=true")} == {1}


def test_held_out_run_has_what_all_cells_have_and_else_what_the_rule_says():
    held_out = "sweep.held_out=[{d_model: 64, n_layers: 2, tokens: 5120}]"
    *others, last = made(held_out, "sweep.lr_factors=[0.5]", "sweep.batch_factors=[2]", "sweep.unique_tokens=[1024]")
    for config in (others[0].config, last.config):
        told = (config.optimizer.peak_lr, config.batch.global_batch_size, config.data.unique_tokens)
        assert told == (0.0015, 16, 1024)
    last = made(held_out, "sweep.lr_factors=[0.5, 2]", "sweep.unique_tokens=[1024, 2048]")[-1]
    assert (last.config.optimizer.peak_lr, last.config.data.unique_tokens) == (0.003, None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sweep.rule=porian",), "sweep.rule=porian sets the learning rate and the batch of every cell; optimizer.pe"),
        (("sweep.rule=mup", *MUP), "sweep.rule=mup: lr is that of width 32"),
        (("sweep.warmup_tokens_per_param=0.01",), "schedule.warmup_tokens=512 is not used: sweep.warmup_tokens_per_p"),
        (("schedule.warmup_tokens=513",), "warm-up cut to sweep.max_warmup_ratio=0.2 of the shortest run of the size"),
        (("schedule=cosine",), "sweep.branch=true would have it: with schedule=cosine rates differ"),
        (("sweep.rule=step_law",), "sweep.branch=true would have it: with sweep.rule=step_law rates differ"),
    ],
)
def test_keys_that_a_rule_or_a_schedule_overrules_are_said(words: tuple[str, ...], told: str):
    words = ("sweep.steps_at_least=1", *words)
    assert any(told in one for one in remarks(sweep_of(*words), made(*words)))
    assert remarks(sweep_of(), made()) == []


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "conf" / "sweep").glob("*.yaml")))
def test_sweeps_that_come_along_can_be_planned(name: str):
    found, _ = cells(compose(APP, [f"run.name={CELL}", f"sweep={name}"]))
    assert len(found) >= 12


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sweep.name=",), "sweep.name='' names a folder"),
        (("sweep.tokens=[]",), "give one of sweep.tokens, sweep.tokens_per_param and sweep.flops; given: none of them"),
        (("sweep.flops=[1.0e+9]",), "given: sweep.tokens and sweep.flops"),
        (("sweep.shapes=[]",), "sweep.shapes is empty"),
        (("sweep.tokens=[0]",), "sweep.tokens=[0] must be above 0"),
        (("sweep.seeds=[1,1]",), "seeds=[1, 1] must be different"),
        (("sweep.lr_factors=[-1]",), "sweep.lr_factors=[-1] must be above 0"),
        (("sweep.shapes=[{d_model: 0, n_layers: 1}]",), "the shape 0 x 1: d_model=0 must be at least 1"),
        (("sweep.shapes=[{d_model: 30, n_layers: 1, n_heads: 4}]",), "the shape 30 x 1: model.d_model=30"),
        (("sweep.held_out=[{d_model: 64, n_layers: 2}]",), "the held-out run 64 x 2 needs tokens"),
        (("sweep.tokens=[2560,2561]", "sweep.lr_factors=[1]"), "several cells would be called"),
        (("fit.family=lstm",), "fit.family=lstm is none of sweep.families: transformer"),
        (("run.seed=3",), "run.seed=3: cells get theirs from the sweep"),
        (("start=true", "submit=true"), "ask one"),
        (("run.labels={family: x}",), "run.labels.family: cells get theirs from the sweep"),
        (("sweep.rule=mup",), "sweep.rule=mup, but model.init=gpt2: nothing would scale the learning rate"),
        (("sweep.rule=porian", *MUP), "sweep.rule=porian and model.init=mup would both scale the learning rate"),
        (("sweep.unique_tokens=[1000]",), "data.unique_tokens=1_000 is no whole number of rows of data.seq_len=32"),
        (
            ("sweep.jobs=2", "start=true", "cluster.device=cuda"),
            "sweep.jobs=2 cells would share one GPU: say how many each has by job.gpus_per_node",
        ),
        (("job.target=torchrun",), "a sweep runs here (start=true) or under Slurm"),
        (("sweep.max_usd=-1",), "sweep.max_usd=-1.0 must be above 0"),
        (("sweep.families={a: ['model.nlayers=3']}", "fit.family=a"), "model.nlayers"),
    ],
)
def test_what_makes_no_sweep_is_refused(words: tuple[str, ...], told: str):
    with pytest.raises(ConfigError) as error:
        made(*words)
    assert told in str(error.value)


def test_cells_of_a_gpu_sweep_can_be_planned():
    found = made("sweep.shapes=[{d_model: 64, n_layers: 2}]", "cluster=h100", "parallel.precision=bf16")
    assert all(dataclasses.replace(cell.config).cluster.name for cell in found)

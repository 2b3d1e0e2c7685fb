"""DeepSpeed in every stage, precision and accumulation against plain torch, and its state in and out bit for bit."""

import functools
import math

import pytest

from tests.distributed.ranks import run_ranks

VOCAB, SEQ_LEN, GLOBAL, STEPS = 131, 32, 8, 6
PEAK_LR, CLIP, DECAY = 1e-2, 0.5, 0.1


def config():
    from model.config import ModelConfig

    # sizes that do not divide by the number of ranks, so that padding and uneven shards are met
    return ModelConfig(vocab_size=VOCAB, n_layers=2, d_model=36, n_heads=6, n_kv_heads=2, d_ff=50)


def build():
    """The model of the reference: plain torch."""
    from model.init import initialize
    from model.transformer import Transformer

    model = Transformer(config())
    initialize(model, 0)
    return model


def start_engine(plan, grid, optimizer=None, **parallel):
    """The same model in an engine."""
    from model.init import initial_value
    from model.transformer import Transformer
    from train.config import OptimizerConfig, ParallelConfig
    from train.engine.core import start

    return start(
        lambda: Transformer(config()),
        functools.partial(initial_value, config=config(), seed=0),
        plan=plan,
        optimizer=optimizer or OptimizerConfig(),
        parallel=ParallelConfig(**parallel),
        grid=grid,
        device="cpu",
    )


def rows(step: int):
    import torch

    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, VOCAB, (GLOBAL, SEQ_LEN + 1), generator=generator)


def lr_of(step: int) -> float:
    return PEAK_LR * (step + 1) / STEPS


def plain_torch() -> tuple[list[tuple[float, float]], dict]:
    """The reference: one process, no DeepSpeed, the whole batch at once, torch's own clipping and AdamW."""
    import torch

    from model.loss import cross_entropy

    model = build()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    norms = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), eps=1e-8)
    curve = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        ids = rows(step)
        nats, count = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        loss = nats / count
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        curve.append((float(loss.detach()), float(norm)))
    return curve, {name: p.detach().numpy() for name, p in model.named_parameters()}


def engine_run(stage: int, precision: str, accumulation: int, interrupted_after: int | None = None):
    """(curve, weights) of the same steps through the engine; after `interrupted_after` steps a new engine takes
    over.
    """
    from train.batch import solve_batch
    from train.config import OptimizerConfig, Precision
    from train.parallel import prepare_environment, rank_grid

    grid = rank_grid()
    prepare_environment("cpu", grid)
    plan = solve_batch(
        global_batch_size=GLOBAL,
        micro_batch_size=GLOBAL // grid.dp_size // accumulation,
        dp_size=grid.dp_size,
        seq_len=SEQ_LEN,
        total_tokens=GLOBAL * SEQ_LEN * STEPS,
    )

    def make():
        optimizer = OptimizerConfig(peak_lr=PEAK_LR, weight_decay=DECAY, max_grad_norm=CLIP)
        return start_engine(plan, grid, optimizer, zero_stage=stage, precision=Precision(precision))

    engine, curve = make(), []
    for step in range(STEPS):
        if step == interrupted_after:
            state = list(engine.read_state())
            engine = make()
            engine.write_state(state, step)
            again = list(engine.read_state())
            assert all(a[:2] == b[:2] and bool((a[2] == b[2]).all()) for a, b in zip(state, again, strict=True))
        mine = rows(step)[grid.dp_rank * plan.sequences_per_rank :][: plan.sequences_per_rank]
        micro_batches = [(ids[:, :-1], ids[:, 1:]) for ids in mine.split(plan.micro_batch_size)]
        result = engine.train_step(micro_batches, lr_of(step))
        curve.append((result.loss, result.grad_norm))
    return curve, {name: tensor.numpy() for kind, name, tensor in engine.read_state() if kind == "master"}


@functools.cache
def reference():
    return run_ranks(plain_torch, 1)[0]


CASES = [(dp, stage, ga) for dp in (1, 2) for stage in (1, 2, 3) for ga in (1, 2)]


@pytest.mark.parametrize(("dp_size", "stage", "accumulation"), CASES)
def test_fp32_equals_plain_torch(dp_size: int, stage: int, accumulation: int):
    """The same operations; only the order of the sums over sequences differs, hence 1e-5 on the weights after six
    steps.

    Adam divides by the root of the second moment: where a gradient is nearly zero, its rounding decides the sign of the
    update, so weights get an absolute bound of a thousandth of the summed learning rates beside the relative one.
    """
    curve, weights = run_ranks(engine_run, dp_size, stage, "fp32", accumulation)[0]
    expected_curve, expected_weights = reference()
    for (loss, norm), (expected_loss, expected_norm) in zip(curve, expected_curve, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
    for name, tensor in expected_weights.items():
        bound = 1e-3 * sum(lr_of(step) for step in range(STEPS)) + 1e-5 * float(abs(tensor).max())
        assert float(abs(weights[name] - tensor).max()) < bound, name


@pytest.mark.parametrize(("dp_size", "stage"), [(1, 1), (2, 1), (2, 2), (2, 3)])
def test_bf16_stays_near_plain_torch(dp_size: int, stage: int):
    """bf16 keeps 8 bits of a number: losses near 5 agree to about 1e-3 over a few steps."""
    curve, _ = run_ranks(engine_run, dp_size, stage, "bf16", 2)[0]
    expected, _ = reference()
    assert [loss for loss, _ in curve] == pytest.approx([loss for loss, _ in expected], abs=5e-3)
    assert [norm for _, norm in curve] == pytest.approx([norm for _, norm in expected], rel=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("dp_size", "stage"), [(1, 1), (2, 1), (2, 2), (2, 3)])
def test_state_read_out_and_put_back_continues_bit_for_bit(dp_size: int, stage: int, precision: str):
    whole = run_ranks(engine_run, dp_size, stage, precision, 1)[0]
    halves = run_ranks(engine_run, dp_size, stage, precision, 1, 3)[0]
    assert whole[0] == halves[0]
    assert all(bool((whole[1][name] == halves[1][name]).all()) for name in whole[1])


def uneven_rows(step: int):
    """(tokens, targets, segments) in which ranks and micro-batches have very different numbers of targets."""
    import torch

    from model.loss import IGNORED_TARGET

    ids = rows(step)
    tokens, targets = ids[:, :-1], ids[:, 1:].clone()
    for row in range(GLOBAL):
        targets[row, 3 + 3 * row :] = IGNORED_TARGET
    targets[-1] = IGNORED_TARGET
    segments = (torch.arange(SEQ_LEN) // 5).expand(GLOBAL, SEQ_LEN).to(torch.int32)
    return tokens, targets, segments


def uneven_run():
    """((loss, norm), targets, hash) of one step with padded rows and document masks."""
    from train.batch import solve_batch
    from train.parallel import prepare_environment, rank_grid

    grid = rank_grid()
    prepare_environment("cpu", grid)
    plan = solve_batch(
        global_batch_size=GLOBAL, micro_batch_size=2, dp_size=grid.dp_size, seq_len=SEQ_LEN, total_tokens=1
    )
    engine = start_engine(plan, grid)
    first = grid.dp_rank * plan.sequences_per_rank
    parts = [part[first : first + plan.sequences_per_rank] for part in uneven_rows(0)]
    result = engine.train_step(zip(*(part.split(2) for part in parts), strict=True), 1e-3)
    return (result.loss, result.grad_norm), result.n_targets, result.batch_hash


def uneven_by_plain_torch() -> tuple[float, float]:
    import torch

    from model.loss import cross_entropy

    model = build()
    tokens, targets, segments = uneven_rows(0)
    nats, count = cross_entropy(model(tokens, segments), targets)
    loss = nats / count
    loss.backward()
    return float(loss.detach()), float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9))


def test_padded_and_masked_rows_are_averaged_over_all_targets_of_the_step():
    """Whatever rank or micro-batch they fall on: the loss is divided by the global count."""
    expected = run_ranks(uneven_by_plain_torch, 1)[0]
    (one, n_targets, batch_hash), *_ = run_ranks(uneven_run, 1)
    (two, *others), *_ = run_ranks(uneven_run, 2)
    assert one == pytest.approx(expected, rel=1e-5)
    assert two == pytest.approx(expected, rel=1e-5)
    assert n_targets == sum(3 + 3 * row for row in range(GLOBAL - 1))
    assert others == [n_targets, batch_hash]


def one_step_engine():
    """An engine on one process that has made its first step, and that step's micro-batches."""
    from train.batch import solve_batch
    from train.parallel import prepare_environment, rank_grid

    grid = rank_grid()
    prepare_environment("cpu", grid)
    plan = solve_batch(global_batch_size=8, micro_batch_size=8, dp_size=1, seq_len=SEQ_LEN, total_tokens=1)
    engine = start_engine(plan, grid)
    ids = rows(0)
    micro_batches = [(ids[:, :-1], ids[:, 1:])]
    engine.train_step(micro_batches, 1e-3)
    return engine, micro_batches


def spoilt(state, value: float):
    """The same state with one weight set to `value`."""
    return [(k, n, t * value if (k, n) == ("master", "norm.weight") else t) for k, n, t in state]


def nonfinite_step() -> tuple[float, float, bool]:
    """A step with weights that make every logit NaN."""
    engine, micro_batches = one_step_engine()
    before = list(engine.read_state())
    engine.write_state(spoilt(before, math.nan), 1)
    result = engine.train_step(micro_batches, 1e-3)
    unchanged = all(
        bool((a[2] == b[2]).all()) for a, b in zip(before, engine.read_state(), strict=True) if a[1] != "norm.weight"
    )
    return result.loss, result.grad_norm, unchanged


def test_a_step_that_is_not_finite_is_reported_and_not_applied():
    loss, norm, unchanged = run_ranks(nonfinite_step, 1)[0]
    assert math.isnan(loss)
    assert not math.isfinite(norm)
    assert unchanged


def nonfinite_save(folder: str) -> str:
    from pathlib import Path

    from train import checkpoint
    from train.engine.errors import NumericsError

    engine, _ = one_step_engine()
    assert checkpoint.save(Path(folder), 1, engine, {}, is_first=True) is None
    engine.write_state(spoilt(engine.read_state(), math.inf), 1)
    try:
        checkpoint.save(Path(folder), 2, engine, {}, is_first=True)
    except NumericsError as error:
        return str(error)
    return "saved"


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    """The loss of a step is taken before its update; so the update is looked at when it is to be saved."""
    message = run_ranks(nonfinite_save, 1, str(tmp_path))[0]
    assert "the state after step 2 is not finite: master of norm.weight" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def foreign_states() -> list[str]:
    from train.engine.errors import StateError

    engine, _ = one_step_engine()
    state = list(engine.read_state())
    renamed = [(k, "other.weight" if n == "norm.weight" else n, t) for k, n, t in state]
    reshaped = [(k, n, t[:-1] if n == "norm.weight" else t) for k, n, t in state]
    messages = []
    for wrong in (state[1:], renamed, reshaped):
        try:
            engine.write_state(wrong, 1)
        except StateError as error:
            messages.append(str(error))
    return messages


def test_a_state_that_is_not_this_models_is_refused_by_name():
    lacking, renamed, reshaped = run_ranks(foreign_states, 1)[0]
    assert "lacks 1 tensors" in lacking
    assert "other.weight" in renamed
    assert "norm.weight, (35,)" in reshaped


def without_a_compiler() -> int:
    """A start of the engine where no program can be found at all."""
    import os

    os.environ["PATH"] = "/nonexistent"
    curve, _ = engine_run(1, "fp32", 1)
    return len(curve)


def test_no_compiler_is_needed():
    assert run_ranks(without_a_compiler, 1) == [STEPS]

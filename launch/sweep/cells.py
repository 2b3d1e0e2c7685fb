"""A sweep's axes → its cells: each a whole configuration of `train`, with what it shares with a shorter one.

In: a checked `SweepConfig`. Out: cells in the order of their own compute, cheap ones first; every one a run that could
be typed by hand. Cells that differ in length only form a chain where the schedule allows it: each goes on from the
checkpoint that the one before left at the end of its constant rate, so that a chain costs its longest run and the
cooldowns of the others. No torch.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.compose import compose
from conf.errors import ConfigError
from launch.again import TRAIN, train_words
from launch.sweep.config import AxesConfig, Shape, SweepConfig
from launch.sweep.rules import Setting, depends_on_length, micro_batch, rule_problems, sequences, setting, warmup
from model.arithmetic import ParameterCounts, count_parameters, flops_per_token
from model.config import ModelConfig
from train.branch import steps_with_equal_rates
from train.config import TrainConfig
from train.optimizer_config import WsdSchedule
from train.run_folder import config_sha256


@dataclass(frozen=True)
class Cell:
    config: TrainConfig
    family: str
    held_out: bool
    steps: int
    counts: ParameterCounts
    flops_full: int
    flops_causal: int
    """of the whole run"""
    parent: str | None = None
    """the run whose beginning it shares"""
    shared_steps: int = 0
    root: str = ""
    """the first run of its chain"""
    ranks: int = 1

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def folder(self) -> Path:
        return Path(self.config.run.folder) / self.name

    @property
    def own_steps(self) -> int:
        return self.steps - self.shared_steps

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        return self.config.batch.global_batch_size * self.config.data.seq_len

    @property
    def own_flops_causal(self) -> int:
        return self.flops_causal * self.own_steps // self.steps

    @property
    def sha256(self) -> str:
        return config_sha256(self.config)

    def words(self) -> list[str]:
        """Of `train`. Raises ConfigError where none are known that give this configuration."""
        words = train_words(self.config)
        if words is None:
            raise ConfigError([f"cell {self.name}: no command line gives its configuration"])
        return words


@dataclass(frozen=True)
class Point:
    """One combination of the axes; `tokens` None: the budget is compute."""

    family: str
    base: TrainConfig
    shape: Shape
    seed: int
    unique_tokens: int
    lr_factor: float
    batch_factor: float
    budget: float
    held_out: bool


def cells(config: SweepConfig) -> tuple[list[Cell], list[tuple[str, str]]]:
    """(cells, cheap ones first and held-out ones last; (cell, why it is left out)). Raises ConfigError with everything
    that is wrong with them."""
    if config.fit.family not in config.sweep.families:
        raise ConfigError(
            [f"fit.family={config.fit.family} is none of sweep.families: {', '.join(config.sweep.families)}"]
        )
    alike: dict[tuple[object, ...], list[Cell]] = {}
    silly: list[tuple[str, str]] = []
    for point in _points(config):
        draft = _draft(config, point)
        if why := _silly(config, draft):
            silly.append((draft.name, why))
        else:
            alike.setdefault((point.family, _sizes(point.shape), *_axes(point), point.held_out), []).append(draft)
    made = [cell for drafts in alike.values() if not drafts[0].held_out for cell in _chain(config, drafts)]
    shortest = min((cell.tokens for cell in made), default=None)
    made += [cell for drafts in alike.values() if drafts[0].held_out for cell in _chain(config, drafts, shortest)]
    _refuse_twins(made)
    return sorted(made, key=lambda cell: (cell.held_out, cell.own_flops_causal, cell.name)), silly


def _silly(config: SweepConfig, cell: Cell) -> str:
    """Why a cell would tell nothing; "" if it would."""
    axes, ratio = config.sweep, cell.tokens / cell.counts.n_params_matmul
    least, most = axes.least_tokens_per_param, axes.most_tokens_per_param
    if cell.steps < axes.steps_at_least:
        return f"{cell.steps} steps, below sweep.steps_at_least={axes.steps_at_least}"
    if least is not None and ratio < least:
        return f"{ratio:.3g} tokens per parameter, below sweep.least_tokens_per_param={least:g}"
    if most is not None and ratio > most:
        return f"{ratio:.3g} tokens per parameter, above sweep.most_tokens_per_param={most:g}"
    return ""


def _points(config: SweepConfig) -> Iterator[Point]:
    axes = config.sweep
    budgets = axes.tokens or axes.tokens_per_param or axes.flops
    for family, words in axes.families.items():
        base = _family(config, family, words)
        for shape in axes.shapes:
            for seed, unique, lr, batch, budget in itertools.product(
                shape.seeds or axes.seeds, axes.unique_tokens, axes.lr_factors, axes.batch_factors, budgets
            ):
                yield Point(family, base, shape, seed, unique, lr, batch, budget, False)
        if family == config.fit.family:
            for shape in axes.held_out:
                for seed in shape.seeds or axes.seeds[:1]:
                    yield Point(family, base, shape, seed, *_of_held_out(axes), shape.tokens, True)


def _of_held_out(axes: AxesConfig) -> tuple[int, float, float]:
    """(unique tokens, factors of rate and batch): those of all cells, or where cells differ what the rule says."""
    unique, lr, batch = axes.unique_tokens, axes.lr_factors, axes.batch_factors
    return (
        unique[0] if len(unique) == 1 else 0,
        lr[0] if len(lr) == 1 else 1.0,
        batch[0] if len(batch) == 1 else 1.0,
    )


def _family(config: SweepConfig, family: str, words: Sequence[str]) -> TrainConfig:
    """The base with the family's words over it."""
    base = TrainConfig(**{item.name: getattr(config, item.name) for item in dataclasses.fields(TrainConfig)})
    if not words:
        return base
    known = train_words(base)
    if known is None:
        raise ConfigError([f"sweep.families.{family}: the base has no command line to which its words could be added"])
    return compose(TRAIN, [*known, *words])


def _chain(config: SweepConfig, drafts: Sequence[Cell], shortest: int | None = None) -> list[Cell]:
    """Cells that differ in length only, the shorter ones first. shortest: tokens that a warm-up is measured by; None
    means the shortest of these."""
    drafts = sorted(drafts, key=lambda cell: cell.steps)
    shortest = min(drafts[0].tokens, shortest or drafts[0].tokens)
    axes, found = config.sweep, list[Cell]()
    for cell in drafts:
        schedule = cell.config.schedule
        tokens = warmup(
            axes.warmup_tokens_per_param, schedule.warmup_tokens, cell.counts.n_params_matmul, shortest,
            axes.max_warmup_ratio,
        )  # fmt: skip
        whole = dataclasses.replace(cell.config, schedule=dataclasses.replace(schedule, warmup_tokens=tokens))
        _refuse(cell.name, [*whole.run.problems(), *whole.data.problems(), *whole.problems()])
        found.append(dataclasses.replace(cell, config=whole))
    return _branched(found) if axes.branch and _may_branch(config, found) else [alone(cell) for cell in found]


def _may_branch(config: SweepConfig, chain: Sequence[Cell]) -> bool:
    return isinstance(chain[0].config.schedule, WsdSchedule) and not depends_on_length(config.sweep.rule)


def alone(cell: Cell) -> Cell:
    """It begins by itself."""
    run = dataclasses.replace(cell.config.run, branch_from=None)
    config = dataclasses.replace(cell.config, run=run)
    return dataclasses.replace(cell, config=config, parent=None, shared_steps=0, root=cell.name)


def branch(cell: Cell, parent: str, step: int, root: str) -> Cell:
    """It begins from `parent`, a run of the same sweep."""
    run = dataclasses.replace(cell.config.run, branch_from=str(cell.folder.parent / parent))
    config = dataclasses.replace(cell.config, run=run)
    return dataclasses.replace(cell, config=config, parent=parent, shared_steps=step, root=root)


def _branched(chain: Sequence[Cell]) -> list[Cell]:
    """Each but the first goes on from the one before; that one keeps the checkpoint of where they part."""
    found = [alone(chain[0])]
    for cell in chain[1:]:
        before = found[-1]
        shared = steps_with_equal_rates(cell.config, before.config)
        if shared < 1:
            found.append(alone(cell))
            continue
        found[-1] = dataclasses.replace(before, config=_keeping(before.config, shared))
        found.append(branch(cell, before.name, shared, before.root))
    return found


def _keeping(config: TrainConfig, step: int) -> TrainConfig:
    steps = sorted({*config.checkpoint.keep_steps, step})
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, keep_steps=steps))


def _draft(config: SweepConfig, point: Point) -> Cell:
    """All but the warm-up, which depends on the shortest of the chain."""
    model = shaped(point.base.model, point.shape)
    _refuse(f"the shape {point.shape.d_model} x {point.shape.n_layers}", model.problems())
    _refuse(f"family {point.family}", rule_problems(config.sweep.rule, model.init))
    counts, per_token = count_parameters(model), flops_per_token(model, point.base.data.seq_len)
    tokens = _tokens(config, point, counts, per_token[1])
    asked = _setting(config, point, counts, tokens)
    ranks, rows = _ranks(config, point, asked)
    batch = sequences(asked.tokens_per_step * point.batch_factor, point.base.data.seq_len, rows)
    steps = max(1, -(-tokens // (batch * point.base.data.seq_len)))
    run = dataclasses.replace(
        point.base.run,
        name=_name(config, point, tokens),
        folder=str(Path(config.sweep.folder) / config.sweep.name / "runs"),
        seed=point.seed,
        labels=point.base.run.labels | {"family": point.family, "sweep": config.sweep.name},
    )
    optimizer = dataclasses.replace(
        point.base.optimizer, peak_lr=float(f"{asked.peak_lr * point.lr_factor:.6g}"), beta2=asked.beta2
    )
    return Cell(
        config=dataclasses.replace(
            point.base,
            run=run,
            data=_data(point),
            total_tokens=steps * batch * point.base.data.seq_len,
            model=model,
            batch=dataclasses.replace(
                point.base.batch,
                global_batch_size=batch,
                micro_batch_size=micro_batch(batch // rows, point.base.batch.micro_batch_size),
            ),
            optimizer=optimizer,
        ),
        family=point.family,
        held_out=point.held_out,
        steps=steps,
        ranks=ranks,
        counts=counts,
        flops_full=per_token[0] * steps * batch * point.base.data.seq_len,
        flops_causal=per_token[1] * steps * batch * point.base.data.seq_len,
    )


def _ranks(config: SweepConfig, point: Point, asked: Setting) -> tuple[int, int]:
    """(ranks of the cell, ranks that share out its batch). A held-out run on this computer is alone, and takes all
    places if its batch can be shared out so."""
    a_row = point.base.parallel.tp_size * point.base.parallel.sp_size
    all_places = config.job.n_ranks * config.sweep.places
    takes_all = point.held_out and not config.submit and config.job.nodes == 1
    whole = round(asked.tokens_per_step * point.batch_factor / point.base.data.seq_len)
    if takes_all and all_places % a_row == 0 and whole % (all_places // a_row) == 0:
        return all_places, all_places // a_row
    return config.job.n_ranks, max(1, config.job.n_ranks // a_row)


def _data(point: Point):
    if not point.unique_tokens:
        return point.base.data
    return dataclasses.replace(point.base.data, unique_tokens=point.unique_tokens)


def shaped(base: ModelConfig, shape: Shape) -> ModelConfig:
    """The base model in another size: what the shape leaves out keeps its proportions."""
    heads = shape.n_heads or max(1, round(shape.d_model / base.head_width))
    at_most = max(1, heads * base.n_kv_heads // base.n_heads)
    kv_heads = shape.n_kv_heads or max(k for k in range(1, at_most + 1) if heads % k == 0)
    ff = shape.d_ff or max(8, round(shape.d_model * base.d_ff / base.d_model / 8) * 8)
    return dataclasses.replace(
        base,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_ff=ff,
    )


def _tokens(config: SweepConfig, point: Point, counts: ParameterCounts, flops_causal: int) -> int:
    if point.held_out or config.sweep.tokens:
        return int(point.budget)
    if config.sweep.tokens_per_param:
        return int(point.budget * counts.n_params_matmul)
    return int(point.budget / flops_causal)


def _setting(config: SweepConfig, point: Point, counts: ParameterCounts, tokens: int) -> Setting:
    base = Setting(
        point.base.optimizer.peak_lr,
        point.base.batch.global_batch_size * point.base.data.seq_len,
        point.base.optimizer.beta2,
    )
    return setting(config.sweep.rule, base, counts.n_params_matmul, counts.n_params_non_embedding, tokens)


def _name(config: SweepConfig, point: Point, tokens: int) -> str:
    """What sets it apart: size and length always, the other axes where they have several values."""
    axes = config.sweep
    parts = [f"d{point.shape.d_model}-l{point.shape.n_layers}", _short(tokens)]
    if len(axes.families) > 1:
        parts.insert(0, point.family)
    if len(axes.unique_tokens) > 1 and not point.held_out:
        parts.append("all" if not point.unique_tokens else f"u{_short(point.unique_tokens)}")
    if len(axes.lr_factors) > 1 and not point.held_out:
        parts.append(f"lr{_factor(point.lr_factor)}")
    if len(axes.batch_factors) > 1 and not point.held_out:
        parts.append(f"b{_factor(point.batch_factor)}")
    return "-".join([*parts, f"s{point.seed}", *(["held-out"] if point.held_out else [])])


def _short(count: int) -> str:
    """500k, 2M, 1.23M: three digits."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.9995:
            return f"{float(f'{count / unit:.3g}'):g}{letter}"
    return str(count)


def _factor(value: float) -> str:
    return f"{value:g}".replace("+", "")


def _sizes(shape: Shape) -> tuple[object, ...]:
    return tuple(getattr(shape, name) for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"))


def _axes(point: Point) -> tuple[object, ...]:
    return (point.seed, point.unique_tokens, point.lr_factor, point.batch_factor)


def _refuse(where: str, problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in problems])


def _refuse_twins(found: Sequence[Cell]) -> None:
    names = [cell.name for cell in found]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            [f"several cells would be called {', '.join(twins)}: values of an axis are too close, or twice there"]
        )

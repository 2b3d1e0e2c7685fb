"""Which of the real shapes is trained, and for how long: the best by the law for what may be spent, or the
cheapest that reaches a loss.

In: what is asked. Out: a `Choice` among the shapes of its `Ground`. What a token of each shape costs is exact: its own
FLOPs, or the predicted time of its own steps.
"""

from dataclasses import dataclass, replace

import numpy as np

from conf.errors import ConfigError
from launch.advise_config import AdviseConfig
from launch.advise_law import Candidates, Supply, best, to_reach
from launch.advise_rows import Evidence, evidence
from launch.advise_shapes import Shape, depth_rule, shapes_of
from launch.layouts import Change, fastest, why_none
from launch.machine import find_machine
from launch.plan import train_tokens
from launch.plan_table import HOW_TO_DESCRIBE
from launch.predict import hardware_for, predict
from launch.scaling.bootstrap import Interval, interval
from launch.scaling.minimum import Floats
from train.config import TrainConfig
from train.plan import GIB, Machine

SEARCH_ROUNDS = 6
"""the best shape and the speed of its fastest layout are found in turn; two or three times are usual"""


@dataclass(frozen=True)
class Reach:
    """Of a loss that was asked for: FLOPs that the drawn laws say it takes."""

    flops: Interval
    reached: float
    """share of the drawn laws by which it can be reached at all"""


@dataclass(frozen=True)
class Ground:
    """What is settled before a shape is chosen."""

    config: AdviseConfig
    evidence: Evidence
    shapes: list[Shape]
    machine: Machine
    supply: Supply
    depth: str

    def candidates(self, cost: Floats) -> Candidates:
        n = np.array([shape.n for shape in self.shapes], dtype=np.float64)
        return Candidates(n, cost, self.config.batch.global_batch_size * self.config.data.seq_len)

    @property
    def flops(self) -> Floats:
        return np.array([float(shape.flops_per_token) for shape in self.shapes], dtype=np.float64)


@dataclass(frozen=True)
class Choice:
    index: int
    tokens: int
    supply: Supply
    candidates: Candidates
    budget: float
    """in the unit of the candidates' cost"""
    layout: Change | None
    reach: Reach | None = None


def ground_of(config: AdviseConfig, known: Evidence | None = None) -> Ground:
    """What can be refused at once is, before laws are fitted."""
    ranks_a_row = config.parallel.tp_size * config.parallel.sp_size
    machine = find_machine(config.cluster, config.parallel.precision, ranks_a_row)
    if config.search and hardware_for(config.train, machine) is None:
        raise ConfigError([f"search=true compares predicted times, and this cluster's cannot be: {HOW_TO_DESCRIBE}"])
    there_are = _unique_tokens(config)
    known = known or evidence(config)
    rule = depth_rule([(one.d_model, one.n_layers) for one in known.sampled], config.shape.aspect)
    shapes = shapes_of(config.train, rule, config.fit.counting, config.fit.flops)
    return Ground(config, known, shapes, machine, Supply(there_are, known.wear.r_d, known.wear.r_n), rule.source)


def _unique_tokens(config: AdviseConfig) -> float:
    """Infinite where nobody said."""
    there_are = config.supply if config.supply is not None else train_tokens(config.data)
    step = config.batch.global_batch_size * config.data.seq_len
    if there_are is not None and there_are < step:
        key = "supply" if config.supply is not None else "the train split"
        raise ConfigError([f"{key}: {there_are:,} unique tokens are less than one step of {step:,}; get more text"])
    return float("inf") if there_are is None else float(there_are)


def chosen(ground: Ground) -> Choice:
    budget = ground.config.budget
    if budget.loss is not None:
        return _cheapest(ground, budget.loss)
    if budget.flops is not None:
        return _with_layout(ground, _best(ground, ground.flops, budget.flops))
    hours = budget.device_hours
    if hours is None:
        price = ground.config.cluster.usd_per_device_hour
        assert budget.usd is not None
        assert price is not None, "problems() was not asked"
        hours = budget.usd / price
    return _in_time(ground, hours)


def _best(ground: Ground, cost: Floats, budget: float) -> Choice:
    """Once as if text did not bind; and again, by the law of repeated text, if the best run repeats it."""
    law, candidates, supply = ground.evidence.family.fit.law, ground.candidates(cost), ground.supply
    if not candidates.tokens(budget).any():
        step = float(cost.min()) * candidates.tokens_per_step
        raise ConfigError(
            [
                f"the budget of {budget:.3g} does not buy one step of {candidates.tokens_per_step:,} tokens of the "
                f"smallest shape, which takes {step:.3g}; give more, or a smaller batch.global_batch_size"
            ]
        )
    index = best(law, supply, candidates, budget)
    if candidates.tokens(budget)[index] > supply.tokens:
        supply = replace(supply, binds=True)
        index = best(law, supply, candidates, budget)
    return Choice(index, int(candidates.tokens(budget)[index]), supply, candidates, budget, None)


def _cheapest(ground: Ground, loss: float) -> Choice:
    """The fewest FLOPs that reach the loss, in whole steps of the best shape for them."""
    family, candidates, supply = ground.evidence.family, ground.candidates(ground.flops), ground.supply
    flops = float(to_reach(family.fit.law, supply, candidates, loss)[0])
    if not np.isfinite(flops) or _continuous(candidates, supply, ground, flops)[1] > supply.tokens:
        supply = replace(supply, binds=bool(np.isfinite(supply.tokens)))
        flops = float(to_reach(family.fit.law, supply, candidates, loss)[0])
    if not np.isfinite(flops):
        raise ConfigError([_out_of_reach(ground, supply, loss)])
    index, tokens = _continuous(candidates, supply, ground, flops)
    steps = int(np.ceil(tokens / candidates.tokens_per_step * (1 - 1e-12)))
    taken = steps * candidates.tokens_per_step
    every = to_reach(family.laws, supply, candidates.coarse(), loss)
    reach = Reach(interval(every), float(np.isfinite(every).mean()))
    spent = float(candidates.cost[index]) * taken
    return _with_layout(ground, Choice(index, taken, supply, candidates, spent, None, reach))


def _continuous(candidates: Candidates, supply: Supply, ground: Ground, flops: float) -> tuple[int, float]:
    """(best shape, its tokens) without rounding to steps."""
    tokens = flops / candidates.cost
    index = int(np.argmin(supply.loss(ground.evidence.family.fit.law, candidates.n, tokens)))
    return index, float(tokens[index])


def _out_of_reach(ground: Ground, supply: Supply, loss: float) -> str:
    family = ground.evidence.family
    law, spans = family.fit.law, interval(family.constants.E)
    least = supply.least_loss(law)
    bound = (
        f"E = {law.E:.4g} (95 % interval {spans.low95:.4g} to {spans.high95:.4g}) is what no size and no length passes"
    )
    if np.isfinite(supply.tokens):
        bound += (
            f", and {supply.tokens:,.0f} unique tokens, however often they are seen, do not carry below {least:.4g}"
        )
    return (
        f"budget.loss={loss:g} cannot be reached: {bound}. The least that can be asked for lies just above {least:.4g}"
    )


def _in_time(ground: Ground, hours: float) -> Choice:
    """At the predicted speed of every shape: in the layout as given, or as fast as the best shape's fastest one."""
    if not ground.config.search:
        return _best(ground, _hours_per_token(ground, ground.config.train), hours)
    middle = float(np.exp(np.log(ground.evidence.family.points.n).mean()))
    index = int(np.argmin([abs(np.log(shape.n / middle)) for shape in ground.shapes]))
    given = _hours_per_token(ground, _fastest(ground, index).prediction.config)
    return _settled(ground, given, hours, index, SEARCH_ROUNDS)


def _settled(ground: Ground, given: Floats, hours: float, index: int, rounds: int) -> Choice:
    """Every shape as fast as `given`, times what the fastest layout of shape `index` gains: until that one is the best.
    Where two are best in turn, the last one is taken, at its own speed."""
    tried = _fastest(ground, index)
    made = tried.prediction.plan
    choice = _best(ground, given * (made.device_hours / made.tokens_planned / given[index]), hours)
    if choice.index == index or not rounds:
        tokens = int(choice.candidates.tokens(hours)[index])
        return replace(choice, index=index, tokens=tokens, layout=tried)
    return _settled(ground, given, hours, choice.index, rounds - 1)


def _hours_per_token(ground: Ground, layout: TrainConfig) -> Floats:
    """Device-hours of a token of every shape; infinite where the layout cannot cut it."""
    found = np.full(len(ground.shapes), np.inf)
    problem: Exception | None = None
    for i, shape in enumerate(ground.shapes):
        try:
            made = predict(replace(layout, model=shape.model), ground.machine).plan
            found[i] = made.device_hours / made.tokens_planned
        except (ConfigError, ValueError) as error:
            problem = error
    if problem is not None and not np.isfinite(found).any():
        raise problem
    return found


def _with_layout(ground: Ground, choice: Choice) -> Choice:
    if not ground.config.search:
        return choice
    return replace(choice, layout=_fastest(ground, choice.index))


def _fastest(ground: Ground, index: int) -> Change:
    """Raises ConfigError where nothing fits."""
    model, machine = ground.shapes[index].model, ground.machine
    config = replace(ground.config.train, model=model)
    found = fastest(config, machine)
    if not found.n_tried:
        raise ConfigError([f"no layout on {machine.n_devices} devices can exist: {why_none(config, machine)}"])
    if not found.best:
        raise ConfigError(
            [
                f"{model.n_layers} layers x {model.d_model} would be best, and none of {found.n_tried} layouts on "
                f"{machine.n_devices} devices holds it: the least needs {found.least_bytes / GIB:.1f} GiB a device; "
                "more devices, larger ones, or a smaller budget"
            ]
        )
    return found.best[0]

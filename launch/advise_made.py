"""The advised run with all that is to be known of it: loss and its intervals, distance from the rows, regret, plan.

Nothing is said of what lies outside of the sampled sizes and lengths unless `extrapolate` allows it.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from conf.errors import ConfigError
from launch.advise_choice import Choice, Ground, Reach, chosen, ground_of
from launch.advise_config import AdviseConfig
from launch.advise_law import Regret, Supply, regret
from launch.advise_rows import Evidence
from launch.advise_shapes import Shape
from launch.layouts import Change, smallest_changes
from launch.predict import Prediction, predict
from launch.scaling.analysis import outside
from launch.scaling.bootstrap import Interval

_ROUNDING = 1.001


@dataclass(frozen=True)
class Outside:
    """How far the advised run lies outside of what the rows sampled."""

    factor: float
    """the farthest of the following; 1 inside"""
    where: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    asked: AdviseConfig
    evidence: Evidence
    shape: Shape
    tokens: int
    supply: Supply
    depth: str
    """the rule of depth"""
    prediction: Prediction
    """of the advised run: time, cost, memory"""
    changes: list[Change]
    """smallest ones that make it fit, if it does not"""
    layout: list[str]
    """words of the layout, where one was looked for"""
    loss: float
    loss_interval: Interval
    """of the law"""
    run_interval: Interval
    """of a single run: noise added"""
    regret: Regret
    outside: Outside
    reach: Reach | None

    @property
    def flops(self) -> float:
        """In the fit's convention."""
        return float(self.shape.flops_per_token) * self.tokens

    @property
    def epochs(self) -> float | None:
        return self.tokens / self.supply.tokens if np.isfinite(self.supply.tokens) else None


def advice(config: AdviseConfig, known: Evidence | None = None) -> Advice:
    """known: what the rows say, where it was worked out before, as for several budgets by one law.

    Raises ConfigError, BatchError for a layout that cannot be, DataError for data that cannot be read.
    """
    ground = ground_of(config, known)
    return _advice(ground, chosen(ground))


def _advice(ground: Ground, choice: Choice) -> Advice:
    config, family, shape = ground.config, ground.evidence.family, ground.shapes[choice.index]
    far = _outside(ground, shape, choice.tokens)
    if far.factor > config.extrapolate * _ROUNDING:
        raise ConfigError([_refusal(ground, shape, choice, far)])
    n, d = np.array(shape.n), np.array(float(choice.tokens))
    loss = float(choice.supply.loss(family.fit.law, n, d))
    of_law, of_run = family.spans(loss, choice.supply.loss(family.laws, n, d))
    prediction = _planned(ground, choice, shape)
    fits = prediction.plan.fits is not False
    return Advice(
        asked=config,
        evidence=ground.evidence,
        shape=shape,
        tokens=choice.tokens,
        supply=choice.supply,
        depth=ground.depth,
        prediction=prediction,
        changes=[] if fits else smallest_changes(prediction.config, ground.machine),
        layout=[] if choice.layout is None else list(choice.layout.words),
        loss=loss,
        loss_interval=of_law,
        run_interval=of_run,
        regret=regret(family.laws, choice.supply, choice.candidates, choice.budget, choice.index),
        outside=far,
        reach=choice.reach,
    )


def _planned(ground: Ground, choice: Choice, shape: Shape) -> Prediction:
    """The configuration that the words make. Raises ConfigError where it is none, such as a warm-up longer than it."""
    layout = ground.config.train if choice.layout is None else choice.layout.prediction.config
    config = dataclasses.replace(layout, model=shape.model, total_tokens=choice.tokens)
    if problems := config.problems():
        raise ConfigError([f"of the advised run: {problem}" for problem in problems])
    supply = int(ground.supply.tokens) if np.isfinite(ground.supply.tokens) else None
    return predict(config, ground.machine, supply)


def _outside(ground: Ground, shape: Shape, tokens: int) -> Outside:
    at, d, flops = ground.evidence.family.points, float(tokens), float(shape.flops_per_token) * tokens
    factors = [1.0]
    for value, sampled in ((shape.n, at.n), (d, at.d), (d / shape.n, at.d / at.n), (flops, at.flops)):
        factors += [value / float(sampled.max()), float(sampled.min()) / value]
    where = list(outside(at, shape.n, d))
    if flops > at.flops.max() * _ROUNDING:
        where.append(f"FLOPs {flops / at.flops.max():.3g} times the most sampled ({at.flops.max():.3g})")
    if flops < at.flops.min() / _ROUNDING:
        where.append(f"FLOPs {at.flops.min() / flops:.3g} times below the fewest sampled ({at.flops.min():.3g})")
    return Outside(max(factors) if where else 1.0, tuple(where))


def _refusal(ground: Ground, shape: Shape, choice: Choice, far: Outside) -> str:
    enough = float(f"{far.factor * 1.05:.2g}")
    return (
        f"the best run, N {shape.n:.3g} and {choice.tokens:.3g} tokens, lies outside of what the "
        f"{len(ground.evidence.rows)} rows sampled: {'; '.join(far.where)}. There the law is a guess and its interval "
        f"does not know it, so no loss is named (extrapolate={ground.config.extrapolate:g}); sample nearer, or say "
        f"extrapolate={enough:g} to see it with its distance"
    )

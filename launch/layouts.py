"""Other layouts of the same run: the smallest changes that make it fit, and the fastest of many that do.

Nothing here changes what is learned, but for the precision, which is only proposed where weights are fp32.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from conf.errors import ConfigError
from launch.predict import Prediction, predict
from train.batch import BatchError
from train.config import TrainConfig
from train.layout_problems import layout_problems
from train.parallel_config import Precision, Recompute
from train.plan import Machine

MOST_SHOWN = 10
MOST_CHANGES = 6
CHUNK_TOKENS = 4096
POWERS = [2**power for power in range(8)]
MICRO_BATCHES = [*range(1, 9), 12, 16, 32, 64, 128]
ROOM = 0.03
"""share of a device's memory that a layout has to leave free to be searched for: fragments and rows of many documents
take what no plan counts"""


@dataclass(frozen=True)
class Change:
    words: tuple[str, ...]
    """the overrides that make it"""
    prediction: Prediction
    rungs: int = 0
    """how far it goes: steps from the value asked to the next possible one, and so on, of all keys together"""


def smallest_changes(config: TrainConfig, machine: Machine) -> list[Change]:
    """Of each key, the least change that alone makes the run fit; where none does, of each pair of keys, then of each
    three. The smallest first, of equal ones the fastest."""
    rungs = _rungs(config, machine.n_devices)
    for n_keys in (1, 2, 3):
        found = [
            change
            for keys in combinations(rungs, n_keys)
            if (change := _least(config, machine, [[(key, value) for value in rungs[key]] for key in keys]))
        ]
        if found:
            return sorted(found, key=lambda change: (change.rungs, _seconds(change)))[:MOST_CHANGES]
    return []


def _rungs(config: TrainConfig, n_devices: int) -> dict[str, list[Any]]:
    """Of each key, the values that need less memory, the nearest first."""
    micro, parallel = config.batch.micro_batch_size, config.parallel
    policies = [Recompute.none, Recompute.selective, Recompute.full]
    return {
        "batch.micro_batch_size": [size for size in range(micro - 1, 0, -1) if micro % size == 0],
        "parallel.activation_checkpointing": policies[policies.index(parallel.activation_checkpointing) + 1 :],
        "loss.chunk_tokens": [] if config.loss.chunk_tokens else [CHUNK_TOKENS],
        "parallel.zero_stage": [stage for stage in (2, 3) if stage > parallel.zero_stage],
        "parallel.tp_size": [parallel.tp_size * factor for factor in (2, 4, 8)],
        "parallel.precision": [Precision.bf16] if parallel.precision == Precision.fp32 else [],
        "parallel.offload_optimizer": [] if parallel.offload_optimizer else [True],
        "cluster.n_devices": [n_devices * 2**power for power in range(1, 8)],
    }


def _least(config: TrainConfig, machine: Machine, ladders: list[list[tuple[str, Any]]]) -> Change | None:
    """The combination that fits with the fewest rungs climbed."""
    steps = sorted(product(*(range(len(ladder)) for ladder in ladders)), key=sum)
    if len(ladders) > 2 and steps:  # many: look only where the farthest step, if it can exist, fits
        farthest = _tried(config, machine, [ladder[-1] for ladder in ladders])
        if farthest is not None and not farthest.prediction.plan.fits:
            return None
    for step in steps:
        change = _tried(config, machine, [ladder[rung] for ladder, rung in zip(ladders, step, strict=True)])
        if change is not None and change.prediction.plan.fits:
            return dataclasses.replace(change, rungs=sum(step))
    return None


def fastest(config: TrainConfig, machine: Machine) -> "Search":
    tried = [change for keys in _layouts(config, machine) if (change := _tried(config, machine, keys)) is not None]
    fitting = [change for change in tried if change.prediction.plan.fits is not False]
    roomy = [change for change in fitting if _has_room(change)]
    least = min((change.prediction.plan.memory.total for change in tried), default=0)
    return Search(
        sorted(roomy, key=_seconds)[:MOST_SHOWN],
        len(tried),
        len(fitting) - len(roomy),
        least,
        _left_out(config, machine),
    )


@dataclass(frozen=True)
class Search:
    best: list[Change]
    """the fastest that fit with room to spare, the fastest first"""
    n_tried: int
    """layouts that could exist"""
    n_tight: int
    """of these, those that would fit with less"""
    least_bytes: int
    """of memory that any of them needs"""
    left_out: list[str]
    """what an expert would miss among them, with the reason"""


def _left_out(config: TrainConfig, machine: Machine) -> list[str]:
    """The first reason of each kind against tensor parallelism, and against all devices as data-parallel ranks."""
    found: list[str] = []
    in_node = min(machine.n_devices, config.cluster.gpus_per_node or machine.n_devices)
    for tp in (size for size in POWERS if 1 < size <= in_node):
        alone = _with(_with(config, "parallel.sp_size", 1), "parallel.tp_size", tp)
        if problems := layout_problems(alone):
            found.append(f"parallel.tp_size={tp} and above: {problems[0]}")
            break
    rows, dp = config.batch.global_batch_size, machine.n_devices
    if rows % dp:
        nearest = _listed(_around(rows, dp), "and")
        found.append(f"dp {dp}: batch.global_batch_size={rows} does not divide by it; nearest {nearest}")
    return found


def _around(value: int, factor: int) -> list[int]:
    """The nearest multiples."""
    below = value // factor * factor
    return [below, below + factor] if below else [factor]


def _has_room(change: Change) -> bool:
    plan = change.prediction.plan
    return plan.machine.memory_bytes is None or plan.memory.total <= (1 - ROOM) * plan.machine.memory_bytes


def _layouts(config: TrainConfig, machine: Machine) -> Iterator[list[tuple[str, Any]]]:
    """Tensor and sequence parallelism within a node, every ZeRO stage, micro-batch and policy of recomputation."""
    for tp, sp in _shared_rows(config, machine):
        rows, rest = divmod(config.batch.global_batch_size, machine.n_devices // (tp * sp))
        if rest:
            continue
        for micro, stage, policy in product(MICRO_BATCHES, (1, 2, 3), Recompute):
            if rows % micro == 0:
                yield [
                    ("parallel.tp_size", tp),
                    ("parallel.sp_size", sp),
                    ("parallel.zero_stage", stage),
                    ("batch.micro_batch_size", micro),
                    ("parallel.activation_checkpointing", policy),
                ]


def _shared_rows(config: TrainConfig, machine: Machine) -> Iterator[tuple[int, int]]:
    """(tp, sp) that use a node up, or a whole part of it, and into which the network can be cut."""
    in_node = min(machine.n_devices, config.cluster.gpus_per_node or machine.n_devices)
    sizes = [size for size in range(1, POWERS[-1] + 1) if in_node % size == 0]
    for tp, sp in product(sizes, sizes):
        if in_node % (tp * sp) or machine.n_devices % (tp * sp):
            continue
        if not layout_problems(_with(_with(config, "parallel.sp_size", sp), "parallel.tp_size", tp)):
            yield tp, sp


def why_none(config: TrainConfig, machine: Machine) -> str:
    """What is in the way of every layout on these devices."""
    alone = _with(_with(config, "parallel.sp_size", 1), "parallel.tp_size", 1)
    shared = list(_shared_rows(config, machine))
    if not shared:
        return "; ".join(layout_problems(alone)) or f"the network cannot be cut for {machine.n_devices} devices"
    rows, n_devices = config.batch.global_batch_size, machine.n_devices
    ranks = sorted({n_devices // (tp * sp) for tp, sp in shared})
    if all(rows % dp for dp in ranks):
        fewer = max(n for n in range(1, n_devices + 1) if rows % n == 0)
        return (
            f"batch.global_batch_size={rows} does not divide by {_listed(ranks)}, the numbers of data-parallel ranks "
            f"that {n_devices} devices can have; batch.global_batch_size={_listed(_around(rows, ranks[-1]))} does, or "
            f"cluster.n_devices={fewer}"
        )
    try:
        predict(_with(alone, "batch.micro_batch_size", 1), machine)
    except (ConfigError, BatchError) as error:
        return "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
    return "; ".join(config.parallel.problems()) or "each breaks a rule of its own"


def _listed(numbers: list[int], last: str = "or") -> str:
    return ", ".join(map(str, numbers[:-1])) + (f" {last} " if len(numbers) > 1 else "") + str(numbers[-1])


def _tried(config: TrainConfig, machine: Machine, keys: list[tuple[str, Any]]) -> Change | None:
    """None for a layout that cannot exist."""
    for key, value in keys:
        config = _with(config, key, value)
    machine = dataclasses.replace(machine, n_devices=config.cluster.n_devices or machine.n_devices)
    if config.parallel.problems():
        return None
    try:
        prediction = predict(config, machine)
    except (ConfigError, BatchError):
        return None
    return Change(tuple(f"{key}={str(value).lower()}" for key, value in keys), prediction)


def _with(config: TrainConfig, key: str, value: Any) -> TrainConfig:
    section, name = key.split(".")
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


def _seconds(change: Change) -> float:
    return 0.0 if change.prediction.step is None else change.prediction.step.total

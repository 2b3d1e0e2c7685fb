"""`launch plan`: what a run needs and costs, before anything is queued. No torch, so it answers at once.

Four questions: what this layout needs (memory by part, time of a step by part, hours, money), what the smallest changes
are that make it fit, which layouts of the same run are fastest (`search=true`), and how far such predictions are from
published measurements (`reproduce=PATH`).
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from conf.errors import ConfigError
from data_prep.manifest import Manifest
from launch.layouts import Change, fastest, smallest_changes
from launch.machine import find_machine
from launch.performance.reproduce import reproduce
from launch.plan_config import PlanConfig
from launch.predict import Prediction, hardware_for, predict
from train.config import TrainConfig
from train.data_config import DataConfig
from train.plan import Machine, Plan, render

HOW_TO_DESCRIBE = (
    "choose a described cluster (cluster=h100, h200, a100_80, ...), or give cluster.generation, "
    "bf16_flops_per_second, memory_gib, memory_bytes_per_second, gpus_per_node, link_bytes_per_second, "
    "network_bytes_per_second and watts"
)


def plan(config: PlanConfig) -> None:
    """Prints the plan of `config`, or what else it asks for. Raises ConfigError or BatchError if it does not fit the
    cluster's devices."""
    if config.reproduce is not None:
        reproduce(config.reproduce)
    elif config.search:
        print(_search_table(config.train))
    else:
        print(_plan_table(config.train))


def planned(config: TrainConfig) -> Plan:
    """Raises ConfigError or BatchError for a layout that cannot be."""
    return _predicted(config).plan


def _predicted(config: TrainConfig) -> Prediction:
    return predict(config, _machine(config), _train_tokens(config.data))


def _machine(config: TrainConfig) -> Machine:
    ranks_a_row = config.parallel.tp_size * config.parallel.sp_size
    return find_machine(config.cluster, config.parallel.precision, ranks_a_row)


def _plan_table(config: TrainConfig) -> str:
    found = _predicted(config)
    rows = [("step", _step(found))]
    if found.plan.fits is False:
        changes = smallest_changes(config, found.plan.machine)
        rows += [("to fit", _change(change)) for change in changes] or [("to fit", "more devices, or a smaller model")]
    return "\n".join([render(found.plan), *(f"  {name:<11} {text}" for name, text in rows)])


def _step(found: Prediction) -> str:
    if found.step is None or found.hardware is None:
        return f"its time is not predicted: {HOW_TO_DESCRIBE}"
    parts = sorted(asdict(found.step).items(), key=lambda part: -part[1])
    shares = ", ".join(f"{name.replace('_', ' ')} {value / found.step.total:.0%}" for name, value in parts[:6])
    speed = found.plan.tokens_per_step / found.step.total
    return f"{found.step.total:.3g} s, {speed:,.0f} tokens/s (predicted for {found.hardware.name}; {shares})"


def _change(change: Change) -> str:
    memory, step = change.prediction.plan.memory.total, change.prediction.step
    time = "" if step is None else f", {step.total:.3g} s a step"
    return f"{' '.join(change.words)}: {memory / 2**30:.1f} GiB{time}"


def _search_table(config: TrainConfig) -> str:
    """Raises ConfigError where no time can be predicted or nothing fits."""
    machine = _machine(config)
    if hardware_for(config, machine) is None:
        raise ConfigError([f"search=true compares predicted times, and this cluster's cannot be: {HOW_TO_DESCRIBE}"])
    found, n_tried = fastest(config, machine)
    if not found:
        raise ConfigError(
            [f"none of {n_tried} layouts on {machine.n_devices} devices fits: more devices, or a smaller model"]
        )
    head = "  dp  tp  sp zero micro accum recompute   memory GiB   step s  tokens/s/GPU   MFU     hours  cost USD"
    best = f"the first: {' '.join(found[0].words)}"
    return "\n".join([f"{n_tried} layouts tried; those that fit, fastest first", head, *_rows(found), best])


def _rows(found: Sequence[Change]) -> list[str]:
    return [_row(change.prediction) for change in found]


def _row(one: Prediction) -> str:
    parallel, batch, made = one.config.parallel, one.batch, one.plan
    assert one.step is not None, "searched without a predicted time"
    speed = made.tokens_per_step / one.step.total / made.machine.n_devices
    cost = "-" if made.cost_usd is None else f"{made.cost_usd:,.0f}"
    return (
        f"{batch.dp_size:>4}{parallel.tp_size:>4}{parallel.sp_size:>4}{parallel.zero_stage:>5}"
        f"{batch.micro_batch_size:>6}{batch.gradient_accumulation_steps:>6} {parallel.activation_checkpointing:<9}"
        f"{made.memory.total / 2**30:>13.1f}{one.step.total:>9.3g}{speed:>14,.0f}{made.expected_mfu:>6.1%}"
        f"{made.seconds / 3600:>10,.1f}{cost:>10}"
    )


def _train_tokens(data: DataConfig) -> int | None:
    """None while a dataset is missing. Raises DataError if there is one that cannot be read."""
    total = 0
    for source in data.mixture.values():
        folder = Path(source.folder)
        if not (folder / "manifest.json").exists():
            return None
        shards = Manifest.load(folder).shards_of("train")
        total += sum(s.tokens for s in shards if source.source in (None, s.source))
    return total

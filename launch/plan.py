"""`launch plan`: what a run needs and costs, before anything is queued. No torch, so it answers at once.

Four questions: what this layout needs (memory by part, time of a step by part, hours, money), what the smallest changes
are that make it fit, which layouts of the same run are fastest (`search=true`), and how far such predictions are from
published measurements (`reproduce=PATH`).
"""

from pathlib import Path

from conf.errors import ConfigError
from data_prep.manifest import Manifest
from launch.layouts import ROOM, fastest, smallest_changes, why_none
from launch.machine import find_machine
from launch.performance.reproduce import reproduce
from launch.plan_config import PlanConfig
from launch.plan_table import HOW_TO_DESCRIBE, plan_table, search_table
from launch.predict import Prediction, hardware_for, predict
from train.config import TrainConfig
from train.data_config import DataConfig
from train.plan import GIB, Machine


def plan(config: PlanConfig) -> None:
    """Prints the plan of `config`, or what else it asks for. Raises ConfigError or BatchError if it does not fit the
    cluster's devices."""
    if config.reproduce is not None:
        reproduce(config.reproduce)
    elif config.search:
        print(_search_table(config.train))
    else:
        print(_plan_table(config.train))


def planned(config: TrainConfig) -> Prediction:
    """Raises ConfigError or BatchError for a layout that cannot be."""
    return predict(config, _machine(config), train_tokens(config.data))


def _machine(config: TrainConfig) -> Machine:
    ranks_a_row = config.parallel.tp_size * config.parallel.sp_size
    return find_machine(config.cluster, config.parallel.precision, ranks_a_row)


def _plan_table(config: TrainConfig) -> str:
    found = planned(config)
    return plan_table(found, smallest_changes(config, found.plan.machine) if found.plan.fits is False else [])


def _search_table(config: TrainConfig) -> str:
    """Raises ConfigError where no time can be predicted or nothing fits."""
    machine = _machine(config)
    if hardware_for(config, machine) is None:
        raise ConfigError([f"search=true compares predicted times, and this cluster's cannot be: {HOW_TO_DESCRIBE}"])
    found = fastest(config, machine)
    if not found.n_tried:
        raise ConfigError([f"no layout on {machine.n_devices} devices can exist: {why_none(config, machine)}"])
    if not found.best:
        room = "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / GIB:.1f} GiB"
        raise ConfigError(
            [
                f"none of {found.n_tried} layouts on {machine.n_devices} devices fits with {ROOM:.0%} to spare: the "
                f"one that needs least takes {found.least_bytes / GIB:.1f} GiB of a device's {room}; more devices, "
                "larger ones, or a smaller model"
            ]
        )
    return search_table(found)


def train_tokens(data: DataConfig) -> int | None:
    """That the run may see; None while a dataset is missing. Raises DataError if there is one that cannot be read,
    ConfigError if it holds fewer than data.unique_tokens."""
    total = 0
    for source in data.mixture.values():
        folder = Path(source.folder)
        if not (folder / "manifest.json").exists():
            return None
        shards = Manifest.load(folder).shards_of("train")
        total += sum(s.tokens for s in shards if source.source in (None, s.source))
    if problems := data.too_many(total):
        raise ConfigError(problems)
    return data.unique_tokens or total

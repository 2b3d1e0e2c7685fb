"""What must be right before anything is started: everything a user can have got wrong, looked at first, reported
together.

No torch: a wrong configuration is answered in about a second, on every rank, before any process group or GPU is
touched.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from conf.compose import ConfigError
from data_prep.files import DataError
from data_prep.manifest import Manifest
from train.batch import BatchError, BatchPlan, solve_batch
from train.config import TrainConfig
from train.parallel import RankGrid
from train.plan import Plan, render
from train.run_folder import RunFolder


@dataclass(frozen=True)
class Setup:
    """A configuration that was checked against its dataset, its run folder and the number of ranks."""

    config: TrainConfig
    grid: RankGrid
    batch: BatchPlan
    manifest: Manifest
    folder: RunFolder

    @property
    def data(self) -> Path:
        return Path(self.config.data.folder)


def check(config: TrainConfig, grid: RankGrid) -> Setup:
    """Starts and writes nothing. Raises ConfigError with every problem at once, or DataError if all that is wrong is a
    dataset that is missing or damaged.
    """
    problems: list[str] = []
    batch = None
    try:
        batch = solve_batch(
            global_batch_size=config.batch.global_batch_size,
            micro_batch_size=config.batch.micro_batch_size,
            dp_size=grid.dp_size,
            seq_len=config.data.seq_len,
            total_tokens=config.total_tokens,
        )
    except BatchError as error:
        problems.append(str(error))
    if config.cluster.n_devices not in (None, grid.world_size):
        problems.append(f"cluster.n_devices={config.cluster.n_devices}, but {grid.world_size} processes were started")
    folder = RunFolder(config)
    problems += folder.differences(config)
    data = Path(config.data.folder)
    try:
        manifest = Manifest.load(data)
        manifest.check(data)
    except DataError as error:
        if problems:
            raise ConfigError([*problems, str(error)]) from None
        raise
    if manifest.vocab_size > config.model.vocab_size:
        problems.append(
            f"model.vocab_size={config.model.vocab_size} has no row for every id: {data} was made with a vocabulary of "
            f"{manifest.vocab_size}; set model.vocab_size={manifest.vocab_size}"
        )
    if problems or batch is None:
        raise ConfigError(problems)
    return Setup(config, grid, batch, manifest, folder)


def is_finished(setup: Setup) -> bool:
    """True if the run has reached its last step already, by its own summary."""
    try:
        summary = json.loads(setup.folder.summary_json.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(summary, dict):
        return False
    return (summary.get("status"), summary.get("step")) == ("finished", setup.batch.total_steps)


def introduce(setup: Setup, plan: Plan) -> str:
    """What will happen, for the console: the plan, the data, the layout."""
    config, grid, manifest, batch = setup.config, setup.grid, setup.manifest, setup.batch
    rows = {
        "data": f"{setup.data}: {manifest.tokens('train'):,} train and {manifest.tokens('val'):,} val tokens, "
        f"vocabulary {manifest.vocab_size:,}",
        "layout": f"{grid.dp_size} data-parallel, ZeRO {config.parallel.zero_stage}, {config.parallel.precision}; "
        f"{batch.micro_batch_size} sequences x {batch.gradient_accumulation_steps} accumulated x {grid.dp_size} ranks "
        f"= {batch.global_batch_size} of {batch.seq_len} tokens",
    }
    lines = [f"run {setup.folder.path}", render(plan), *(f"  {name:<11} {text}" for name, text in rows.items())]
    return "\n".join(lines)

"""The order of the stages: plan → clean → decontaminate → dedup → tokenizer → encode → publish. Each is resumable, and
each but three is a list of jobs that any number of processes or machines may share.

In: a checked `DataPrepConfig`. Out: the dataset's `Manifest` once it is published.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.config import DataPrepConfig, Stage
from data_prep.exchange.incoming import import_dataset
from data_prep.files import exclusive
from data_prep.jobs import Backlog, clear_temporaries
from data_prep.manifest import Manifest
from data_prep.plan import Plan
from data_prep.stages import Stages, say

LOOKING = (Stage.status, Stage.verify, Stage.inspect, Stage.export)  # nothing in `out` is written or locked


def prepare(config: DataPrepConfig) -> Manifest | None:
    """Runs what `config.stage` asks for; returns the manifest if the dataset is finished with it. Raises DataError for
    anything the data or the disk can cause."""
    if config.stage is Stage.import_:
        return import_dataset(Path(config.out), config.peer, config.on_bad_document)
    if config.stage is Stage.seal:
        return _sealed(Path(config.out))
    stages = Stages(config)
    if config.stage in LOOKING:
        return stages.do(config.stage)
    stages.plan()  # before anything is written
    with _held(config), stages:
        manifest = stages.finished_dataset()
        if manifest is not None or config.stage is not Stage.all:
            return manifest or stages.do(config.stage)
        for stage in stages.order():
            manifest = stages.do(stage)
        return manifest


def outstanding(config: DataPrepConfig) -> tuple[Plan, dict[Stage, Backlog | None]]:
    """Leaves the plan that the elements of a job array need, and tells what each stage has to do (see
    `Stages.backlog`); no stage when the dataset is complete. Raises DataError as `prepare` does."""
    stages = Stages(config)
    plan = stages.plan()
    with _held(config):
        if stages.finished_dataset() is not None:
            return plan, {}
        stages.do(Stage.plan)
        return plan, {stage: stages.backlog(stage) for stage in stages.parts()}


def _sealed(folder: Path) -> Manifest:
    with exclusive(folder, "wait for it, then seal"):
        manifest = Manifest.load(folder).seal(folder)
        say(f"verified and sealed {folder}: each of {len(manifest.shards):,} shards has its block checksums")
        return manifest


@contextlib.contextmanager
def _held(config: DataPrepConfig) -> Iterator[None]:
    """One command holds `out` alone; elements of a job array share it, and each element runs once at a time."""
    folder, advice = Path(config.out), "wait for it, or choose another out="
    with exclusive(folder, advice, shared=config.task is not None):
        if config.task is None:
            _clear_all_temporaries(folder)
            try:
                yield
            finally:  # when one worker fails, the others are killed in the middle of theirs
                _clear_all_temporaries(folder)
        else:
            name = f".lock-{config.stage}-{config.task}-of-{config.n_tasks}"
            with exclusive(folder / "work", "the same task was started twice", name=name):
                yield


def _clear_all_temporaries(folder: Path) -> None:
    clear_temporaries(folder)
    for below, _, _ in os.walk(folder / "work"):
        clear_temporaries(Path(below))

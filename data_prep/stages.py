"""What each stage of a preparation consists of: its jobs, whether they are done, and how it is done.

In: a checked `DataPrepConfig`, and the files under its `out`. Out: more of those files. What lies finished there is
used again when it is what was asked for, and refused, with the differing keys, when it is not.
"""

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from data_prep import plan as planning
from data_prep import vocabulary
from data_prep.clean.cleaner import fingerprint
from data_prep.clean.config import CleanConfig
from data_prep.config import DECONTAMINATE_STAGES, DEDUP_STAGES, DataPrepConfig, Stage
from data_prep.curation import Curation
from data_prep.encode import EncodeJob, Vocabulary, gate
from data_prep.exchange.outgoing import export
from data_prep.files import DataError
from data_prep.inspection import console
from data_prep.inspection.corpus import Corpus
from data_prep.inspection.page import write_page
from data_prep.inspection.survey import survey
from data_prep.inspection.tokenizer_report import tokenizer_report
from data_prep.jobs import Backlog, Job, in_ranges
from data_prep.manifest import MANIFEST, Manifest
from data_prep.parts import CleanJob
from data_prep.plan import Plan
from data_prep.publish import publish, remove_strangers
from data_prep.slices import Reading, Slice
from data_prep.tokenizer import Tokenizer
from data_prep.workers import Workers

SINGLE_STAGES = (Stage.plan, Stage.tokenizer, Stage.publish)  # done by one process
WORKER_BYTES = 8 << 20  # what a process should have to do at least; its start takes about a second


class Stages:
    """What each stage consists of, for one configuration. Jobs know by their files what is done. A context: leaving it
    ends the processes that worked for it."""

    def __init__(self, config: DataPrepConfig):
        self._config = config
        self._folder = Path(config.out)
        self._work = self._folder / "work"
        self._reading = Reading(config.source, config.on_bad_document)
        self._cleans = config.clean != CleanConfig()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "_workers" in self.__dict__:
            self._workers.__exit__()

    @cached_property
    def _workers(self) -> Workers:
        return Workers(self._config.workers or workers_for(self._plan.bytes))

    def plan(self) -> Plan:
        return self._plan

    def order(self) -> list[Stage]:
        """The stages that this configuration needs."""
        stages = [Stage.plan]
        stages += [Stage.clean] if self._cleans else []
        stages += [stage for stage in (Stage.decontaminate, Stage.dedup) if self._parts_of(stage)]
        return [*stages, Stage.tokenizer, Stage.encode, Stage.publish]

    def do(self, stage: Stage) -> Manifest | None:
        match stage:
            case Stage.plan:
                self._plan_stage()
            case Stage.tokenizer:
                self._tokenizer_stage()
            case Stage.publish:
                return self._publish_stage()
            case Stage.verify:
                return self._verify()
            case Stage.status:
                print(self._status())
            case Stage.inspect:
                self._inspect()
            case Stage.export:
                say(f"exported to {export(self._folder, self._config.export)}")
            case Stage.dedup | Stage.decontaminate:
                for part in self._parts_of(stage):
                    self._run(part)
            case Stage.encode:
                gate(self._vocabulary, self._slices)
                self._run(stage)
            case _:
                self._run(stage)
        return None

    def jobs(self, stage: Stage) -> Sequence[Job]:
        """All jobs of a stage, finished or not, in the order of the corpus."""
        match stage:
            case Stage.clean if self._cleans:
                return self._clean_jobs
            case Stage.clean:
                raise DataError("stage=clean has nothing to do with this configuration; see clean=")
            case Stage.encode:
                return self._encode_jobs
            case _:
                return self._curation.jobs(stage)

    def parts(self) -> list[Stage]:
        """The stages that this configuration needs, `dedup` and `decontaminate` as their parts."""
        return [part for stage in self.order() for part in self._parts_of(stage)]

    def backlog(self, stage: Stage) -> Backlog | None:
        """What a stage has done and has to do; None while only the stages before it can tell."""
        if stage in SINGLE_STAGES:
            return Backlog(((0, self._single_is_done(stage)),))
        try:
            return Backlog(tuple((job.bytes, job.finished()) for job in self.jobs(stage)))
        except DataError:
            return None

    def finished_dataset(self) -> Manifest | None:
        """The dataset that lies there, if it is the one asked for. Raises DataError if it is another one."""
        if not (self._folder / MANIFEST).exists():
            return None
        manifest = Manifest.load(self._folder)
        differing = planning.differences(manifest.options, planning.options_of(self._config))
        if differing:
            raise DataError(_another_dataset(self._config, differing))
        if manifest.plan != self._plan.sha256:
            if self._config.update:
                say(f"updating {self._folder}: {planning.changes(self._folder, self._plan)}")
                return None
            raise DataError(_outdated(self._config, planning.changes(self._folder, self._plan)))
        if self._config.task is None and (stale := remove_strangers(self._folder, manifest)):
            say(f"removed {len(stale)} shards of an earlier plan")
        manifest.check(self._folder)
        if self._config.keep_dropped and not list(self._work.glob("dropped-*.parquet")):
            raise DataError(
                f"keep_dropped=true comes too late for the finished dataset in {self._folder}; remove "
                f"{self._folder / MANIFEST} to have `clean` done again (the shards are used again)"
            )
        say("this dataset is complete already; nothing to do")
        return manifest

    # --- plan --------------------------------------------------------------------------------------------------------

    @cached_property
    def _plan(self) -> Plan:
        return planning.make(self._config) if self._config.task is None else planning.load(self._config)

    def _plan_stage(self) -> None:
        plan = self._plan
        plan.publish(self._work)
        say(f"corpus: {len(plan.inputs):,} inputs, {plan.bytes / 1e6:,.1f} MB as stored, in {len(plan.tasks):,} tasks")

    @cached_property
    def _slices(self) -> list[Slice]:
        if not self._cleans:
            return [Slice(task.id, task.source, task, self._reading, None) for task in self._plan.tasks]
        return [Slice(job.id, job.task.source, job.task, self._reading, job.part) for job in self._clean_jobs]

    @cached_property
    def _clean_jobs(self) -> list[CleanJob]:
        if not self._cleans:
            return []
        rules, keep_dropped = fingerprint(self._config.clean), self._config.keep_dropped
        clean = self._config.clean
        return [CleanJob(task, self._reading, clean, rules, keep_dropped, self._work) for task in self._plan.tasks]

    @cached_property
    def _curation(self) -> Curation:
        return Curation(self._config, self._slices, self._work)

    # --- tokenizer ---------------------------------------------------------------------------------------------------

    def _tokenizer_stage(self) -> None:
        settings = self._config.tokenizer
        tokenizer = self._existing_tokenizer()
        if settings.model is not None and tokenizer is not None:
            vocabulary.publish(self._folder, tokenizer, "given", None)
        elif tokenizer is not None:
            say(f"the tokenizer in {self._folder} is used again; {vocabulary.ORIGIN} tells what it was trained on")
        else:
            self._require_curated()
            tokenizer, trained_on = vocabulary.make(
                self._slices, self._curation.removals, settings, self._config.val_fraction
            )
            origin = trained_on | {"plan": self._plan.sha256}
            vocabulary.publish(self._folder, tokenizer, self._tokenizer_settings(), origin)
        report = tokenizer_report(tokenizer, vocabulary.samples(self._slices, self._curation.removals))
        say(console.tokenizer_table([report]))

    def _tokenizer_settings(self) -> dict[str, Any]:
        """All that decides which tokenizer is trained: its settings, and how the corpus is read and curated."""
        of_corpus = ("source.", "dedup.", "decontaminate.")
        options = planning.options_of(self._config)
        return vocabulary.wanted_settings(
            self._config.tokenizer,
            self._config.val_fraction,
            fingerprint(self._config.clean),
            {key: value for key, value in options.items() if key.startswith(of_corpus)},
        )

    def _existing_tokenizer(self) -> Tokenizer | None:
        """One trained on other inputs is used again only to bring its own dataset up to date."""
        settings, wanted = self._config.tokenizer, self._tokenizer_settings()
        updates = self._config.update and (self._folder / MANIFEST).exists()
        return vocabulary.existing(self._folder, settings, wanted, None if updates else self._plan.sha256)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._folder, self._tokenizer.sha256)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = self._existing_tokenizer()
        if tokenizer is None:
            raise DataError(
                f"{self._folder} holds no tokenizer for this corpus and these settings{self._drift()}; "
                "run stage=tokenizer first"
            )
        return tokenizer

    # --- shards ------------------------------------------------------------------------------------------------------

    @cached_property
    def _encode_jobs(self) -> list[EncodeJob]:
        cleaned = self._clean_jobs or [None] * len(self._slices)
        return [
            EncodeJob(
                slice,
                self._curation.removals(slice),
                clean_job,
                self._vocabulary,
                self._config.val_fraction,
                self._folder,
            )
            for slice, clean_job in zip(self._slices, cleaned, strict=True)
        ]

    def _require_curated(self) -> None:
        for stage in (*([Stage.clean] if self._cleans else []), *self._curation.stages):
            self._require(stage)

    def _publish_stage(self) -> Manifest:
        self._require(Stage.encode)
        manifest = publish(
            self._folder,
            self._plan,
            self._encode_jobs,
            self._tokenizer,
            self._config.val_fraction,
            self._curation.reports(),
        )
        self._curation.discard()
        return manifest

    # --- looking -----------------------------------------------------------------------------------------------------

    def _verify(self) -> Manifest:
        manifest = Manifest.load(self._folder)
        say(f"verified {manifest.verify(self._folder) / 1e6:,.1f} MB of {self._folder}: every checksum is right")
        return manifest

    def _status(self) -> str:
        """A line a stage: tasks done of all; with n_tasks, which elements of a job array have something left to do."""
        return "\n".join(f"{part:<12}{self._progress_of(part)}" for part in self.parts())

    def _progress_of(self, stage: Stage) -> str:
        backlog = self.backlog(stage)
        if backlog is None:
            return "waits for the stages before it"
        if stage in SINGLE_STAGES:
            return "to do" if backlog.left else "done"
        n_jobs = len(backlog.jobs)
        line = f"{n_jobs - backlog.left:,} of {n_jobs:,} tasks done"
        if self._config.n_tasks is None or not backlog.left:
            return line
        return f"{line}; array elements with something left: {in_ranges(backlog.elements(self._config.n_tasks))}"

    def _single_is_done(self, stage: Stage) -> bool:
        """What lies there is that of this plan and these options, not of earlier ones."""
        try:
            match stage:
                case Stage.plan:
                    return planning.load(self._config).sha256 == self._plan.sha256
                case Stage.tokenizer:
                    return vocabulary.published_sha256(self._folder) == self._tokenizer.sha256
                case _:
                    return Manifest.load(self._folder).plan == self._plan.sha256
        except DataError:
            return False

    def _inspect(self) -> None:
        config = self._config.inspect
        found = survey(Corpus(self._folder), config)
        print(console.text(found))
        if config.page:
            write_page(Path(config.page), found)
            say(f"wrote {config.page}")

    # --- running jobs ------------------------------------------------------------------------------------------------

    def _run(self, stage: Stage) -> None:
        jobs = self.jobs(stage)
        if self._config.task is not None and self._config.n_tasks is not None:
            jobs = jobs[self._config.task :: self._config.n_tasks]
        self._workers.run(str(stage), jobs)
        if jobs and all(job.finished() for job in jobs) and (report := self._curation.report(stage)):
            say(report)

    def _parts_of(self, stage: Stage) -> list[Stage]:
        parts = {Stage.dedup: DEDUP_STAGES, Stage.decontaminate: DECONTAMINATE_STAGES}.get(stage, (stage,))
        return [part for part in parts if part in self._curation.stages or part is stage]

    def _require(self, stage: Stage) -> None:
        missing = sum(not job.finished() for job in self.jobs(stage))
        if missing:
            raise DataError(
                f"stage={stage} is not finished: {missing:,} of {len(self.jobs(stage)):,} tasks are missing in "
                f"{self._folder}{self._drift()}; run stage={stage} first (what is done is used again)"
            )

    def _drift(self) -> str:
        """What to know when tasks are missing that a job array has done: it works by the plan that was left for it."""
        try:
            left = planning.load(self._config)
        except DataError:
            return ""
        if left.sha256 == self._plan.sha256:
            return ""
        return " (the inputs are not those that stage=plan found: files have come, gone or changed since)"


def workers_for(n_bytes: int) -> int:
    """One process for each core that this one may use (under Slurm or taskset not all of the machine's), as far as
    there is enough to do for each to earn its start."""
    return max(1, min(len(os.sched_getaffinity(0)), n_bytes // WORKER_BYTES))


def _another_dataset(config: DataPrepConfig, differing: Sequence[str]) -> str:
    lines = "\n".join(f"  {line}" for line in differing)
    return (
        f"{config.out} holds another finished dataset:\n{lines}\nChoose another out=; or, to turn this one into what "
        f"you asked for, remove {Path(config.out, MANIFEST)} and run again (shards that fit are used again)."
    )


def _outdated(config: DataPrepConfig, changes: str) -> str:
    return (
        f"the inputs of the finished dataset in {config.out} have changed: {changes}. update=true brings it up to date "
        "(only what changed is made anew; a run that trains on it would then be refused: it is another dataset); or "
        "choose another out=."
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

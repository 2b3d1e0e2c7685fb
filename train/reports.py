"""What a run tells people: console, events.jsonl, metrics and curves, summary.json, samples. Rank 0 speaks; on other
ranks the same calls do nothing.

A report that cannot be written is said, noted where that is possible, and never stops a run.
"""

from collections.abc import Callable
from typing import Any

from conf.check import to_yaml
from data_prep.files import publish_json
from train.account import Flops
from train.checkpoint.saver import Outcome as SaveOutcome
from train.curve import write_curve
from train.dashboard import hparams, layout
from train.engine.core import StepResult
from train.evaluate import Evaluation
from train.event_files import Board, TensorBoardCurves
from train.history import device_seconds_before
from train.metrics import DeviceSeconds, Metrics
from train.metrics_file import MetricsFile, is_step
from train.plan import Plan
from train.setup import Setup, introduce
from train.stragglers import Stragglers
from train.summary import Status, baselines, provenance, summarize
from train.texts import Texts, drawn
from train.weights import open_weights


class Reports:
    """Of one process. `open` comes before everything that writes."""

    def __init__(self, setup: Setup, plan: Plan):
        self._setup, self._plan = setup, plan
        self._speaks = setup.grid.is_first
        self._metrics: Metrics | None = None
        self._provenance = provenance()
        self._stragglers = Stragglers(setup.config.health.slow_ratio)
        self._texts = Texts(setup.folder)
        self._restarts = 0
        self._has_stepped = False

    def open(self, step: int, spent: DeviceSeconds) -> None:
        """The logs of a run that stands at `step`: rows after it are forgotten, and their seconds were idle ones."""
        if not self._speaks:
            return
        folder = self._setup.folder
        if (weights := self._setup.starts_from) is not None:
            self.note("start_weights", folder=str(weights), sha256=open_weights(weights, every_byte=False).sha256)
        if self._setup.rebases:
            self.note("rebased", step=step, phase=len(self._setup.phases))
        self._restarts = folder.count("started")
        self._metrics = Metrics(
            MetricsFile(folder.metrics_jsonl, self._insist),
            TensorBoardCurves(folder.tensorboard, self._board()),
            self._setup.batch,
            self._plan,
            self._setup.config.log.every_steps,
            self._setup.source_names,
            [corpus.name for corpus in self._setup.corpora] if len(self._setup.corpora) > 1 else [],
        )
        repeated = self.rewind(step, spent)
        if folder.attempt is not None:  # what earlier attempts have spent after their last checkpoint, and on it
            before = device_seconds_before(folder.path, folder.attempt.number) + self._branched_seconds()
            spent.idle += max(0.0, before - spent.total)
        self.note("started", step=step, world_size=self._setup.grid.world_size, repeated_steps=repeated)
        if step:
            self.say(f"resumed at step {step} of {self._setup.batch.total_steps}")

    def _branched_seconds(self) -> float:
        """Another run's, which the totals hold too."""
        branch = self._setup.branch
        return 0.0 if branch is None else sum(branch.device_seconds.values())

    def rewind(self, step: int, spent: DeviceSeconds) -> int:
        """Forgets the rows after `step`: they will be made again. Returns the number of steps."""
        if self._metrics is None:
            return 0
        self._insist()
        self._texts.forget_after(step)
        rows = self._metrics.rewind(step)
        spent.idle += self._setup.grid.world_size * sum(row.get("seconds", 0.0) for row in rows)
        return sum(is_step(row) for row in rows)

    def say(self, message: str) -> None:
        if self._metrics is not None:
            self._metrics.say(message)

    def note(self, event: str, **facts: Any) -> None:
        """A line of events.jsonl."""
        if self._speaks:
            self._setup.folder.note(event, **facts)

    def warn(self, event: str, problem: str, **facts: Any) -> None:
        """Both."""
        self.say(f"warning: {problem}")
        self.note(event, problem=problem, **facts)

    def step(self, step: int, result: StepResult, lr: float, seconds: float, work: Flops, total: Flops) -> None:
        """work: of the step; total: of the run up to here."""
        if self._metrics is None:
            return
        self._metrics.step(step, result, lr, seconds, self._consumed(step), work, total)
        if not self._has_stepped:
            self.note("first_step", step=step)
            self._has_stepped = True
        if slow := self._stragglers.slow_rank([report.work_seconds for report in result.reports]):
            rank, ratio = slow
            self.note("slow_rank", step=step, rank=rank, ratio=round(ratio, 2))
            self.say(f"warning: rank {rank} is slow: its own work takes {ratio:.1f} times that of the others")

    def skipped(self, step: int, reason: str, total: Flops) -> None:
        if self._metrics is not None:
            self._metrics.skipped(step, reason, self._consumed(step), total)

    def evaluation(self, step: int, evaluation: Evaluation, total: Flops) -> None:
        if self._metrics is not None:
            self._metrics.evaluation(step, evaluation, total)

    def save(self, outcome: SaveOutcome, saved_step: int) -> None:
        """How a save ended; the newest checkpoint is now that of `saved_step`."""
        if outcome.problem:
            self.say(
                f"warning: {outcome.problem}\n         the newest checkpoint stays that of step {saved_step}; another "
                f"save is tried from step {outcome.retry_step} on"
            )
            self.note("save_failed", step=outcome.step, problem=outcome.problem, retry_step=outcome.retry_step)
            return
        seconds = {"seconds": round(outcome.seconds, 3), "paused_seconds": round(outcome.paused_seconds, 3)}
        self.note("saved", step=outcome.step, **seconds)
        if outcome.warning:
            self.warn("old_checkpoints_stay", outcome.warning)

    def sync(self) -> None:
        """Makes the rows so far survive a power cut."""
        if self._metrics is not None:
            self._metrics.file.sync()

    def summary(self, step: int, status: Status, spent: DeviceSeconds, flops: Flops) -> None:
        """summary.json as of now."""
        if self._metrics is None:
            return
        summary = summarize(
            self._setup,
            self._plan,
            self._metrics,
            spent,
            flops,
            step=step,
            status=status,
            restarts=self._restarts,
            provenance=self._provenance,
        )
        self._warned("summary.json", lambda: publish_json(self._setup.folder.summary_json, summary))

    def curve(self) -> None:
        """The picture of the losses."""
        if (metrics := self._metrics) is not None:
            path, rows = self._setup.folder.curve_svg, metrics.file.rows
            self._warned("loss.svg", lambda: write_curve(path, rows, baselines(self._setup)))

    def samples(self, logits: Callable[..., Any], step: int) -> None:
        """What the model writes after `step`. A collective: every rank draws the same tokens from the same seed, rank 0
        writes them."""
        self._warned("samples", lambda: self._write_samples(logits, step))

    def lacks_sample(self, step: int) -> bool:
        """True if `samples` has not written what belongs to `step`, as far as this rank knows."""
        return self._speaks and not self._texts.has(step)

    def end(self, step: int, *, finished: bool, why: str | None) -> None:
        """The last words of a process. why: what came in between, if it stops before it was to."""
        self.note("finished" if finished else "stopped", step=step, reason=why)
        if finished:
            self.say(f"finished: {step} steps in {self._setup.folder.path}")
            return
        on = "as asked (run.stop_at_step)" if why is None else f"on {why}"
        then = f"and saved at step {step}; the same command goes on from here"
        self.say(f"stopped {on} {then if step else 'before the first step; the same command begins again'}")

    def close(self) -> None:
        attempt = self._setup.folder.attempt
        if self._metrics is not None and (attempt is None or attempt.is_current()):
            self._metrics.close()  # which would make curves anew that are not as it left them

    def _consumed(self, step: int) -> dict[str, int]:
        """Slots of each source used so far: predictions, and for best fit their padding."""
        phase = self._setup.phase
        used = dict(zip((source.digest for source in phase.sources), phase.consumed_at(step), strict=True))
        return {corpus.name: used[corpus.digest] for corpus in self._setup.corpora}

    def _write_samples(self, logits: Callable[..., Any], step: int) -> None:
        model = self._setup.data / "tokenizer.model"
        if not model.is_file():
            self.say(f"no samples: {self._setup.data} has no tokenizer.model (its tokens came from another program)")
            return
        texts = drawn(logits, model, self._setup.config, str(self._setup.folder.path))
        if self._metrics is not None:
            self._texts.publish(step, texts, is_last=step == self._setup.batch.total_steps)
            self._metrics.sample(step, texts)

    def _board(self) -> Board:
        """What TensorBoard shows beside the curves."""
        setup = self._setup
        charts = layout(
            n_sources=len(setup.corpora),
            n_ranks=setup.grid.world_size,
            has_device_memory=not self._plan.machine.device.startswith("CPU"),
        )
        texts = {"plan": introduce(setup, self._plan), "resolved_config": to_yaml(setup.config)}
        return Board(charts, texts, hparams(setup.config, self._plan), self._texts.all)

    def _insist(self) -> None:
        """Nothing is written of a run that is another attempt's now."""
        if self._speaks and self._setup.folder.attempt is not None:
            self._setup.folder.attempt.insist()

    def _warned(self, report: str, write: Callable[[], None]) -> None:
        """Raises FencedError if the run is another's now; no other error."""
        self._insist()
        try:
            write()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            self.say(f"warning: {report} could not be made: {problem}")
            self.note("report_failed", report=report, error=problem)

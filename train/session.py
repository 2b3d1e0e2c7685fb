"""One process's share of a run in progress: the verbs of the loop, and how a run starts, saves, stops and ends.

Rank 0 alone speaks and writes logs and reports; of a checkpoint every rank writes its own part. What all must
decide alike (which checkpoint to take up, whether a save succeeded, whether to stop) goes through a sum over ranks.
"""

import math
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np

from data_prep.files import publish_bytes, publish_json
from data_prep.tokenizer import Tokenizer
from train.assemble import Initial, assemble, effective_run
from train.checkpoint.peers import Peers
from train.checkpoint.reader import Checkpoint
from train.checkpoint.saver import Outcome, Saver
from train.claim import claim
from train.curve import write_curve
from train.data import TrainBatches, ValidationBatches
from train.engine.core import StepResult
from train.engine.library import join_ranks, sum_over_ranks
from train.errors import EXIT_PREEMPTED, CheckpointError, NumericsError
from train.evaluate import evaluate
from train.machine import find_machine
from train.metrics import DeviceSeconds, Metrics, MetricsFile, Stopwatch
from train.plan import make_plan
from train.rows import open_rows
from train.run_folder import config_sha256, rest_sha256
from train.sample import SampleCommand, write_sample
from train.schedule import lr_at
from train.setup import Setup
from train.summary import Status, baselines, provenance, summarize
from train.weights import open_weights, start_weights


class Session:
    """A context: entering takes the run up where it stands, leaving closes its files and notes how it ended."""

    step: int
    """optimizer steps completed"""
    saved_step: int
    """step of the newest checkpoint; 0 if there is none"""
    last_step: int
    """where this process stops: the end of the run, or run.stop_at_step"""

    def __init__(self, setup: Setup, device: str, started: float):
        self._setup, self._config = setup, setup.config
        self._is_first = setup.grid.is_first
        machine = find_machine(self._config.cluster, self._config.parallel.precision, device, setup.grid.world_size)
        self._plan = make_plan(self._config, setup.batch, machine, setup.train_tokens)
        self._stop = _StopSignals()
        self._open_data()
        self._provenance = provenance()
        join_ranks(device)
        self._peers = Peers(setup.grid.rank, setup.grid.world_size, lambda flags: sum_over_ranks(flags, device))
        found = claim(setup, self._plan, self._peers)
        self.engine = assemble(self._config, setup.batch, setup.grid, device, self._initial())
        self._saver = Saver(setup.folder.checkpoints, self._config.checkpoint, self._peers)
        self._val_loss: tuple[int, float] | None = None
        self._is_checked = False
        self._take_up(found, started)

    # --- the verbs of the loop ---------------------------------------------------------------------------------------

    def lr(self) -> float:
        """Learning rate of the coming step."""
        batch = self._setup.batch
        return lr_at(
            self._config.schedule,
            batch.tokens_seen(self.step + 1),
            peak_lr=self._config.optimizer.peak_lr,
            total_tokens=batch.total_tokens,
        )

    def is_due(self, every_steps: int) -> bool:
        return self.step % every_steps == 0 or self.step == self._setup.batch.total_steps

    def stop_requested(self) -> bool:
        """True on all ranks if one of them was told to stop."""
        return self.engine.any_rank(self._stop.name is not None)

    def finish_step(self, result: StepResult, lr: float) -> None:
        self.step += 1
        seconds = self._watch.charge("train")
        if not self._is_checked:
            self._say("in force:\n" + effective_run(self._config, self.engine, self._setup.grid))
            self._is_checked = True
        if self._is_first:
            self._metrics.step(self.step, result, lr, seconds, self._consumed())
        self._note_end(self._saver.poll())

    def evaluate(self) -> None:
        result = evaluate(
            self.engine.losses,
            self._validation.batches(self._setup.grid.dp_rank),
            self._token_bytes,
            self.engine.sum_over_rows,
            self.engine.device,
        )
        self._watch.charge("eval")
        if not math.isfinite(result.val_loss):
            self.finish_save()
            raise NumericsError(
                f"validation after step {self.step} gives a loss of {result.val_loss}; it was not saved"
            )
        self._val_loss = self.step, result.val_loss
        if self._is_first:
            self._metrics.evaluation(self.step, result)

    def save(self) -> None:
        """Begins a checkpoint and goes on; how it ended is said and noted a few steps later.

        If the disk is full or away: a warning, the older ones stay, and the next save tries again. Waits for the save
        before, if that still runs. Raises NumericsError if the weights are not finite.
        """
        self.finish_save()
        if self._is_first:
            self._metrics.file.sync()
        self._saver.save(self.step, self.engine.fragments(), self._state())
        self._watch.charge("checkpoint")

    def finish_save(self) -> str | None:
        """Waits for a save that runs. Returns why it could not be written, or None."""
        outcome = self._saver.wait()
        self._watch.charge("checkpoint")
        self._note_end(outcome)
        return outcome.problem if outcome else None

    def conclude(self) -> int:
        """Ends the run, or leaves it ready to be continued. Returns the exit code."""
        finished = self.step == self._setup.batch.total_steps
        self.finish_save()
        if self.step > self.saved_step:
            self.save()
            if problem := self.finish_save():
                raise CheckpointError(problem)
        if finished:
            self._warned(self._write_samples)
        if self._is_first:
            self._warned(self._draw)
            self._write_summary(Status.finished if finished else Status.preempted)
            self._note("finished" if finished else "stopped", step=self.step, reason=self._stop.name)
            self._say(self._last_words(finished))
        self.engine.barrier()
        reached = self.step >= self.last_step
        return 0 if reached else EXIT_PREEMPTED

    # --- start -------------------------------------------------------------------------------------------------------

    def _initial(self) -> Initial | None:
        """What gives the first value of each parameter; None: it is drawn."""
        return None if self._setup.starts_from is None else start_weights(self._setup.starts_from)

    def _open_data(self) -> None:
        config, grid, setup = self._config, self._setup.grid, self._setup
        rows = open_rows(setup.phase, setup.corpora, config.run.seed, setup.packs)
        self.batches = TrainBatches(rows, setup.batch, grid.dp_rank)
        self._validation = ValidationBatches(
            [corpus.stream("val") for corpus in setup.corpora],
            seq_len=config.data.seq_len,
            max_sequences=config.evaluation.max_sequences,
            batch_size=config.batch.micro_batch_size,
            dp_size=grid.dp_size,
            mask_documents=config.data.mask_documents,
        )
        self._token_bytes = np.load(self._setup.data / "token_bytes.npy", allow_pickle=False)

    def _take_up(self, found: Checkpoint | None, started: float) -> None:
        """All ranks: state from the checkpoint, or a fresh start; then the logs."""
        total_steps = self._setup.batch.total_steps
        asked = self._config.run.stop_at_step
        self.last_step = total_steps if asked is None else min(asked, total_steps)
        self.step = self.saved_step = found.step if found else 0
        spent = DeviceSeconds()
        if found:
            found.require(self.engine.expected())
            self.engine.load(found.read, self.step)
            spent = DeviceSeconds(**found.state["device_seconds"])
        self._watch = Stopwatch(spent, self._setup.grid.world_size, started)
        if self._is_first:
            self._start_logs(spent)
        self._watch.charge("idle")

    def _start_logs(self, spent: DeviceSeconds) -> None:
        folder, world_size = self._setup.folder, self._setup.grid.world_size
        self._restarts = folder.count("started")
        file = MetricsFile(folder.metrics_jsonl)
        repeated = file.rewind(self.step)
        spent.idle += world_size * sum(row.get("seconds", 0.0) for row in repeated)
        self._metrics = Metrics(file, folder.tensorboard, self._setup.batch, self._plan, self._config.log.every_steps)
        if (folder := self._setup.starts_from) is not None:
            self._note("start_weights", folder=str(folder), sha256=open_weights(folder, every_byte=False).sha256)
        if self._setup.rebases:
            self._note("rebased", step=self.step, phase=len(self._setup.phases))
        self._note("started", step=self.step, world_size=world_size, repeated_steps=sum("loss" in r for r in repeated))
        if self.step:
            self._say(f"resumed at step {self.step} of {self._setup.batch.total_steps}")
        self._write_summary(Status.running)

    # --- files -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        manifest = self._setup.manifest
        return {
            "step": self.step,
            "tokens_seen": self._setup.batch.tokens_seen(self.step),
            "world_size": self._setup.grid.world_size,
            "val_loss": self._val_loss[1] if self._val_loss and self._val_loss[0] == self.step else None,
            "config_sha256": config_sha256(self._config),
            "rest_sha256": rest_sha256(self._config),
            "data": {
                "tokenizer_sha256": manifest.tokenizer_sha256,
                "phases": [phase.to_tree() for phase in self._setup.phases],
            },
            "device_seconds": vars(self._watch.spent),
        }

    def _note_end(self, outcome: Outcome | None) -> None:
        """Of a save that has just ended."""
        if outcome is None:
            return
        if outcome.problem:
            self._say(
                f"warning: {outcome.problem}\n         the newest checkpoint stays that of step {self.saved_step}"
            )
            self._note("save_failed", step=outcome.step, problem=outcome.problem)
            return
        self.saved_step = outcome.step
        self._note("saved", step=outcome.step)
        if outcome.warning:
            self._say(f"warning: {outcome.warning}")
            self._note("old_checkpoints_stay", problem=outcome.warning)
        if self._is_first:
            self._write_summary(Status.running)

    def _consumed(self) -> dict[str, int]:
        """Slots of each source used so far: predictions, and for best fit their padding."""
        phase = self._setup.phase
        used = dict(zip((source.digest for source in phase.sources), phase.consumed_at(self.step), strict=True))
        return {corpus.name: used[corpus.digest] for corpus in self._setup.corpora}

    def _write_summary(self, status: Status) -> None:
        summary = summarize(
            self._setup,
            self._plan,
            self._metrics,
            self._watch.spent,
            step=self.step,
            status=status,
            restarts=self._restarts,
            provenance=self._provenance,
        )
        self._warned(lambda: publish_json(self._setup.folder.summary_json, summary))

    def _warned(self, write: Callable[[], None]) -> None:
        """A report that cannot be made does not undo a run."""
        try:
            write()
        except Exception as error:
            self._say(f"warning: {error}")
            self._note("report_failed", error=f"{type(error).__name__}: {error}")

    def _write_samples(self) -> None:
        """A collective: every rank draws the same tokens from the same seed, rank 0 writes them."""
        folder, sample = self._setup.folder, self._config.sample
        model = self._setup.data / "tokenizer.model"
        if not model.is_file():
            self._say(f"no samples: {self._setup.data} has no tokenizer.model (its tokens came from another program)")
            return
        tokenizer = Tokenizer.load(model)
        context = self._config.data.seq_len
        texts = [
            write_sample(
                self.engine.logits,
                tokenizer,
                SampleCommand(
                    run=str(folder.path), prompt=prompt, n_tokens=sample.n_tokens, temperature=sample.temperature
                ),
                context,
            )
            for prompt in sample.prompts
        ]
        if self._is_first:
            publish_bytes(folder.samples_txt, "\n----\n\n".join(texts).encode())

    def _draw(self) -> None:
        write_curve(self._setup.folder.curve_svg, self._metrics.file.rows, baselines(self._setup))

    # --- end ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.restore()
        if not self._is_first:
            return
        if error is not None:
            self._note("failed", step=self.step, error=f"{type(error).__name__}: {error}")
            diverged = getattr(error, "exit_code", None) == 5
            self._write_summary(Status.diverged if diverged else Status.failed)
        self._metrics.close()
        self._setup.folder.release()

    def _last_words(self, finished: bool) -> str:
        folder = self._setup.folder.path
        if finished:
            return f"finished: {self.step} steps in {folder}"
        why = f"on {self._stop.name}" if self._stop.name else "as asked (run.stop_at_step)"
        if self.step == 0:
            return f"stopped {why} before the first step; the same command begins again"
        return f"stopped {why} and saved at step {self.step}; the same command goes on from here"

    def _say(self, message: str) -> None:
        if self._is_first:
            self._metrics.say(message)

    def _note(self, event: str, **facts: Any) -> None:
        if self._is_first:
            self._setup.folder.note(event, **facts)


class _StopSignals:
    """SIGTERM, SIGUSR1 and the first Ctrl-C ask for a checkpoint and an end after the step in hand; nothing is cut
    short.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        }

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.name == name:
            raise KeyboardInterrupt
        self.name = self.name or name
        again = " (Ctrl-C again: leave at once)" if number == signal.SIGINT else ""
        print(f"\n{name}: saving after this step{again}", file=sys.stderr, flush=True)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

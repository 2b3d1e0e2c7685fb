"""One process's share of a run in progress: the verbs of the loop, and how a run starts, saves, goes back and ends.

Rank 0 alone speaks and writes logs and reports (`train/reports.py`); of a checkpoint every rank writes its own part.
What all must decide alike travels with the ranks' reports of each step, or through a sum over ranks.
"""

import math
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self

from data_prep.files import DataError
from train.account import Flops, flops_at, flops_of
from train.assemble import assemble, effective_run
from train.checkpoint.peers import Peers
from train.checkpoint.reader import Checkpoint
from train.checkpoint.saver import Outcome as SaveOutcome
from train.checkpoint.saver import Saver
from train.claim import claim, on_first
from train.engine.exchange import sum_over_ranks
from train.engine.library import join_ranks
from train.errors import EXIT_PREEMPTED, CheckpointError, NumericsError, RunFailedError
from train.guard import Guard, Incident, Outcome
from train.health import Health
from train.machine import find_machine
from train.metrics import DeviceSeconds, Stopwatch
from train.parallel import flight_recorder
from train.plan import make_plan
from train.reports import Reports
from train.rollback import NoWayBackError, margin_of, nothing_saved, way_back
from train.schedule import lr_of
from train.setup import Setup
from train.skips import Skips
from train.stop import TIME_LIMIT, Deadline, TimeLimit, install, reason
from train.summary import Status
from train.validation import Validation
from train.watchdog import Limits, Phase, Watchdog
from train.weights import start_weights


class Session:
    """A context: entering takes the run up where it stands, leaving closes its files and notes how it ended."""

    step: int
    """optimizer steps completed, those left out included"""
    saved_step: int
    """step of the newest checkpoint; 0 if there is none"""
    last_step: int
    """where this process stops: the end of the run, or run.stop_at_step"""
    stops: int
    """what has told a rank to stop, as all ranks know by now; 0 if nothing has"""

    def __init__(self, setup: Setup, device: str, started: float):
        self._setup, self._config, self._grid = setup, setup.config, setup.grid
        machine = find_machine(self._config.cluster, self._config.parallel.precision, device, setup.grid.world_size)
        self._plan = make_plan(self._config, setup.batch, machine, setup.train_tokens)
        self._stop = install()
        self._reports = Reports(setup, self._plan)
        self.batches, self._validation = setup.train_batches(), Validation(setup, self._reports)
        join_ranks(device)
        self._peers = Peers(setup.grid.rank, setup.grid.world_size, lambda flags: sum_over_ranks(flags, device))
        self._skips = Skips(self._config.health.skip_steps, setup.folder.path)
        found, self._attempt = claim(setup, self._plan, self._peers, self._skips)
        self.step = 0
        self._watchdog = self._watched()
        self._working("start")
        with self.naming_failures(), ExitStack() as undo:
            undo.callback(self._watchdog.close)
            self._build(device)
            self._start(found, started)
            undo.pop_all()

    def naming_failures(self) -> AbstractContextManager[None]:
        """What is raised inside is recorded, and told once by all ranks together."""
        return self._attempt.naming_failures(self._grid.rank, socket.gethostname(), lambda: (self.step, self._phase))

    # --- the verbs of the loop ---------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """The evaluation and the sample that a stop has kept from being made."""
        if self.step > 0 and self._owes_evaluation():
            self.evaluate()
        if self.step > 0 and self.sample_is_due() and self.engine.largest(self._reports.lacks_sample(self.step)):
            self.sample()

    def train_step(self) -> bool:
        """The next step: learnt from, or left out. False if the run went back to an earlier one instead."""
        step = self.step + 1
        self._working("train" if self._is_checked else "first step")
        if why := self._skips.reason(step):
            self._leave_out(why)
            self.stops = self.engine.largest(self._asked_to_stop())
            return True
        lr = lr_of(step, self._config, self._setup.batch)
        account = self.batches.account(self.step, self._config.model.sliding_window, len(self._setup.source_names))
        result, incident = self._guard.step(
            step, lambda: self.batches.micro_batches(self.step), account, lr, stop=self._asked_to_stop()
        )
        self.stops = result.stop
        if incident is not None:
            self._tell(incident)
            match incident.outcome:
                case Outcome.stop:
                    self._give_up(incident)
                case Outcome.rollback:
                    self._roll_back(incident)
                    return False
                case Outcome.skipped:
                    self._leave_out(incident.finding.reason)
                    return True
                case Outcome.applied | Outcome.warned:
                    pass
        self._completed()
        self._updates += 1
        self._check_once()
        work = flops_of(result.account, self._config.model)
        self._flops += work
        self._reports.step(self.step, result, lr, self._watch.charge("train"), work, self._flops)
        return True

    def is_due(self, every_steps: int) -> bool:
        return self.step % every_steps == 0 or self.step == self._setup.batch.total_steps

    def sample_is_due(self) -> bool:
        """Not at the end: `conclude` makes that one."""
        every, is_last = self._config.sample.every_steps, self.step == self._setup.batch.total_steps
        return every is not None and self.step % every == 0 and not is_last and not self.stops

    def sample(self) -> None:
        """What the model writes by now."""
        self._working("evaluate" if self._has_sampled else "first step")
        with self._aside("eval"):
            self._reports.samples(self.engine.logits, self.step)
        self._has_sampled = True

    def save_is_due(self) -> bool:
        """By the settings, or because one failed a while ago."""
        rule = self._config.checkpoint
        return self.is_due(rule.every_steps) or self.step in rule.keep_steps or self._saver.retry_is_due(self.step)

    def evaluate(self, *, to_the_end: bool = False) -> None:
        """The validation loss. Unless it goes `to_the_end`, a stop ends it without one, and it is made up for later."""
        self._working("evaluate" if self._has_evaluated else "first step")  # which may compile, too
        told = None if to_the_end else self._must_leave
        with self._aside("eval"):
            result = self._validation.at(self.engine, self.step, told)
        if result is None:
            return
        if not math.isfinite(result.val_loss):
            self.finish_save()
            raise NumericsError(
                f"validation after step {self.step} gives a loss of {result.val_loss}, twice; the last checkpoint is "
                f"of step {self.saved_step}"
            )
        self._has_evaluated = True
        self._val_loss = result.val_loss
        self._reports.evaluation(self.step, result, self._flops)

    def save(self) -> None:
        """Begins a checkpoint and goes on; how it ended is said and noted a few steps later.

        If the disk is full or away: a warning, the older ones stay, and a save is tried again a few steps later. Waits
        for the save before, if that still runs. Raises NumericsError if the weights are not finite.
        """
        self._working("save")
        self.finish_save()
        self._reports.sync()
        self._deadline.save_began()
        with self._aside("checkpoint"):
            self._saver.save(self.step, self.engine.fragments(), self._state())

    def finish_save(self) -> str | None:
        """Waits for a save that runs. Returns why it could not be written, or None."""
        self._watchdog.working("save", self.step)  # in whatever phase it is waited for: it may take longer than a step
        with self._aside("checkpoint"):
            outcome = self._saver.wait()
        self._note_end(outcome)
        return outcome.problem if outcome else None

    @contextmanager
    def _aside(self, purpose: str) -> Iterator[None]:
        """What is no part of a step: its time goes to `purpose`."""
        with self.engine.clock.aside():
            yield
        self._watch.charge(purpose)

    def conclude(self) -> int:
        """Ends the run, or leaves it ready to be continued. Returns the exit code."""
        self._working("end")
        reached, finished = self.step >= self.last_step, self.step == self._setup.batch.total_steps
        self.finish_save()
        if self.step > self.saved_step:
            self.save()
            if problem := self.finish_save():
                raise CheckpointError(problem)
        if reached and self._owes_evaluation():  # a stop came; what is saved can wait for it, or for the next start
            self.evaluate(to_the_end=True)
        self._working("end")
        self._reports.curve()
        if finished:
            self._reports.samples(self.engine.logits, self.step)
        self._reports.close()
        # By this the next start knows that nothing is left to do: it comes after all that a kill could take away.
        self._summary(Status.finished if finished else Status.preempted)
        self._reports.end(self.step, finished=finished, why=None if reached else reason(self.stops))
        self.engine.barrier()
        return 0 if reached else EXIT_PREEMPTED

    # --- start -------------------------------------------------------------------------------------------------------

    def _watched(self) -> Watchdog:
        health, rank = self._config.health, self._grid.rank
        limits = Limits(health.stuck_seconds, health.start_seconds)
        return Watchdog(self._attempt.path, rank, self._grid.world_size, limits, flight_recorder(rank))

    def _working(self, phase: Phase) -> None:
        """What this rank is at: a sign of progress, and the place that a failure is named with."""
        self._phase: Phase = phase
        self._watchdog.working(phase, self.step)

    def _build(self, device: str) -> None:
        config, setup = self._config, self._setup
        initial = None if setup.starts_from is None else start_weights(setup.starts_from)
        self.engine = assemble(config, setup.batch, setup.grid, device, initial)
        self._hosts = self.engine.from_all_ranks(socket.gethostname())
        self._saver = Saver(
            setup.folder.checkpoints, config.checkpoint, self._peers, self._attempt.number, self._attempt.insist
        )
        self._health = Health(config.health)
        self._guard = Guard(
            self.engine, self._health, config.health.replica_check_every_steps, measures_every=config.log.every_steps
        )
        self._is_checked = self._has_evaluated = self._has_sampled = False
        self.engine.progress = lambda: self._working(self._phase)

    def _start(self, found: Checkpoint | None, started: float) -> None:
        """All ranks: state from the checkpoint, or a fresh start; then the logs."""
        total_steps = self._setup.batch.total_steps
        asked = self._config.run.stop_at_step
        self.last_step = total_steps if asked is None else min(asked, total_steps)
        self.step = self.saved_step = self._updates = 0
        self._val_loss: float | None = None
        self._flops = Flops()
        spent = DeviceSeconds()
        if found is not None:
            self._take_up(found)
            spent = DeviceSeconds(**found.state["device_seconds"])
        self._watch = Stopwatch(spent, self._grid.world_size, started)
        self._reports.open(self.step, self._watch.spent)
        self._summary(Status.running)
        self._watch.charge("idle")
        self._began_at = self.step
        self._deadline = self._find_deadline()
        self.stops = self._agreed_stop()

    def _take_up(self, found: Checkpoint) -> None:
        """Weights, moments and all that decides what follows, as the checkpoint has it."""
        state = found.state
        found.require(self.engine.expected())
        self._updates = state.get("updates", found.step)  # a checkpoint without it knows of no step left out
        found.give(lambda read: self.engine.load(read, self._updates), self._peers)
        self._health.take_up(state.get("health", {}))
        self._val_loss = state["val_loss"]
        self._flops = flops_at(state, self._plan)
        self.step = self.saved_step = found.step

    def _find_deadline(self) -> Deadline:
        """Rank 0's, which decides for all; the others have none."""
        asked, since = self._config.run.time_limit_seconds, self._stop.since
        limit = TimeLimit.find(asked, since) if self._grid.is_first else TimeLimit.none()
        if limit.problem is not None:
            self._reports.warn("time_limit_unknown", limit.problem)
        return Deadline(limit)

    # --- in a step ---------------------------------------------------------------------------------------------------

    def _completed(self) -> None:
        self.step += 1
        self._val_loss = None
        self._note_end(self._saver.poll())

    def _leave_out(self, why: str) -> None:
        self._completed()
        self._watch.charge("train")
        self._reports.skipped(self.step, why, self._flops)

    def _asked_to_stop(self) -> int:
        """What has told this rank to stop, by now: a signal, or on rank 0 the time that is left."""
        if self.step > self._began_at:
            self._deadline.step_done()
        return self._told_by_now(self._deadline.step_seconds)

    def _told_by_now(self, seconds: float) -> int:
        """The same. seconds: until the next question."""
        if not self._stop.code and self._deadline.is_near(seconds):
            self._stop.ask(TIME_LIMIT)
            if problem := self._deadline.complaint(seconds):
                self._reports.warn("time_limit_too_short", problem)
        return self._stop.code

    def _agreed_stop(self) -> int:
        """A collective."""
        return self.engine.largest(self._stop.code)

    def _check_once(self) -> None:
        """After the first update of this process."""
        if not self._is_checked:
            self._reports.say("in force:\n" + effective_run(self._config, self.engine, self._grid))
            self._is_checked = True

    def _must_leave(self) -> bool:
        """An evaluation. A collective."""
        self.stops = self.engine.largest(self._told_by_now(0.0))
        return self.stops > 0

    def _owes_evaluation(self) -> bool:
        return self.is_due(self._config.evaluation.every_steps) and self._val_loss is None

    # --- incidents ---------------------------------------------------------------------------------------------------

    def _tell(self, incident: Incident) -> None:
        self._reports.say(f"warning: {incident.describe(self._hosts)}: {incident.outcome}")
        if self._grid.is_first:
            facts = incident.to_tree(self._hosts, lambda row: self.batches.documents(self.step, row))
            self._reports.note("flagged", **facts)

    def _give_up(self, incident: Incident) -> NoReturn:
        self.finish_save()
        raise self._no_way_on(incident, nothing_saved(self._setup.folder.events_jsonl))

    def _no_way_on(self, incident: Incident, why: str) -> NumericsError:
        last = f"The last checkpoint is of step {self.saved_step}"
        return NumericsError(f"{incident.describe(self._hosts)}. {why}. {last}")

    def _roll_back(self, incident: Incident) -> None:
        """Back to a checkpoint before the incident; the batches around it are left out this time. A collective."""
        self._working("start")  # reading a checkpoint may take its time
        self.finish_save()
        at, health = incident.step, self._config.health
        margin = margin_of(incident, health)
        try:
            found = way_back(at, margin, health, self._skips, self._setup.folder.checkpoints, self._peers)
        except NoWayBackError as error:
            raise self._no_way_on(incident, str(error)) from None
        rollback = self._skips.add(at, found.step, margin, str(incident.finding.reason))
        on_first(self._peers, self._write_rollbacks)
        skips_in_a_row = self._health.skips_in_a_row
        self._take_up(found)
        self._health.skips_in_a_row = skips_in_a_row
        self._watch.charge("idle")
        repeated = self._reports.rewind(self.step, self._watch.spent)
        self._reports.note(
            "rolled_back", at_step=at, to_step=self.step, left_out=[rollback.first, rollback.last], repeated=repeated
        )
        self._reports.say(f"went back to step {self.step}; {rollback.left_out}")

    def _write_rollbacks(self) -> None:
        """A full disk does not end the run: every checkpoint from here on holds them too, and a run that is killed
        before the next one comes to the same step again."""
        self._attempt.insist()
        try:
            self._skips.write()
        except DataError as error:
            self._reports.warn("rollbacks_not_written", str(error))

    # --- saves -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return self._setup.state(self.step) | {
            "updates": self._updates,
            **self._skips.to_tree(),
            "health": self._health.to_tree(),
            "val_loss": self._val_loss,
            "flops": vars(self._flops),
            "device_seconds": vars(self._watch.spent),
        }

    def _note_end(self, outcome: SaveOutcome | None) -> None:
        """Of a save that has just ended."""
        if outcome is None:
            return
        self._deadline.save_ended()
        if outcome.problem:
            self._reports.save(outcome, self.saved_step)
            return
        self.saved_step = outcome.step
        if self._grid.is_first:
            self._attempt.saved(outcome.step)
        self._reports.save(outcome, self.saved_step)
        self._summary(Status.running)

    def _summary(self, status: Status) -> None:
        self._reports.summary(self.step, status, self._watch.spent, self._flops)

    # --- end ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.close()
        if error is not None:
            words = str(error) if isinstance(error, RunFailedError) else f"{type(error).__name__}: {error}"
            self._reports.note("failed", step=self.step, error=words)
            diverged = getattr(error, "exit_code", None) == NumericsError.exit_code
            if self._attempt.is_current():
                self._summary(Status.diverged if diverged else Status.failed)
        self._reports.close()
        if self._grid.is_first and error is None:
            how = "finished" if self.step == self._setup.batch.total_steps else "stopped"
            self._attempt.end(how, self.step, None if self.step >= self.last_step else reason(self.stops))

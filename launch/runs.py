"""A folder of runs → what is known of each at this moment, asked again and again. No torch.

In: run folders, in whatever state they are, and Slurm's queue. Out: a `RunView` of each. A run is judged by its newest
attempt: how it ended (`ended.json`, failures of ranks), or whether its holder lives: seen by its process where that is
on this machine, else by `alive`, which changes every 2 s. What has not changed is not read again, and a file that is
damaged is named in the view, never raised.
"""

import contextlib
import dataclasses
import difflib
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.files import DataError
from data_prep.harmless import plain
from launch.event_words import words
from launch.rows import GrowingRows, Row, figure
from launch.run_files import JsonFile, Pulse, entries, holder_identity, modified, stamp_of
from launch.run_view import ALIVE, NEEDS_A_PERSON, STEPPING, RunView, State
from launch.squeue import QueuedJob, Squeue
from launch.words import duration
from train.attempt import Identity, is_running
from train.errors import NumericsError
from train.failure import Failure, first_failure
from train.history import Story, read_events, read_stories
from train.holder import read_ended, read_holder
from train.parallel import identity

LONG_IN_QUEUE_SECONDS = 24 * 3600.0
_AVERAGED = 20
_RUN_FILES = ("config.yaml", "metrics.jsonl", "attempts", "events.jsonl", "slurm")


class Runs:
    """Of one folder. `refresh` gives the views of now, those that need a person first, then by newest activity."""

    def __init__(self, folder: Path, queue: Squeue | None = None):
        self.folder, self.queue = folder, queue if queue is not None else Squeue()
        self._readers: dict[str, RunReader] = {}
        self._me = identity()

    @property
    def problem(self) -> str | None:
        """What is wrong with Slurm's queue, if a run here is one of Slurm's."""
        if self.queue.problem and any((self.folder / name / "slurm").exists() for name in self._readers):
            return self.queue.problem
        return None

    def refresh(self, wait: bool = False) -> list[RunView]:
        """wait: for Slurm's answer. Raises DataError if the folder cannot be read."""
        self.queue.refresh(wait)
        names = self.names()
        self._readers = {name: self._reader(name) for name in names}
        views = [reader.view(self.queue.jobs) for reader in self._readers.values()]
        return sorted(views, key=lambda view: (not view.needs_a_person, -view.activity, view.name))

    def one(self, name: str) -> RunView:
        """Raises DataError, with the runs that there are, if this is none."""
        names = self.names()
        if name not in names:
            raise DataError(_no_such_run(self.folder, name, names))
        self.queue.refresh(wait=True)
        return self._reader(name).view(self.queue.jobs)

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name[:1] != ".")
        except OSError as error:
            raise DataError(
                f"there are no runs to look at: {self.folder} cannot be read ({error.strerror}); folder=DIR names "
                "another one, as given to train by run.folder"
            ) from None

    def _reader(self, name: str) -> "RunReader":
        return self._readers.get(name) or RunReader(self.folder / name, self._me)


def _no_such_run(folder: Path, name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"; did you mean run={near[0]}?" if near else ""
    shown = ", ".join(plain(each) for each in names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
    return f"no run {plain(name)!r} in {folder}{guess} There {f'are: {shown}' if names else 'is none at all'}"


class RunReader:
    def __init__(self, path: Path, me: Identity):
        self.path, self._me = path, me
        self.rows = GrowingRows(path / "metrics.jsonl")
        self._json: dict[str, JsonFile] = {name: JsonFile(path / f"{name}.json") for name in ("plan", "summary")}
        self._stories: list[Story] = []
        self._events: list[dict[str, Any]] = []
        self._key: object = None
        self._pulse = Pulse()

    def view(self, jobs: Sequence[QueuedJob] = ()) -> RunView:
        if not any((self.path / name).exists() for name in _RUN_FILES):
            return RunView(_name(self.path), self.path, State.foreign, activity=modified(self.path))
        self.rows.refresh()
        self._refresh_stories()
        mine = self._jobs(jobs)
        newest = self._stories[-1] if self._stories else None
        folder = None if newest is None else self.path / "attempts" / f"{newest.number:04d}"
        failure = None if folder is None else first_failure(folder, 0.0)
        lives = folder is not None and self._lives(folder)
        state = self._state(newest, folder, failure, lives, mine)
        view = dataclasses.replace(self._figures(newest, lives), state=state, jobs=mine)
        if state not in STEPPING:
            view = dataclasses.replace(view, eta_seconds=None)
        view = dataclasses.replace(view, **self._last_word(view, newest, failure))
        return dataclasses.replace(view, concern=self._concern(view, failure))

    # --- what changes -----------------------------------------------------------------------------------------------

    def _refresh_stories(self) -> None:
        """Only when something has happened."""
        names = sorted((path.name for path in entries(self.path / "attempts") if path.name.isdigit()), key=int)
        newest = self.path / "attempts" / names[-1] if names else None
        of_newest = () if newest is None else tuple(stamp_of(path) for path in entries(newest) if path.name != "alive")
        key = (stamp_of(self.path / "events.jsonl"), tuple(names), of_newest)
        if key != self._key:
            with contextlib.suppress(OSError, ValueError):
                self._events, self._stories = read_events(self.path), read_stories(self.path)
                self._key = key

    def _lives(self, attempt: Path) -> bool:
        """The same as a start would find, but that it does not wait to see."""
        if (attempt / "ended.json").exists():
            return False
        holder = read_holder(attempt)
        who = holder_identity(holder)
        if who is not None and self._me.sees(who):
            return is_running(who)
        signs = [stamp_of(attempt / name) for name in ("alive", "holder.json")]
        newest = max((sign[1] for sign in signs if sign), default=0) / 1e9
        return self._pulse.beats(signs, newest)

    # --- the state --------------------------------------------------------------------------------------------------

    def _state(
        self, newest: Story | None, folder: Path | None, failure: Failure | None, lives: bool, jobs: list[QueuedJob]
    ) -> State:
        waits, runs = any(job.waits for job in jobs), any(not (job.waits or job.is_over) for job in jobs)
        if lives and newest is not None:
            if newest.first_step_at is None:
                return State.starting
            return State.saving if self._is_saving(newest.number) else State.running
        how = read_ended(folder).get("how") if folder is not None else None
        if how == "finished" or (newest is not None and newest.ending == "finished"):
            return State.finished
        if waits or runs:
            return State.queued if waits else State.starting
        if newest is None or folder is None:
            return State.stopped if (self.path / "config.yaml").exists() or jobs else State.lost
        if failure is not None or how == "failed":
            diverged = failure is not None and failure.exit_code == NumericsError.exit_code
            return State.diverged if diverged or self._summary.get("status") == "diverged" else State.failed
        if how == "stopped" or newest.ending.startswith("stopped"):
            return State.stopped
        return State.failed if newest.ending.startswith("failed") else State.lost

    def _is_saving(self, attempt: int) -> bool:
        mark = re.compile(rf"\.step-\d+\.a{attempt:04d}\.tmp")
        return any(mark.fullmatch(path.name) for path in entries(self.path / "checkpoints"))

    # --- figures ----------------------------------------------------------------------------------------------------

    @property
    def _plan(self) -> dict[str, Any]:
        return self._json["plan"].read()

    @property
    def _summary(self) -> dict[str, Any]:
        return self._json["summary"].read()

    def _figures(self, newest: Story | None, lives: bool) -> RunView:
        plan, summary, last = self._plan, self._summary, self.rows.last
        step = max((row["step"] for row in (last, self.rows.last_evaluation) if row), default=summary.get("step"))
        total = _count(plan, "total_steps")
        learnt = [row for row in self.rows.recent if "loss" in row]
        hours = self._device_hours(newest, lives)
        price = figure(_section(plan, "price"), "usd_per_device_hour")
        evaluation = self.rows.last_evaluation or summary
        return RunView(
            name=_name(self.path),
            path=self.path,
            state=State.damaged,
            step=step if type(step) is int else None,
            total_steps=total,
            tokens=last.get("tokens_seen"),
            total_tokens=_count(plan, "tokens_planned"),
            loss=figure(learnt[-1], "loss") if learnt else None,
            recent_losses=[loss for row in learnt if (loss := figure(row, "loss")) is not None],
            curve=[(row["tokens_seen"], loss) for row in self.rows.curve if (loss := figure(row, "loss")) is not None],
            val_loss=figure(evaluation, "val_loss"),
            bits_per_byte=figure(evaluation, "bits_per_byte"),
            tokens_per_second=_typical(learnt, "tokens_per_second"),
            mfu=_typical(learnt, "mfu"),
            memory_gib=figure(last, "memory_gib"),
            eta_seconds=self._eta(learnt, step, total) if lives else None,
            device_hours=hours,
            cost_usd=None if hours is None or price is None else hours * price,
            attempt=newest.number if newest else None,
            restarts=max(0, len(self._stories) - 1),
            host=plain(newest.host) if newest and newest.host else None,
            world_size=newest.world_size if newest else None,
            problems=self._problems(),
        )

    def _device_hours(self, newest: Story | None, lives: bool) -> float | None:
        """What all devices have lived in all attempts: from the start of each to its last sign of life, or to now."""
        if newest is None:
            return None
        seconds = sum(max(0.0, story.seconds) * (story.world_size or 1) for story in self._stories[:-1])
        until = time.time() if lives else max(newest.last_sign, self._last_write(newest))
        return (seconds + max(0.0, until - newest.started) * (newest.world_size or 1)) / 3600

    def _last_write(self, newest: Story) -> float:
        """Of the newest attempt, if it left no word: when it last wrote a row or said that it lives."""
        folder = self.path / "attempts" / f"{newest.number:04d}"
        if read_ended(folder):
            return 0.0
        return max(modified(path) for path in (folder / "alive", folder / "holder.json", self.path / "metrics.jsonl"))

    def _eta(self, learnt: Sequence[Row], step: Any, total: int | None) -> float | None:
        """At the pace of the last steps, with evaluations and saves taking the share that they took so far."""
        pace = _typical(learnt, "seconds")
        if pace is None or total is None or type(step) is not int:
            return None
        hours = _section(self._summary, "device_hours")
        train, *others = [figure(hours, name) or 0.0 for name in ("train", "eval", "checkpoint")]
        more = 1 + sum(others) / train if train > 0 else 1.0
        return max(0, total - step) * pace * min(more, 10.0)

    def _problems(self) -> list[str]:
        found = [file.problem for file in self._json.values() if file.problem]
        if self.rows.n_foreign:
            found.append(f"{self.rows.n_foreign} lines of metrics.jsonl are no rows of a run")
        return found

    # --- words ------------------------------------------------------------------------------------------------------

    def _last_word(self, view: RunView, newest: Story | None, failure: Failure | None) -> dict[str, Any]:
        """The last thing that happened, when, and the newest sign of anything."""
        event = self._events[-1] if self._events else {}
        said, when = (words(event), event["time"]) if event else (None, None)
        if failure is not None and view.state in (State.failed, State.diverged):
            said, when = f"failed: {plain(failure.describe())}", failure.time
        waiting = next((job for job in view.jobs if job.waits), None)
        if waiting is not None and view.state == State.queued:
            said = f"job {waiting.number} waits: {plain(waiting.why())}"
            when = modified(self.path / "slurm") if newest is None else when
        times = [modified(self.path / name) for name in ("metrics.jsonl", "events.jsonl", "slurm")]
        times += [newest.last_sign if newest else 0.0, modified(self.path)]
        activity = time.time() if view.state in ALIVE else max(times[:2] + times[3:4]) or max(times)
        return {"event": said, "event_time": when, "activity": activity}

    def _concern(self, view: RunView, failure: Failure | None) -> str | None:
        never = next((job for job in view.jobs if job.never_starts), None)
        if never is not None:
            return f"job {never.number} waits in vain: {plain(never.why())}"
        if view.state == State.queued and time.time() - (view.event_time or view.activity) > LONG_IN_QUEUE_SECONDS:
            return f"waiting in the queue for {duration(time.time() - (view.event_time or view.activity))}"
        if view.state not in NEEDS_A_PERSON:
            return None
        over = next((f"; Slurm ended job {job.number}: {job.state}" for job in view.jobs if job.is_over), "")
        if self._exit_word() == "6":
            return f"its last starts reached no new step, so it is not started again (exit code 6){over}"
        match view.state:
            case State.lost:
                return f"ended without a word, or its machine was lost{over}"
            case State.damaged:
                return "; ".join(view.problems)
            case _:
                return plain(failure.describe()) if failure is not None else f"{view.state}{over}"

    def _exit_word(self) -> str:
        """What a rank told the newest job's script."""
        files = [path for path in entries(self.path / "slurm") if path.suffix == ".exit"]
        newest = max(files, key=modified, default=None)
        with contextlib.suppress(OSError, AttributeError):
            return newest.read_text(errors="replace").strip()  # pyright: ignore[reportOptionalMemberAccess]
        return ""

    def _jobs(self, jobs: Sequence[QueuedJob]) -> list[QueuedJob]:
        if not jobs:
            return []
        slurm = self.path / "slurm"
        ids = {path.stem for path in entries(slurm) if path.suffix == ".log"}
        name = job_name(slurm)
        mine = [job for job in jobs if job.number in ids or (name is not None and job.name == name)]
        return sorted(mine, key=lambda job: (job.is_over, -_leading(job.number)))


def job_name(slurm: Path) -> str | None:
    """As the script in this folder calls its job."""
    with contextlib.suppress(OSError):
        found = re.search(r"^#SBATCH --job-name=(\S+)$", (slurm / "job.sh").read_text(errors="replace"), re.MULTILINE)
        return found[1] if found else None
    return None


def _name(path: Path) -> str:
    return plain(path.name).replace("\n", "\\n").replace("\t", "\\t")


def _typical(rows: Sequence[Row], key: str) -> float | None:
    """The median of the last steps: a single one's rate flickers."""
    values = [value for row in rows[-_AVERAGED:] if (value := figure(row, key)) is not None]
    return statistics.median(values) if values else None


def _section(facts: dict[str, Any], key: str) -> dict[str, Any]:
    section = facts.get(key)
    return section if isinstance(section, dict) else {}


def _count(facts: dict[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return value if type(value) is int else None


def _leading(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0

"""Runs the cells of a sweep on this computer: a child process a cell, cheap ones first, several side by side.

In: cells, what they are expected to cost, and the caps. Out: run folders, a ledger that is written anew after each
cell, a sealed forecast before each held-out run and its score after, and a report. A cell that diverges or fails does
not end the sweep. A signal is handed on to the children, which save and leave; when this process dies without a word
they get one too. The same command then goes on from there.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from conf.errors import ConfigError
from launch import words
from launch.sweep.cells import Cell
from launch.sweep.children import Places, command, environment, parented
from launch.sweep.config import SweepConfig
from launch.sweep.costs import Cost, costs, whole_device_hours
from launch.sweep.outcome import Outcome
from launch.sweep.states import Become, State, lost, may_begin, state_of
from train.metrics_file import last_step

_LOOK_SECONDS = 0.5
_TELL_SECONDS = 60.0
_LEAVE = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Child:
    cell: Cell
    process: "subprocess.Popen[bytes]"
    place: int | None
    """None: all of them"""
    started: float
    log: IO[bytes]


class Runner:
    def __init__(self, config: SweepConfig, cells: Sequence[Cell], priced: Mapping[str, Cost], places: Places):
        self._config, self._cells = config, list(cells)
        self._costs, self._outcome = dict(priced), Outcome(config, cells)
        self._places = places
        self._children: list[_Child] = []
        self._tried: set[str] = set()
        self._failed: dict[str, str] = {}
        self._broken = False
        """a cell has failed in this start"""
        self._told_to_leave: int | None = None
        self._told_at = time.monotonic()

    def run(self) -> int:
        """The exit code: 0 when every cell has ended (a diverged one has, and what would begin as it did), 1 if one
        failed or could not begin, 143 or 130 after a signal."""
        with ExitStack() as stack:
            for number in _LEAVE:
                before = signal.signal(number, self._leave)
                stack.callback(signal.signal, number, before)
            while self._step():
                time.sleep(_LOOK_SECONDS)
        return self._end()

    def _step(self) -> bool:
        """Looks once at all children and starts what can be started; False when nothing runs any more."""
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._ended(child)
        while self._told_to_leave is None and (cell := self._next()) is not None:
            self._start(cell)
        if time.monotonic() - self._told_at > _TELL_SECONDS and self._children:
            self._say(self._progress())
        return bool(self._children)

    # --- what is next ------------------------------------------------------------------------------------------------

    def _next(self) -> Cell | None:
        """The cheapest cell that can begin now; a held-out one when no other runs or can begin any more."""
        if len(self._children) == self._places.count:
            return None
        waiting = [cell for cell in self._cells if cell.name not in self._tried and not self._is_done(cell)]
        for cell in waiting:
            if cell.held_out and (self._children or self._broken):
                return None  # a row that failed may be there after the next start, and the law would lack it
            if may_begin(cell) and self._has_room(cell):
                return cell
        return None

    def _is_done(self, cell: Cell) -> bool:
        return any(child.cell is cell for child in self._children) or state_of(cell).is_over

    def _has_room(self, cell: Cell) -> bool:
        """Under the caps, by what was really spent and what those that run will still take."""
        hours, usd = self._config.sweep.max_device_hours, self._config.sweep.max_usd
        running = {child.cell.name for child in self._children} | {cell.name}
        needs = sum(
            whole_device_hours(other, self._costs[other.name], state_of(other).summary, other.name not in running)
            for other in self._cells
        )
        price = needs * (self._config.cluster.usd_per_device_hour or 0.0)
        if (hours is None or needs <= hours) and (usd is None or price <= usd):
            return True
        self._tried.add(cell.name)
        self._failed[cell.name] = f"left out: with what was spent it would take {needs:.3g} device-hours, above the cap"
        return False

    # --- children ----------------------------------------------------------------------------------------------------

    def _start(self, cell: Cell) -> None:
        self._tried.add(cell.name)
        if not self._is_foretold(cell):
            return
        place = None if cell.held_out else self._places.free([child.place for child in self._children])
        cell.folder.mkdir(parents=True, exist_ok=True)
        log = (cell.folder / "console.log").open("ab")
        process = subprocess.Popen(
            command(cell),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(self._places, place),
            start_new_session=True,
            preexec_fn=parented(self._places.cores(place)),
        )
        self._children.append(_Child(cell, process, place, time.monotonic(), log))
        state = state_of(cell)
        goes_on = f", goes on at step {state.step}" if state.become == Become.partial and state.step else ""
        self._say(f"start  {cell.name}{goes_on}  (about {words.duration(self._costs[cell.name].seconds)})")

    def _is_foretold(self, cell: Cell) -> bool:
        """A held-out run starts only after its forecast is sealed."""
        if not cell.held_out:
            return True
        try:
            self._outcome.before(cell, self._costs[cell.name], self._say)
        except ConfigError as error:
            self._failed[cell.name] = f"not started, for it could not be foretold: {'; '.join(error.problems)}"
            self._say(f"FAILED {cell.name}: {self._failed[cell.name]}")
            return False
        return True

    def _ended(self, child: _Child) -> None:
        self._children.remove(child)
        child.log.close()
        cell, code, state = child.cell, child.process.returncode, state_of(child.cell)
        took = words.duration(time.monotonic() - child.started)
        if state.become == Become.finished and code == 0:
            self._say(f"done   {cell.name}  {state.words(cell)}  in {took}  ({self._count()})")
        elif state.become == Become.diverged:
            self._say(f"DIVERGED  {cell.name} at step {state.step}, in {took}: the sweep goes on")
        elif self._told_to_leave is not None and state.become in (Become.new, Become.partial):
            self._say(f"left   {cell.name}, saved at step {state.step} of {cell.steps}")
        else:
            self._broken = True
            self._failed[cell.name] = f"exit code {code}; see {cell.folder / 'console.log'}: {_last_line(cell.folder)}"
            self._say(f"FAILED {cell.name}: {self._failed[cell.name]}")
        self._reckon()
        self._outcome.record(self._say)

    def _reckon(self) -> None:
        """What the rest will cost, by what has ended."""
        summaries = {cell.name: state.summary for cell in self._cells if (state := state_of(cell)).summary}
        waiting = costs(self._cells, summaries)
        self._costs |= {name: cost for name, cost in waiting.items() if name not in self._tried}

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self._told_to_leave = number
        for child in self._children:
            with suppress(ProcessLookupError):  # it has ended, and its code was read just now
                os.killpg(child.process.pid, signal.SIGTERM)

    # --- words -------------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._told_at = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def _count(self) -> str:
        done = sum(state_of(cell).is_over for cell in self._cells)
        return f"{done} of {len(self._cells)}"

    def _progress(self) -> str:
        running = ", ".join(
            f"{child.cell.name} {last_step(child.cell.folder / 'metrics.jsonl') / child.cell.steps:.0%}"
            for child in self._children
        )
        return f"       {running};  {self._count()} done, {words.duration(self._left_seconds())} left"

    def _left_seconds(self) -> float:
        """If all places were busy to the end."""
        now = time.monotonic()
        waiting = [cell for cell in self._cells if cell.name not in self._tried and not state_of(cell).is_over]
        running = [max(0.0, self._costs[c.cell.name].seconds - (now - c.started)) for c in self._children]
        share = sum(self._costs[cell.name].seconds for cell in waiting if not cell.held_out) + sum(running)
        return share / self._places.count + sum(self._costs[cell.name].seconds for cell in waiting if cell.held_out)

    def _end(self) -> int:
        states: dict[str, State] = {cell.name: state_of(cell) for cell in self._cells}
        gone = lost(self._cells, states)
        for cell in self._cells:
            if cell.name in gone:
                print(f"lost: {cell.name}: {gone[cell.name]}")
            elif not states[cell.name].is_over and cell.name not in self._failed and self._told_to_leave is None:
                self._failed[cell.name] = _why_not(cell, states)
        for name, why in self._failed.items():
            print(f"not done: {name}: {why}")
        self._outcome.record(self._say)
        self._outcome.close(self._say)
        if self._told_to_leave is not None:
            print("stopped as asked; the same command goes on from what is saved")
            return 128 + self._told_to_leave
        return 1 if self._failed else 0


def _why_not(cell: Cell, states: Mapping[str, State]) -> str:
    if cell.parent is not None and (before := states.get(cell.parent)) is not None:
        return (
            f"it shares its first {cell.shared_steps} steps with {cell.parent}, which is {before.become} at step "
            f"{before.step} and has no checkpoint of that step"
        )
    if cell.held_out:
        return "it waits for cells before it, of which one failed: start again, or take that one out of the axes"
    return "it was not come to"


def _last_line(folder: Path) -> Any:
    lines = (folder / "console.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"

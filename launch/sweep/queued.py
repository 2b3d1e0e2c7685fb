"""A sweep under Slurm: what is left of it as one job array, held-out runs after all others, each with its forecast.

In: cells and what has become of them. Out: with submit=true an array in the queue; the same command again, when it has
ended, sends what is left, and when nothing else is left seals the forecasts of held-out runs and sends those.
"""

import sys
from collections.abc import Mapping, Sequence

from conf.errors import ConfigError
from launch import slurm
from launch.sweep import slurm_array as arrays
from launch.sweep.cells import Cell
from launch.sweep.config import SweepConfig
from launch.sweep.costs import Cost
from launch.sweep.outcome import Outcome
from launch.sweep.states import State, lost


def send(config: SweepConfig, cells: Sequence[Cell], priced: Mapping[str, Cost], states: Mapping[str, State]) -> int:
    """The exit code: 1 if a held-out run could not be foretold. cells: those within the caps."""
    outcome = Outcome(config, cells)
    if any(state.summary for state in states.values()):
        outcome.record(_say)
    gone = lost(cells, states)
    left = [cell for cell in cells if not states[cell.name].is_over and cell.name not in gone]
    first = [cell for cell in left if not cell.held_out]
    if not left:
        outcome.close(_say)
        return 0
    problems = [] if first else _foretold(outcome, left, priced)
    chains = _chains(first or [cell for cell in left if cell.name not in problems])
    if chains:
        made = arrays.sweep_array(
            outcome.folder, chains, config.job, config.slurm, at_once=config.sweep.jobs,
            max_idle_starts=config.run.max_idle_starts,
        )  # fmt: skip
        print(arrays.told(made, arrays.send(made)))
        for words in slurm.doubts(arrays.options(made)):
            print(f"note: {words}", file=sys.stderr)
    if first and len(left) > len(first):
        print("held-out runs come after these: the same command again seals their forecasts and sends them")
    return 1 if problems else 0


def _foretold(outcome: Outcome, held_out: Sequence[Cell], priced: Mapping[str, Cost]) -> dict[str, str]:
    """Cell → why it cannot be foretold, and may not start."""
    problems: dict[str, str] = {}
    for cell in held_out:
        try:
            outcome.before(cell, priced[cell.name], _say)
        except ConfigError as error:
            problems[cell.name] = "; ".join(error.problems)
            print(f"not sent: {cell.name}: {problems[cell.name]}")
    return problems


def _chains(left: Sequence[Cell]) -> list[list[arrays.Cell]]:
    """Of cells with something left, each after the one that it begins from; the cheapest chain first."""
    roots: dict[str, list[Cell]] = {}
    for cell in left:
        roots.setdefault(cell.root, []).append(cell)
    chains = sorted(roots.values(), key=lambda chain: sum(cell.own_flops_causal for cell in chain))
    return [
        [arrays.Cell(cell.name, tuple(cell.words()), cell.parent) for cell in sorted(chain, key=lambda c: c.steps)]
        for chain in chains
    ]


def _say(text: str) -> None:
    print(text, flush=True)

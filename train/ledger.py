"""What a run's log says it was fed, against what it must have been fed: step by step, without a model or torch.

In: the rows of metrics.jsonl, the phases of the newest checkpoint, the datasets. For each step its rows are located and
read anew, and their hash, number of targets and tokens are compared with the log's; and on the way each source's slots
are counted: they go up without a gap, and inside an epoch every block is used exactly once. Out: a `Ledger`.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.config import IGNORED_TARGET
from train.filling import filled
from train.fingerprint import fingerprint
from train.lineage import Phase, Source, phase_at
from train.order import Int64Array, Order
from train.rows import PhaseRows


@dataclass
class Ledger:
    steps: int
    """the furthest step that the log or a checkpoint tells of"""
    tokens: int
    """of those steps, each once"""
    tokens_lost: int = 0
    """of steps that the log does not have"""
    tokens_repeated: int = 0
    """of steps that it has more than once"""
    tokens_other: int = 0
    """of steps that were fed something else"""
    skipped: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """(step, reason) of batches that were seen and not learnt from"""
    damaged_lines: int = 0
    """of the log that are no rows of a run"""
    problems: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """(step, what is wrong there), in order of steps"""

    @property
    def balances(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Fed:
    """What one step is made of."""

    batch_hash: str
    n_targets: int
    tokens_seen: int
    source_tokens: dict[str, int]


def balance(
    logged: Sequence[Mapping[str, Any]],
    saved_step: int,
    phases: Sequence[Phase],
    opened: Sequence[PhaseRows],
    seed: int,
) -> Ledger:
    """logged: rows of steps and evaluations, as they stand in the file. saved_step: of the newest checkpoint. opened:
    the rows of each phase."""
    rows = [row for row in logged if "val_loss" not in row]
    last = max([saved_step, *(row["step"] for row in rows)])
    ledger = Ledger(steps=last, tokens=phase_at(phases, last).tokens_seen(last))
    _count(rows, phases, ledger)
    of_step = {row["step"]: row for row in reversed(rows)}
    once = Once(seed)
    for step, fed in feed(phases, opened, last, once):
        for source_problem in once.take_problems():
            ledger.problems.append((step, source_problem))
        if (row := of_step.get(step)) is not None:
            _compare(row, fed, phase_at(phases, step - 1), ledger)
    ledger.problems.sort(key=lambda problem: problem[0])
    return ledger


def _count(rows: Sequence[Mapping[str, Any]], phases: Sequence[Phase], ledger: Ledger) -> None:
    """Steps that are missing, double, or not in order."""

    def tokens(step: int) -> int:
        phase = phase_at(phases, step - 1)
        return phase.global_batch_size * phase.seq_len

    times = Counter(row["step"] for row in rows)
    for step in range(1, ledger.steps + 1):
        if times[step] == 0:
            ledger.tokens_lost += tokens(step)
            ledger.problems.append((step, "is not in metrics.jsonl"))
        elif times[step] > 1:
            ledger.tokens_repeated += (times[step] - 1) * tokens(step)
            ledger.problems.append((step, f"is in metrics.jsonl {times[step]} times"))
    for before, row in itertools.pairwise(rows):
        if row["step"] < before["step"]:
            ledger.problems.append((row["step"], f"comes after step {before['step']}"))
    ledger.problems += [(step, "is no step of a run") for step in times if step < 1]
    ledger.skipped = [(row["step"], str(row["skipped"])) for row in rows if "skipped" in row]


def _compare(row: Mapping[str, Any], fed: Fed, phase: Phase, ledger: Ledger) -> None:
    """The facts that the row has; a step that was learnt from must have its hash."""
    wanted, had = flat(vars(fed)), flat(row)
    other = [
        f"{name} is {had[name]}, not {wanted[name]}" for name in wanted if name in had and had[name] != wanted[name]
    ]
    if "batch_hash" not in row and "skipped" not in row:
        other.append("has no batch_hash")
    if other:
        ledger.tokens_other += phase.global_batch_size * phase.seq_len
        ledger.problems.append((row["step"], f"was fed other data: {'; '.join(other)}"))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Its values, those of `source_tokens` each under the source's name: the log has only those in use."""
    sources = {f"source_tokens of {name}": used for name, used in (row.get("source_tokens") or {}).items()}
    return {name: value for name, value in row.items() if name != "source_tokens"} | sources


def feed(
    phases: Sequence[Phase], opened: Sequence[PhaseRows], last: int, once: "Once | None" = None
) -> Iterator[tuple[int, Fed]]:
    """(step, what it must be fed) of steps 1 ... last."""
    for step in range(1, last + 1):
        phase = phase_at(phases, step - 1)
        rows = opened[phases.index(phase)]
        first = phase.first_sample(step - 1)
        samples = np.arange(first, first + phase.global_batch_size, dtype=np.int64)
        if once is not None:
            once.take(phase, samples)
        tokens, targets, *_ = filled(rows, rows.pieces(samples))
        used = zip((source.name for source in phase.sources), phase.consumed_at(step), strict=True)
        yield (
            step,
            Fed(
                batch_hash=f"{fingerprint([(tokens, targets)], 0):016x}",
                n_targets=int((targets != IGNORED_TARGET).sum()),
                tokens_seen=phase.tokens_seen(step),
                source_tokens=dict(reversed(list(used))),  # of equal names, the one in use
            ),
        )


class Once:
    """Counts the slots of every source as they are used: none is left out, none comes twice in an epoch."""

    def __init__(self, seed: int):
        self._seed = seed
        self._next: dict[str, int] = {}
        """of each source, by digest: slots used so far"""
        self._epochs: dict[str, tuple[tuple[int, int], Int64Array]] = {}
        """of each source: (stretch, epoch) in hand, and the slots used of each of its blocks"""
        self._problems: list[str] = []

    def take(self, phase: Phase, samples: Int64Array) -> None:
        of_source, indices = phase.mixture.locate(samples)
        for i in np.unique(of_source).tolist():
            source = phase.sources[i]
            consumed = source.consumed + indices[of_source == i] * phase.seq_len
            begin = self._next.get(source.digest, 0)
            if not np.array_equal(consumed, begin + phase.seq_len * np.arange(len(consumed))):
                self._problems.append(f"leaves out or repeats rows of the source {source.name}")
            self._next[source.digest] = int(consumed[-1]) + phase.seq_len
            self._mark(source, consumed, phase.seq_len)

    def take_problems(self) -> list[str]:
        """What was found since the last call."""
        found, self._problems = self._problems, []
        return found

    def _mark(self, source: Source, consumed: Int64Array, seq_len: int) -> None:
        order = source.order(self._seed)
        _, positions, lengths = order.runs(consumed, seq_len)
        at = np.concatenate([[0], np.cumsum(lengths)[:-1]]) + int(consumed[0])
        for begin, position, length in zip(at.tolist(), positions.tolist(), lengths.tolist(), strict=True):
            number, epoch = place(order, begin)
            stretch = order.stretches[number]
            held = self._epochs.get(source.digest)
            if held is None or held[0] != (number, epoch):
                self._finish(source, order, held)
                held = (number, epoch), np.zeros(stretch.source_slots // stretch.block + 1, np.int64)
                self._epochs[source.digest] = held
            inside = (begin - stretch.begins) % stretch.block
            block = (position - inside) % stretch.source_slots // stretch.block
            held[1][block] += length
            if held[1][block] > stretch.block:
                self._problems.append(f"uses a row of the source {source.name} a second time in epoch {epoch}")

    def _finish(self, source: Source, order: Order, held: tuple[tuple[int, int], Int64Array] | None) -> None:
        """Every block of an epoch was used whole."""
        if held is None:
            return
        (number, epoch), used = held
        stretch = order.stretches[number]
        n_blocks = stretch.first_block(epoch + 1) - stretch.first_block(epoch)
        if int((used == stretch.block).sum()) != n_blocks:
            self._problems.append(f"begins another epoch before all rows of the source {source.name} were used")


def place(order: Order, consumed: int) -> tuple[int, int]:
    """(number of the stretch, epoch) of the block in use after so many slots."""
    number = sum(stretch.begins <= consumed for stretch in order.stretches) - 1
    stretch = order.stretches[number]
    block = (consumed - stretch.begins) // stretch.block
    return number, (stretch.first_slot + block * stretch.block) // stretch.epoch_slots

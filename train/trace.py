"""Which documents a step of a run was made of, and in which steps a document was, or will be, used.

    python -m train.trace run=runs/hello step=200                          # the documents of a batch
    python -m train.trace run=runs/hello step=200 text=true                # with the start of each, decoded
    python -m train.trace run=runs/hello document=train-0123456789abcdef:7 # every place of one document, to the end

Nothing is looked up in a log: the order of the data is computed, forwards and backwards, over all phases of the run.
Tokens are counted where they are inputs; what a row predicts is one token further. Steps count from 1, as in
metrics.jsonl; rows and positions from 0.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.compose import App, entry
from data_prep.files import DataError
from data_prep.manifest import Manifest
from data_prep.shards import read_sidecar
from train.config import TrainConfig
from train.corpus import Corpus
from train.data_config import SourceConfig
from train.lineage import Phase, phase_at
from train.rows import PADDING, Packs, SourceRows, open_rows
from train.run_folder import RunFolder, config_of
from train.sample import tokenizer_in
from train.stream import Passage


@dataclass
class TraceCommand:
    run: str
    """the run's folder"""
    step: int | None = None
    """a step, counted from 1: the documents of its batch"""
    document: str | None = None
    """SHARD:NUMBER, the number counted from 0: every place of this document in the run"""
    text: bool = False
    """show how each document's part begins"""

    def problems(self) -> list[str]:
        if (self.step is None) == (self.document is None):
            return ["trace needs one of the two: step=N, or document=SHARD:NUMBER"]
        if self.step is not None and self.step < 1:
            return [f"step={self.step} must be at least 1: steps are counted as in metrics.jsonl"]
        if self.document is not None and not self.document.rpartition(":")[2].isdigit():
            return [f"document={self.document} must be SHARD:NUMBER, as `step=N` shows them"]
        return []


@dataclass(frozen=True)
class Use:
    """A part of a document in a row."""

    step: int
    row: int
    position: int
    source: str
    digest: str
    """of the source: what it holds, whatever it is called"""
    passage: Passage


class Trace:
    """The order of one run's data, forwards and backwards."""

    def __init__(self, phases: Sequence[Phase], corpora: Sequence[Corpus], seed: int, packs: Packs, total_steps: int):
        self.phases, self.total_steps = phases, total_steps
        self._corpora = {corpus.digest: corpus for corpus in corpora}
        self._rows = [open_rows(phase, corpora, seed, packs) for phase in phases]

    def step(self, step: int) -> Iterator[Use]:
        """The documents of step `step`, row by row. Raises DataError for a step that the run does not have."""
        import numpy as np

        if not 1 <= step <= self.total_steps:
            raise DataError(f"the run has steps 1 ... {self.total_steps}; {step} is none of them")
        phase = phase_at(self.phases, step - 1)
        rows = self._rows[self.phases.index(phase)]
        first = phase.first_sample(step - 1)
        samples = np.arange(first, first + phase.global_batch_size, dtype=np.int64)
        for row, (source, pieces) in enumerate(rows.pieces(samples)):
            at = 0
            for position, pairs in pieces:
                if position == PADDING:
                    at += pairs
                    continue
                for passage in rows.stream(source).passages(position, pairs):
                    yield Use(step, row, at, phase.sources[source].name, phase.sources[source].digest, passage)
                    at += passage.tokens

    def document(self, shard: str, number: int) -> list[Use]:
        """Every place of a document, in order of steps. Raises DataError for one that no source of the run holds."""
        last, rows = self.phases[-1], self._rows[-1]
        uses: list[Use] = []
        found, problem = False, f"no train split of this run holds a shard {shard}"
        for source, of_source, end in zip(last.sources, rows.sources, last.consumed_at(self.total_steps), strict=True):
            if of_source is None:
                continue
            try:
                start, tokens = of_source.stream.document(shard, number)
            except KeyError:
                continue
            except IndexError as error:
                problem = str(error)
                continue
            found = True
            uses += [
                Use(*place, source.name, source.digest, Passage(shard, number, first, length))
                for consumed, offset, run in _consumed(of_source, start, tokens, end)
                for place, first, length in self._places(source.digest, consumed, offset, min(run, end - consumed))
            ]
        if not found:
            raise DataError(problem)
        return sorted(uses, key=lambda use: (use.step, use.row, use.position))

    def _places(
        self, digest: str, consumed: int, first: int, length: int
    ) -> Iterator[tuple[tuple[int, int, int], int, int]]:
        """((step, row, position), first token, tokens) of slots of a source that are used one after the other."""
        import numpy as np

        while length > 0:
            phase, i = self._phase_of(digest, consumed)
            index, position = divmod(consumed - phase.sources[i].consumed, phase.seq_len)
            sample = int(phase.mixture.sample_of(i, np.array([index], np.int64))[0])
            step, row = divmod(sample, phase.global_batch_size)
            taken = min(length, phase.seq_len - position)
            yield (phase.first_step + step + 1, row, position), first, taken
            consumed, first, length = consumed + taken, first + taken, length - taken

    def _phase_of(self, digest: str, consumed: int) -> tuple[Phase, int]:
        """The phase in which a source's slot is used, and the source's number there."""
        for phase in reversed(self.phases):
            for i, source in enumerate(phase.sources):
                if source.digest == digest and source.consumed <= consumed:
                    return phase, i
        raise AssertionError(consumed)

    def input_of(self, use: Use) -> str:
        """The input file that the document came from, if the shard's sidecar says so exactly; else empty."""
        sidecar = _sidecar(self._corpora[use.digest].folder / use.passage.shard)
        if sum(item.documents for item in sidecar.spans) != sidecar.documents:
            return ""
        before = 0
        for item in sidecar.spans:
            before += item.documents
            if use.passage.document < before:
                return item.name
        return ""


_sidecar = functools.lru_cache(read_sidecar)


def _consumed(rows: SourceRows, start: int, tokens: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(slots consumed before, first token of the document, length) of each run of a document's tokens before `end`."""
    for number, stretch in enumerate(rows.order.stretches):
        until = min(end, rows.order.stretches[number + 1].begins) if number + 1 < len(rows.order.stretches) else end
        if rows.packs is None:
            spans = [(start, 0, tokens)]
        else:
            pieces = rows.packs[stretch.block].places(start, tokens - 1)
            spans = [(slot, position - start, pairs) for position, slot, pairs in pieces]
        last_epoch = (until - stretch.shift) // stretch.epoch_slots
        for epoch in range(
            stretch.first_slot // stretch.epoch_slots, last_epoch + 2
        ):  # a block may run into the next epoch
            for slot, first, count in spans:
                for consumed, offset, length in rows.order.uses(number, epoch, slot, count):
                    if consumed < until:
                        yield consumed, first + offset, length


def open_trace(run: Path) -> tuple[Trace, TrainConfig, list[Corpus]]:
    """The order of the run in this folder, by its newest checkpoint. Raises DataError if there is none."""
    from train.setup import phases_of

    config = config_of(run)
    newest = RunFolder(config).newest_state()
    if newest is None:
        raise DataError(f"{run} holds no checkpoint yet, which would tell the order of its data")
    phases = phases_of(newest[1])
    corpora = _found(config, phases)
    left = max(0, config.total_tokens - phases[-1].tokens_before)
    total_steps = phases[-1].first_step + -(-left // (phases[-1].global_batch_size * phases[-1].seq_len))
    packs = Packs(config.data.pack_folder, verify=False)
    return Trace(phases, corpora, config.run.seed, packs, total_steps), config, corpora


def _found(config: TrainConfig, phases: Sequence[Phase]) -> list[Corpus]:
    """The sources of all phases: where the configuration says they are, else where they were at the time."""
    wanted = {source.digest: source for phase in phases for source in phase.sources}
    candidates = [
        *config.data.mixture.items(),
        *((s.name, SourceConfig(s.folder, s.label)) for s in wanted.values()),
    ]
    found: dict[str, Corpus] = {}
    manifests: dict[str, Manifest] = {}
    for name, source in candidates:
        if not (Path(source.folder) / "manifest.json").is_file():
            continue
        manifest = manifests.setdefault(source.folder, Manifest.load(Path(source.folder)))
        corpus = Corpus(name, source, manifest)
        if corpus.digest in wanted:
            found.setdefault(corpus.digest, corpus)
    for digest, source in wanted.items():
        if digest not in found:
            raise DataError(f"the source {source.name} of this run is not at {source.folder} any more, or was changed")
    return list(found.values())


def _run(command: TraceCommand) -> None:
    trace, config, corpora = open_trace(Path(command.run))
    if command.step is not None:
        uses = list(trace.step(command.step))
    else:
        shard, _, number = (command.document or "").rpartition(":")
        uses = trace.document(shard, int(number))
    if not uses:
        unique = config.data.unique_tokens
        why = "" if unique is None else f": it draws only a part of the rows (data.unique_tokens={unique:_})"
        print(f"no row of the run holds this document{why}")
        return
    columns = ["step", "row", "position", "tokens", "source", "document", "its tokens", "input"]
    lines = [
        [
            str(use.step),
            str(use.row),
            str(use.position),
            str(use.passage.tokens),
            use.source,
            f"{use.passage.shard}:{use.passage.document}",
            f"{use.passage.first}...{use.passage.first + use.passage.tokens - 1}",
            trace.input_of(use),
        ]
        for use in uses
    ]
    if command.text:
        columns.append("text")
        for line, text in zip(lines, _texts(uses, corpora), strict=True):
            line.append(text)
    print_table(columns, lines)


def _texts(uses: Sequence[Use], corpora: Sequence[Corpus]) -> Iterator[str]:
    tokenizer = tokenizer_in(corpora[0].folder)
    streams = {corpus.digest: corpus.stream("train") for corpus in corpora}
    for use in uses:
        stream = streams[use.digest]
        start, _ = stream.document(use.passage.shard, use.passage.document)
        ids = stream.read(start + use.passage.first, min(use.passage.tokens, 24))
        yield repr(tokenizer.decode(ids))[:60]


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [columns, *lines]) for i in range(len(columns))]
    for row in [columns, *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    entry(App("trace", TraceCommand, {}, verbatim=("document",)), _run)


if __name__ == "__main__":
    main()

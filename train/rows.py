"""Sample number → the pieces of documents that its row is made of: order, mixture and packing put together. No torch.

A row of T predictions is a list of pieces, each a (position, predictions) of one source's token stream: inputs are the
ids from `position` on, targets the ids one further. Concatenated text gives one piece of T predictions (several where
a rebase cuts rows from blocks of another length); best-fit packing gives a piece for each document, and padding, whose
position is PADDING.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.files import DataError, HeldError, exclusive
from train.corpus import Corpus
from train.data_config import Packing
from train.lineage import Phase, Source
from train.order import Int64Array, Order
from train.packing import HINT, Pack, build, identity, pack_folder
from train.stream import TokenStream

Pieces = list[tuple[int, int]]
PADDING = -1


class SourceRows:
    """Rows of one source, by how many slots of it were used before."""

    def __init__(self, stream: TokenStream, order: Order, packs: Mapping[int, Pack] | None = None):
        """packs: for best fit, the pack of each row length that the source has been or is read with."""
        self.stream, self.order, self.packs = stream, order, packs

    def pieces(self, consumed: Int64Array, seq_len: int) -> list[Pieces]:
        """The pieces of the row of seq_len slots that follows each of these counts."""
        rows, positions, lengths = self.order.runs(consumed, seq_len)
        found: list[Pieces] = [[] for _ in consumed]
        taken = [0] * len(consumed)
        for row, position, length in zip(rows.tolist(), positions.tolist(), lengths.tolist(), strict=True):
            if self.packs is None:
                found[row].append((position, length))
            else:
                block = self.order.block_at(int(consumed[row]) + taken[row])
                at, start = divmod(position, block)
                pieces = self.packs[block].pieces(at, start, start + length)
                found[row] += pieces
                if gap := length - sum(pairs for _, pairs in pieces):
                    found[row].append((PADDING, gap))
            taken[row] += length
        return found


class PhaseRows:
    """Rows of one phase, by sample number."""

    def __init__(self, phase: Phase, sources: Sequence[SourceRows | None]):
        """sources: beside the phase's own; None for one that the phase never draws from."""
        self.phase, self.sources = phase, sources

    def pieces(self, samples: Int64Array) -> list[tuple[int, Pieces]]:
        """(source, pieces) of each row. samples: counted from the phase's beginning."""
        of_source, indices = self.phase.mixture.locate(samples)
        found: list[tuple[int, Pieces]] = [(0, [])] * len(samples)
        for i in np.unique(of_source).tolist():
            inside = np.flatnonzero(of_source == i)
            rows = self.sources[i]
            assert rows is not None
            consumed = self.phase.sources[i].consumed + indices[inside] * self.phase.seq_len
            for at, pieces in zip(inside.tolist(), rows.pieces(consumed, self.phase.seq_len), strict=True):
                found[at] = (i, pieces)
        return found

    def stream(self, source: int) -> TokenStream:
        rows = self.sources[source]
        assert rows is not None
        return rows.stream


def open_rows(phase: Phase, corpora: Sequence[Corpus], seed: int, packs: "Packs") -> PhaseRows:
    """The rows of a phase from the corpora at hand, which are found by what they hold."""
    at_hand = {corpus.digest: corpus for corpus in corpora}

    def opened(source: Source) -> SourceRows | None:
        corpus = at_hand.get(source.digest)
        if corpus is None:
            return None
        blocks = {stretch.block for stretch in source.stretches}
        of_block = {block: packs.of(corpus, block) for block in blocks} if phase.packing == Packing.best_fit else None
        return SourceRows(corpus.stream("train"), source.order(seed), of_block)

    return PhaseRows(phase, [opened(source) for source in phase.sources])


@dataclass
class Packs:
    """Packs at hand: opened once, made by one process when they are missing while the others wait."""

    base: str | None
    """data.pack_folder"""
    makes: bool = True
    """False: another process of this run makes them"""
    verify: bool = True
    """every byte is read when a pack is opened; else only sizes are looked at"""
    say: Callable[[str], None] = print
    patience: float = 60
    """seconds after which a message is repeated, or a damaged pack that nobody mends is given up"""

    def __post_init__(self) -> None:
        self._opened: dict[Path, Pack] = {}

    def of(self, corpus: Corpus, seq_len: int) -> Pack:
        """The pack as it lies there now: one that another process has made anew since is opened anew. Raises DataError
        when it is damaged (the maker makes it anew) or cannot be written."""
        base = Path(self.base) if self.base else corpus.folder / "packs"
        folder = pack_folder(base, corpus.digest, seq_len)
        pack = self._opened.get(folder)
        if pack is None or pack.identity != identity(folder):
            pack = self._made(folder, corpus, seq_len) if self.makes else self._awaited(folder, corpus, seq_len)
            self._opened[folder] = pack
        return pack

    def _made(self, folder: Path, corpus: Corpus, seq_len: int) -> Pack:
        with contextlib.suppress(FileNotFoundError, DataError):
            return Pack.open(folder, corpus.digest, seq_len, verify=self.verify)
        with self._alone(folder):
            try:
                return Pack.open(folder, corpus.digest, seq_len, verify=self.verify)  # another job may have made it
            except FileNotFoundError:
                self.say(f"packing {corpus.folder} into rows of {seq_len} (once; kept in {folder})")
            except DataError as error:
                self.say(f"warning: {error} It is made anew now.")
            facts = build(folder, corpus.stream("train"), corpus.digest, seq_len, self.say)
            self.say(f"packed {facts.pairs:,} predictions into {facts.rows:,} rows, {facts.fill:.2%} full")
            return Pack.open(folder, corpus.digest, seq_len, verify=False)

    @contextlib.contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Holds the right to make this pack, once whoever else has it is done."""
        saying = _Repeated(self.say, self.patience)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive(folder.parent, "waiting for it", name=f".{folder.name}.lock"))
                    break
                except HeldError:
                    saying(f"another job is making {folder}: waiting for it")
                    time.sleep(1)
                except DataError as error:
                    raise DataError(f"{error}{HINT}") from error
            yield

    def _awaited(self, folder: Path, corpus: Corpus, seq_len: int) -> Pack:
        """Waits for a missing pack as long as it takes: the launcher ends this process if the maker dies. Raises
        DataError when one that is there stays unusable."""
        saying = _Repeated(self.say, self.patience)
        since, seen = time.monotonic(), None
        while True:
            found = identity(folder)
            try:
                return Pack.open(folder, corpus.digest, seq_len, verify=self.verify)
            except FileNotFoundError:
                saying(f"waiting for the first process to make {folder}")
            except DataError as error:
                if found != seen:
                    since, seen = time.monotonic(), found
                if time.monotonic() - since > self.patience:
                    raise
                saying(f"waiting for the first process to mend {folder}: {error}")
            time.sleep(min(1, self.patience))


class _Repeated:
    """Says a message at once, and again whenever so many seconds have passed."""

    def __init__(self, say: Callable[[str], None], seconds: float):
        self._say, self._seconds, self._next = say, seconds, 0.0

    def __call__(self, message: str) -> None:
        if time.monotonic() >= self._next:
            self._say(message)
            self._next = time.monotonic() + self._seconds

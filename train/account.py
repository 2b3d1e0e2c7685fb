"""The rows of a step → what they hold beside ids: tokens, attended pairs, and the source of each row. No torch.

Work is counted by the segments that attention really stays in: the documents of a row where data.mask_documents is set,
else all of the row's tokens. Padding never counts. Exact integers, whatever ranks the rows are dealt out to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from model.arithmetic import attended_pairs, square_flops, square_pairs, training_flops
from model.config import ModelConfig
from train.data_config import Packing
from train.order import Int64Array
from train.plan import Plan
from train.rows import PADDING, PhaseRows, Pieces
from train.stream import TokenStream


@dataclass(frozen=True)
class Account:
    """Of the rows of one rank, or of all."""

    n_tokens: int = 0
    """padding left out"""
    n_pairs: int = 0
    """of a query and a key that see each other"""
    n_square: int = 0
    """the same without causality: every position of a segment with every other (in the window, where there is one)"""
    sources: tuple[int, ...] = ()
    """of each row, in order; () where there is a single one"""
    n_sources: int = 0

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.n_tokens, self.n_pairs, self.n_square


NOTHING = Account()
"""was told of the rows"""


@dataclass(frozen=True)
class Flops:
    """Of training on so many tokens, forward and backward, by both conventions (`model/arithmetic.py`)."""

    full: int = 0
    causal: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.full + other.full, self.causal + other.causal)


def flops_of(account: Account, model: ModelConfig) -> Flops:
    return Flops(
        square_flops(model, account.n_tokens, account.n_square),
        training_flops(model, account.n_tokens, account.n_pairs),
    )


def flops_at(state: Mapping[str, Any], plan: Plan) -> Flops:
    """Of a run up to a checkpoint with this state. One of an earlier version does not say, and every token that the run
    had seen then counted as the plan has it."""
    if "flops" in state:
        return Flops(**state["flops"])
    n_tokens = state["tokens_seen"]
    return Flops(n_tokens * plan.flops_full_per_token, n_tokens * plan.flops_causal_per_token)


def account_of(rows: PhaseRows, samples: Int64Array, window: int | None, n_sources: int) -> Account:
    """window: positions that a query sees, itself included; None means all before it. n_sources: whose losses are to be
    told apart; 0 if none."""
    phase = rows.phase
    if phase.packing == Packing.concat and not phase.mask_documents:  # nothing to look up: every row is full
        found = phase.mixture.locate(samples)[0].tolist() if n_sources else []
        lengths = [phase.seq_len] * len(samples)
    else:
        located = rows.pieces(samples)
        found = [source for source, _ in located] if n_sources else []
        lengths = [n for source, pieces in located for n in segment_lengths(rows, source, pieces)]
    return Account(
        n_tokens=sum(lengths),
        n_pairs=attended_pairs(lengths, window),
        n_square=square_pairs(lengths, window),
        sources=tuple(found),
        n_sources=n_sources,
    )


def segment_lengths(rows: PhaseRows, source: int, pieces: Pieces) -> list[int]:
    """Tokens of each part of a row inside which attention stays. Without masks that is all of the row but its
    padding."""
    real = [(position, pairs) for position, pairs in pieces if position != PADDING]
    if not rows.phase.mask_documents:
        return [sum(pairs for _, pairs in real)]
    if rows.phase.packing == Packing.best_fit:  # each piece is of one document
        return [pairs for _, pairs in real]
    return [n for position, pairs in real for n in _documents(rows.stream(source), position, pairs)]


def _documents(stream: TokenStream, position: int, pairs: int) -> Iterable[int]:
    starts = [start for start in stream.document_starts(position, pairs).tolist() if start > 0]
    return [stop - start for start, stop in pairwise([0, *starts, pairs])]

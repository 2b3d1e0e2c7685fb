"""The rows of a step, counted over all ranks: targets, tokens, attended pairs, their hash, and each source's loss.

Counts are integers and added up in one collective before the first forward; losses are added up on the device, and
travel with the ranks' reports (`train/engine/exchange.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.loss import IGNORED_TARGET
from train.account import Account
from train.engine.exchange import sum_over_ranks
from train.errors import NumericsError
from train.fingerprint import fingerprint, from_pieces, pieces_of
from train.parallel import RankGrid


@dataclass(frozen=True)
class Counts:
    """Of the rows of all ranks."""

    n_targets: int
    batch_hash: str
    account: Account
    source_targets: list[int]


def count(
    batches: Sequence[tuple[Tensor, ...]], account: Account, grid: RankGrid, rows_per_rank: int, device: str
) -> Counts:
    """account: of this rank's rows. A collective, in integers, so it is exact. Raises NumericsError if there is no
    target at all."""
    per_row = [n for batch in batches for n in (batch[1] != IGNORED_TARGET).sum(1).tolist()]
    by_source = [0] * account.n_sources
    for source, n in zip(account.sources, per_row, strict=bool(account.sources)):
        by_source[source] += n
    mine = fingerprint(batches, grid.dp_rank * rows_per_rank)
    sums = [sum(per_row), *pieces_of(mine), *account.numbers, *by_source]
    if grid.world_size > 1:
        is_one = grid.tp_rank == grid.sp_rank == 0  # of those that are given the same rows
        sums = sum_over_ranks(sums if is_one else [0] * len(sums), device)
    n_targets, pieces, (n_tokens, n_pairs, n_square), by_source = sums[0], sums[1:5], sums[5:8], sums[8:]
    if n_targets == 0:
        raise NumericsError("a step holds no prediction at all: every document in it is a single token")
    whole = Account(n_tokens, n_pairs, n_square, n_sources=account.n_sources)
    return Counts(n_targets, from_pieces(pieces), whole, by_source)


class BySource:
    """Adds up the nats of a step by the source of each row, on the device and without waiting for it."""

    def __init__(self, account: Account, device: str):
        numbers = torch.tensor(account.sources, dtype=torch.int64)
        members = (numbers == torch.arange(account.n_sources).unsqueeze(1)).to(torch.float64)
        self._members = members.to(device, non_blocking=True)
        """(sources, rows): 1 where the row is of the source"""
        self.nats = torch.zeros(account.n_sources, dtype=torch.float64, device=device)
        self._next_row = 0

    def take(self, losses: Tensor) -> None:
        """losses: (B, T) of this rank's part of the next rows."""
        if len(self.nats):
            members = self._members[:, self._next_row : self._next_row + len(losses)]
            self.nats += members @ losses.detach().sum(1, dtype=torch.float64)
            self._next_row += len(losses)


def means(nats: Sequence[Sequence[float]], targets: Sequence[int]) -> tuple[float | None, ...]:
    """Nats per target of each source; None for one without targets. nats: of each source, from each rank."""
    return tuple(math.fsum(of_ranks) / n if n else None for *of_ranks, n in zip(*nats, targets, strict=True))

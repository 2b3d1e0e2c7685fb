"""How the ranks of a run agree: one small sum of integers over all ranks, which the caller brings.

Whatever is a collective in `train/checkpoint/` goes through `Peers.agree`, on the thread that called; a process alone
is `ALONE`. A message travels as a sum too: the lowest rank that has one adds its bytes, all others add zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass

MESSAGE_BYTES = 1000


@dataclass(frozen=True)
class Peers:
    rank: int = 0
    size: int = 1
    agree: Callable[[list[int]], list[int]] = list
    """a collective: element by element the sum over ranks of lists of equal length"""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, number: int) -> int:
        """Rank 0's number, on every rank. A collective."""
        return self.agree([number if self.is_first else 0])[0]

    def first_message(self, message: str | None) -> str | None:
        """The message of the lowest rank that has one, on every rank; None if no rank has any. A collective.

        It says which rank that is, and is cut after MESSAGE_BYTES.
        """
        holders = self.agree([int(message is not None and rank == self.rank) for rank in range(self.size)])
        if not any(holders):
            return None
        speaker = holders.index(1)
        text = (message or "").encode()[:MESSAGE_BYTES] if speaker == self.rank else b""
        spoken = bytes(self.agree(list(text.ljust(MESSAGE_BYTES, b"\0")))).rstrip(b"\0").decode(errors="ignore")
        return spoken if self.size == 1 else f"rank {speaker}: {spoken}"


ALONE = Peers()

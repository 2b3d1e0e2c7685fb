"""How a step's sequences are dealt out: exact or refused, never rounded. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """global_batch_size = micro_batch_size x gradient_accumulation_steps x dp_size, exactly."""

    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    dp_size: int
    seq_len: int
    total_steps: int
    first_step: int = 0
    """steps completed before these sizes held (a run that was rebased)"""
    tokens_before: int = 0
    """tokens of those steps"""

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.seq_len

    @property
    def total_tokens(self) -> int:
        return self.tokens_seen(self.total_steps)

    def tokens_seen(self, step: int) -> int:
        """Tokens of the first `step` steps of the run; `step` is not before first_step."""
        return self.tokens_before + (step - self.first_step) * self.tokens_per_step

    @property
    def sequences_per_rank(self) -> int:
        """Sequences of one step on one data-parallel rank."""
        return self.global_batch_size // self.dp_size


class BatchError(ValueError):
    """The batch cannot be dealt out evenly. The message names the nearest sizes that can."""

    exit_code = 2


def solve_batch(
    *,
    global_batch_size: int,
    micro_batch_size: int,
    dp_size: int,
    seq_len: int,
    total_tokens: int,
    first_step: int = 0,
    tokens_before: int = 0,
) -> BatchPlan:
    """The plan for these sizes, from `first_step` on; `total_tokens` of the run is rounded up to whole steps.

    Raises BatchError if micro_batch_size x dp_size does not divide global_batch_size.
    """
    per_forward = micro_batch_size * dp_size
    if global_batch_size % per_forward:
        below = global_batch_size // per_forward * per_forward
        sizes = [str(size) for size in (below, below + per_forward) if size]
        message = (
            f"batch.global_batch_size={global_batch_size} does not divide by batch.micro_batch_size={micro_batch_size} "
            f"x {dp_size} data-parallel ranks = {per_forward}; nearest global batch sizes: {' and '.join(sizes)}"
        )
        if fitting := _fitting_micro_batches(global_batch_size, dp_size):
            message += f"; or keep it with batch.micro_batch_size in {fitting}"
        raise BatchError(message)
    tokens_per_step = global_batch_size * seq_len
    return BatchPlan(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=global_batch_size // per_forward,
        dp_size=dp_size,
        seq_len=seq_len,
        total_steps=first_step + max(0, -(-(total_tokens - tokens_before) // tokens_per_step)),
        first_step=first_step,
        tokens_before=tokens_before,
    )


def _fitting_micro_batches(global_batch_size: int, dp_size: int) -> list[int]:
    if global_batch_size % dp_size:
        return []
    per_rank = global_batch_size // dp_size
    return [size for size in range(1, per_rank + 1) if per_rank % size == 0]

"""Validation loss and bits per byte of a model, during a run and alone.

    python -m train.evaluate run=runs/hello                          # the newest checkpoint, the run's own val split
    python -m train.evaluate run=runs/hello step=200                 # an earlier one
    python -m train.evaluate run=runs/hello max_sequences=1000000    # the whole val split

Always the same rows in the same order, whatever the number of ranks, so two figures of one dataset can be compared.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.compose import App, entry
from train.config import EvaluationConfig


@dataclass(frozen=True)
class SourceFigures:
    val_loss: float
    bits_per_byte: float


@dataclass(frozen=True)
class Evaluation:
    val_loss: float
    """nats per token"""
    val_loss_stderr: float | None
    """standard error of val_loss over sequences; None for a single sequence"""
    bits_per_byte: float
    """Σ nats / (ln 2 · Σ UTF-8 bytes of the target text): comparable across tokenizers"""
    n_tokens: int
    of_sources: tuple[SourceFigures | None, ...] = ()
    """the same of each source's rows; None for a source without any, () if they were not told apart"""


def evaluate(
    losses: Callable,
    batches: Iterable,
    token_bytes,
    sum_over_rows: Callable,
    device: str,
    sources: Sequence[Sequence[int]] = (),
    n_sources: int = 0,
) -> Evaluation:
    """Runs `losses` over this rank's (tokens, targets) or (tokens, targets, segments) and adds up over all rows.

    losses: such a batch to the nats of each target (B, T) fp32, 0 where there is none; sum_over_rows: adds up over the
    ranks that have different rows; token_bytes: (V',) bytes of text that each id stands for; sources: of each row of
    each batch, if they are to be told apart.
    """
    import torch

    from model.loss import IGNORED_TARGET

    widths = torch.as_tensor(token_bytes, dtype=torch.float64, device=device)
    sums = torch.zeros(5, dtype=torch.float64, device=device)  # nats, tokens, bytes, Σ mean², Σ mean, see below
    n_rows = torch.zeros((), dtype=torch.float64, device=device)
    by_source = torch.zeros(3, n_sources, dtype=torch.float64, device=device)  # nats, tokens, bytes
    for number, (tokens, targets, *segments) in enumerate(batches):
        targets = targets.to(device)
        nats = losses(tokens, targets, *segments)
        real = targets != IGNORED_TARGET
        per_row = real.sum(1)
        nonempty = per_row > 0
        row_means = nats.double().sum(1)[nonempty] / per_row[nonempty]
        sums[0] += nats.double().sum()
        sums[1] += real.sum()
        sums[2] += widths[targets[real]].sum()
        sums[3] += row_means.square().sum()
        sums[4] += row_means.sum()
        n_rows += nonempty.sum()
        if n_sources:
            of_rows = torch.tensor(sources[number], device=device)
            members = (of_rows.unsqueeze(1) == torch.arange(n_sources, device=device)).double()  # (B, sources)
            n_bytes = (widths[targets.clamp(min=0)] * real).sum(1)
            by_source += torch.stack([nats.double().sum(1), per_row.double(), n_bytes]) @ members
    total, n_tokens, n_bytes, squares, means = sum_over_rows(sums).tolist()
    rows = float(sum_over_rows(n_rows))
    columns = sum_over_rows(by_source).T.tolist() if n_sources else []
    return Evaluation(
        val_loss=total / n_tokens,
        val_loss_stderr=_standard_error(squares, means, rows),
        bits_per_byte=total / (math.log(2) * n_bytes),
        n_tokens=int(n_tokens),
        of_sources=tuple(
            SourceFigures(nats / count, nats / (math.log(2) * width)) if count and width else None
            for nats, count, width in columns
        ),
    )


def _standard_error(squares: float, total: float, count: float) -> float | None:
    """Of the mean of `count` values with this sum and sum of squares."""
    if count < 2:
        return None
    variance = max(0.0, (squares - total * total / count) / (count - 1))
    return math.sqrt(variance / count)


@dataclass
class EvaluateCommand:
    run: str
    """the run's folder"""
    step: int | None = None
    """which checkpoint; null means the newest"""
    data: str | None = None
    """another dataset made with the same tokenizer; null means the run's own"""
    max_sequences: int = 64

    def problems(self) -> list[str]:
        return EvaluationConfig(max_sequences=self.max_sequences).problems()


def _run(command: EvaluateCommand) -> None:
    from train.parallel import share_cores

    share_cores()

    from data_prep.files import DataError
    from train.corpus import load_corpora
    from train.data import ValidationBatches
    from train.data_config import DataConfig
    from train.trained import load_trained

    trained = load_trained(Path(command.run), command.step)
    data = DataConfig(folder=command.data) if command.data else trained.config.data
    corpora = load_corpora(data)
    folders = ", ".join(str(corpus.folder) for corpus in corpora)
    if corpora[0].manifest.tokenizer_sha256 != trained.tokenizer_sha256:
        raise DataError(f"{folders} was made with another tokenizer than the run's: its ids mean other text")
    batches = ValidationBatches(
        [corpus.stream("val") for corpus in corpora],
        seq_len=trained.config.data.seq_len,
        max_sequences=command.max_sequences,
        batch_size=trained.config.batch.micro_batch_size,
        dp_size=1,
        mask_documents=trained.config.data.mask_documents,
    )
    token_bytes = corpora[0].token_bytes()
    result = evaluate(trained.losses, batches.batches(0), token_bytes, lambda sums: sums, trained.device)
    error = "" if result.val_loss_stderr is None else f" ± {result.val_loss_stderr:.4f}"
    print(
        f"step {trained.step}: val loss {result.val_loss:.4f}{error} nats/token, {result.bits_per_byte:.4f} bits/byte "
        f"over {result.n_tokens:,} tokens of {folders}"
    )


def main() -> None:
    entry(App("evaluate", EvaluateCommand, {}), _run)


if __name__ == "__main__":
    main()

"""The validation loss of a run in progress: left when a stop comes, made again where it is no number.

Out: an `Evaluation` (train/evaluate.py), or None if it was left. All ranks alike.
"""

import math
from collections.abc import Callable, Iterator

from train.data import Batch
from train.engine.core import Engine
from train.evaluate import Evaluation, evaluate
from train.reports import Reports
from train.setup import Setup


class Validation:
    """Raises DataError, when it is made, for a val split without a prediction."""

    def __init__(self, setup: Setup, reports: Reports):
        self._reports = reports
        self._batches = setup.validation_batches()
        self._dp_rank = setup.grid.dp_rank
        self._token_bytes = setup.corpora[0].token_bytes()
        self._n_sources = len(setup.corpora) if len(setup.corpora) > 1 else 0

    def at(self, engine: Engine, step: int, told: Callable[[], bool] | None) -> Evaluation | None:
        """told: asked before each batch, on all ranks; where it says yes, the evaluation is left. None: to the end.

        A loss that is no number may be the machine's fault, and then does not come again with the weights of forward
        taken anew from the masters.
        """
        try:
            result = self._once(engine, told)
            if not math.isfinite(result.val_loss):
                problem = f"validation after step {step} gives {result.val_loss}: made again"
                self._reports.warn("evaluated_again", problem, step=step)
                engine.refresh()
                result = self._once(engine, told)
        except _LeftError:
            return None
        return result

    def _once(self, engine: Engine, told: Callable[[], bool] | None) -> Evaluation:
        batches = self._batches.batches(self._dp_rank)
        return evaluate(
            engine.losses,
            batches if told is None else _until(told, batches),
            self._token_bytes,
            engine.sum_over_rows,
            engine.device,
            self._batches.sources(self._dp_rank),
            self._n_sources,
        )


def _until(told: Callable[[], bool], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Raises _LeftError, on all ranks at the same batch."""
    for batch in batches:
        if told():
            raise _LeftError
        yield batch


class _LeftError(Exception):
    pass

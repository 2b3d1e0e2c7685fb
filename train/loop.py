"""The training loop, to be read in one sitting. What its verbs do is in `train/session.py`.

Saved for resume: weights and Adam moments, the step, and the seconds spent. The data needs nothing more than the step,
the learning rate is a function of it, and nothing in a step is random; so a run that was killed goes on bit for bit.
"""

import math
import time

from train.engine.core import StepResult
from train.errors import NumericsError
from train.parallel import choose_device, prepare_environment
from train.session import Session
from train.setup import Setup


def train(setup: Setup) -> int:
    """Runs, or goes on with, the run that was set up. Returns the exit code: 0 at the last step, 143 if stopped
    before.
    """
    started = time.perf_counter()
    device = choose_device(setup.config.cluster.device, setup.grid)
    prepare_environment(device, setup.grid)
    with Session(setup, device, started) as session, session.naming_failures("train"):
        while session.step < session.last_step and not session.stop_requested():
            lr = session.lr()
            result = session.engine.train_step(session.batches.micro_batches(session.step), lr)
            _refuse_nonfinite(session, result)
            session.finish_step(result, lr)
            if session.is_due(setup.config.evaluation.every_steps):
                session.evaluate()
            if session.is_due(setup.config.checkpoint.every_steps):
                session.save()
        return session.conclude()


def _refuse_nonfinite(session: Session, result: StepResult) -> None:
    if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
        return
    session.finish_save()
    raise NumericsError(
        f"step {session.step + 1}: loss {result.loss}, gradient norm {result.grad_norm}. Nothing of it was saved; the "
        f"last checkpoint is of step {session.saved_step}. A lower optimizer.peak_lr or a longer warm-up is the usual "
        "cure, under a new run.name."
    )

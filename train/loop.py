"""The training loop, to be read in one sitting. What its verbs do is in `train/session.py`.

Saved for resume: weights and Adam moments, the step, how many of the steps were learnt from, the window that a step is
judged by, and the seconds spent. The data needs nothing more than the step, the learning rate is a function of it, and
nothing in a step is random; so a run that was killed goes on bit for bit.
"""

import time

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
    with Session(setup, device, started) as session, session.naming_failures():
        session.catch_up()
        while session.step < session.last_step and not session.stops:
            if not session.train_step():
                continue  # the run went back
            if session.is_due(setup.config.evaluation.every_steps):
                session.evaluate()
            if session.sample_is_due():
                session.sample()
            if session.save_is_due():
                session.save()
        return session.conclude()

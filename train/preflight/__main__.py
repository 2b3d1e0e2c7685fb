"""Are the nodes of a job alike and fit for a run? Asked on all of them, before training; a bad node is named.

    srun --kill-on-bad-exit=0 python -m train.preflight experiment=llama_100m run.name=web      # in a job of Slurm
    torchrun --nproc-per-node 2 -m train.preflight experiment=debug run.name=two
    python -m train.preflight experiment=debug run.name=hello                                   # of this machine alone

Takes the words that `python -m train` takes. Exit code 0: go on; 7: nodes are named that cannot be used; 2 or 3: the
configuration or the data are wrong on every node alike; 143: told to stop.
"""

import os
import signal
import sys
import threading

from conf.compose import App, entry
from train.config import TrainConfig
from train.errors import EXIT_PREEMPTED, RendezvousError, RunFailedError
from train.optimizer_config import OPTIONS
from train.parallel import is_first_of_its_machine, leave_word

APP = App("preflight", TrainConfig, OPTIONS)
LONGEST_SECONDS = 1500.0
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def run(config: TrainConfig) -> int:
    """Errors carry their exit codes."""
    from train.parallel import hush_torch, rank_grid, share_cores

    share_cores()
    hush_torch()
    grid = rank_grid(config.parallel.tp_size, config.parallel.sp_size)
    from train.preflight.course import leave_after, preflight

    leave_after(LONGEST_SECONDS, lambda: f"rank {grid.rank}: preflight did not end within {LONGEST_SECONDS:.0f} s")
    return preflight(config, grid)


def leave_when_told() -> None:
    """At once, whatever the process waits for: nothing of a preflight needs to be saved. For threads that begin later,
    too; a thread of its own waits for the signals, since handlers run only where Python does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def wait() -> None:
        signal.sigwait(_SIGNALS)
        sys.stdout.flush()
        os._exit(EXIT_PREEMPTED)

    threading.Thread(target=wait, daemon=True).start()


def is_said(error: Exception) -> bool:
    """True if another rank tells it on the console."""
    if isinstance(error, RunFailedError):
        return error.is_said
    return hasattr(error, "exit_code") and not isinstance(error, RendezvousError) and not is_first_of_its_machine()


def main() -> None:
    leave_when_told()
    try:
        entry(APP, run, is_said, is_first_of_its_machine)
    except SystemExit as end:
        leave_word(end.code)
        raise


if __name__ == "__main__":
    main()

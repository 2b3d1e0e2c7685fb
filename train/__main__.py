"""Trains a model, or goes on with a run that was stopped: the same command does both.

    python -m train experiment=debug run.name=hello                            # one process, CPU or one GPU
    torchrun --nproc-per-node 2 -m train experiment=debug run.name=two         # the same run on two ranks
    python -m train experiment=debug run.name=short total_tokens=200_000       # any key can be overridden

`--help` lists the groups and every key with its value, `--cfg job` prints the configuration of a command.
"""

from conf.compose import App, entry
from train.config import TrainConfig
from train.errors import RendezvousError, RunFailedError
from train.optimizer_config import OPTIONS
from train.parallel import is_first_of_its_machine, leave_word
from train.stop import install, no_longer

APP = App("train", TrainConfig, OPTIONS)


def run(config: TrainConfig) -> int:
    """Exit code: 0 at the last step, 143 when stopped and saved. Errors carry their own: 2 configuration, 3 data,
    4 checkpoint, 5 numerics, 6 no progress."""
    install()
    from train.parallel import rank_grid, share_cores
    from train.setup import check, is_finished

    share_cores()
    setup = check(config, rank_grid(config.parallel.tp_size, config.parallel.sp_size))
    if is_finished(setup):
        if setup.grid.is_first:
            print(f"{setup.folder.path} is finished at step {setup.batch.total_steps}; for another, choose a run.name")
        return 0

    from train.loop import train

    return train(setup)


def is_said(error: Exception) -> bool:
    """True if another rank tells it on the console. Tells it to torchrun, too, where that has started us.

    What is wrong before the ranks meet is found alike by all processes of a machine: the first one says it. That they
    did not meet each says, since the first may be the one that is missing.
    """
    from train.failure import tell_torchrun
    from train.parallel import torchrun_error_file

    tell_torchrun(torchrun_error_file(), error)
    if isinstance(error, RunFailedError):
        return error.is_said
    is_alike = hasattr(error, "exit_code") and not isinstance(error, RendezvousError)
    return is_alike and not is_first_of_its_machine()


def main() -> None:
    """From its first line on, a signal is only noted: importing what a run needs takes seconds."""
    install()
    try:
        entry(APP, run, is_said, is_first_of_its_machine)
    except SystemExit as end:
        leave_word(end.code)
        raise
    finally:
        no_longer()


if __name__ == "__main__":
    main()

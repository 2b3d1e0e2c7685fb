"""What can end a run, by exit code. No torch."""

EXIT_PREEMPTED = 143
"""saved, run me again: the code of a process that SIGTERM ended"""


class EngineError(RuntimeError):
    """What was asked for and what DeepSpeed does are not the same thing."""

    exit_code = 2


class RendezvousError(Exception):
    """The ranks did not find each other: another start may well do better."""

    exit_code = 1


class CheckpointError(Exception):
    """No usable checkpoint, or none could be written."""

    exit_code = 4


class UnreadableError(CheckpointError):
    """A checkpoint that may be good, but cannot be looked at from here, or by this version: never passed over."""


class StateError(Exception):
    """A checkpoint's tensors are not those of this model."""

    exit_code = 4


class NumericsError(Exception):
    """Loss, gradients or weights are no longer numbers. Nothing after the last checkpoint was kept."""

    exit_code = 5


class NoProgressError(Exception):
    """Start after start without a new step: starting again would not help."""

    exit_code = 6


class BadNodeError(Exception):
    """Nodes that a run cannot use, while others of the same kind can be: another start, without them, would do."""

    exit_code = 7


class FencedError(Exception):
    """A later attempt at the same run has taken its folder: this one may write nothing more."""

    exit_code = 4


class RunFailedError(Exception):
    """What ends this rank because of another one, or of all together: with the words and the exit code of the cause."""

    def __init__(self, message: str, exit_code: int, *, is_said: bool):
        """is_said: another rank tells it on the console."""
        super().__init__(message)
        self.exit_code, self.is_said = exit_code, is_said

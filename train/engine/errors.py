"""What can go wrong between the training program and DeepSpeed, and with which exit code the program then ends."""


class EngineError(RuntimeError):
    """What was asked for and what DeepSpeed does are not the same thing."""

    exit_code = 2


class NumericsError(Exception):
    """Loss, gradients or weights are no longer numbers. Nothing after the last checkpoint was kept."""

    exit_code = 5


class StateError(Exception):
    """A checkpoint's tensors are not those of this model."""

    exit_code = 4

"""The last word before an update: DeepSpeed's gradients, reduced and clipped → applied, or as if they had never been.

DeepSpeed's `step` computes the norm, clips, and calls the optimizer inside, once or once for each parameter group. The
gate takes the place of that inner call: the first one of a step asks for a verdict, and all of them follow it. A
refused step leaves masters, moments and their step counts to the bit as they were, and DeepSpeed clears its gradients
as after any other step.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from train.errors import EngineError


class Gate:
    """Around the `step` of the optimizer inside DeepSpeed's."""

    def __init__(self, inner: Any):
        self._inner, self._update = inner, inner.step
        self._decide: Callable[[], bool] | None = None
        self._watch: Callable[[list[Tensor]], None] | None = None
        self.verdict: bool | None = None
        """of the last step; None: DeepSpeed has not come to the update"""
        inner.step = self._step

    def ask(self, decide: Callable[[], bool], watch: Callable[[list[Tensor]], None] | None = None) -> None:
        """Of the coming step: `decide` is called once, when its gradients and their norm are known; `watch` with the
        tensors of each update before it is made, when they have their gradients."""
        self._decide, self._watch, self.verdict = decide, watch, None

    def _step(self, *arguments: Any, **named: Any) -> Any:
        if self._decide is None:
            raise EngineError("DeepSpeed updates weights outside of a training step")
        if self.verdict is None:
            self.verdict = self._decide()
        if self.verdict and self._watch is not None:
            self._watch([flat for group in self._inner.param_groups for flat in group["params"]])
        return self._update(*arguments, **named) if self.verdict else None

"""The training state as whole tensors by parameter name, assembled on every rank: for models that are small enough.

What a checkpoint is still written from; fragments (`train/engine/state.py`) are what it will be.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from train.engine.errors import StateError
from train.fragment import Fragment

if TYPE_CHECKING:
    from train.engine.core import Engine

STATE_KINDS = ("master", "exp_avg", "exp_avg_sq")
"""the three tensors that a checkpoint holds for each parameter: its value and the two Adam moments"""


def read_state(engine: "Engine") -> Iterator[tuple[str, str, Tensor]]:
    """(kind, name, whole fp32 tensor on the CPU) for each state kind and parameter. A collective: all ranks iterate."""
    mine = {kind: {} for kind in STATE_KINDS}
    for kind, fragment, view in engine.fragments():
        mine[kind].setdefault(fragment.name, []).append((fragment, view))
    for kind in STATE_KINDS:
        for name, shape in engine.shapes.items():
            whole = torch.zeros(shape, device=engine.device)
            for fragment, view in mine[kind].get(name, []):
                whole.flatten()[fragment.start : fragment.stop] = view
            yield kind, name, engine.sum_over_ranks(whole).cpu()


def write_state(engine: "Engine", states: Iterable[tuple[str, str, Tensor]], step: int) -> None:
    """Puts whole fp32 tensors back, the weights included: the inverse of `read_state`. A collective.

    step: optimizer updates done so far.
    """
    missing = {(kind, name) for kind in STATE_KINDS for name in engine.shapes}
    given: dict[tuple[str, str], Tensor] = {}
    for kind, name, tensor in states:
        if (kind, name) not in missing or tensor.shape != engine.shapes[name]:
            raise StateError(f"the checkpoint's {kind} of {name}, {tuple(tensor.shape)}, has no place in this model")
        missing.remove((kind, name))
        given[kind, name] = tensor
    if missing:
        kind, name = min(missing)
        raise StateError(f"the checkpoint lacks {len(missing)} tensors of this model, the {kind} of {name} among them")

    def read(kind: str, fragment: Fragment) -> Tensor:
        return given[kind, fragment.name].flatten()[fragment.start : fragment.stop]

    engine.load(read, step)

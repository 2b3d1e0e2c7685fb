"""The training state of one rank as fragments: which flat range of which parameter lies where in which flat tensor.

DeepSpeed joins parameters end to end into flat tensors and gives each data-parallel rank a piece of them, which the
optimizer inside updates: the masters. Its moments have the same shape. `TrainingState` works out once, for each of
DeepSpeed's three optimizers, where each parameter's numbers are, hands out views of them, and takes others in. No
rank holds more than its own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.errors import EngineError, StateError
from train.fragment import Fragment
from train.optim import fresh_state

MASTER = "master"
"""the kind of a parameter's own numbers; the other kinds are the optimizer's"""


@dataclass(frozen=True)
class Piece:
    """One fragment and the place of its numbers."""

    fragment: Fragment
    flat: Tensor
    """the flat tensor that the optimizer updates on this rank"""
    offset: int
    """the fragment's first number in it"""
    owned: bool
    """False where another tensor-parallel rank holds the same numbers and answers for them"""


class TrainingState:
    """Masters and moments of this rank. `optimizer`: DeepSpeed's, around the one that updates."""

    def __init__(self, optimizer: Any, named_parameters: Iterable[tuple[str, nn.Parameter]], *, tp_rank: int):
        self._optimizer = optimizer
        self._inner = optimizer.optimizer
        self.flats = [flat for _, flat in flats_by_group(optimizer)]
        self._names = {parameter: name for name, parameter in named_parameters}
        self.pieces = list(_pieces(optimizer, self._names, tp_rank))
        for group, flat in flats_by_group(optimizer):
            self._inner.state[flat] = fresh_state(self._inner, group, flat)

    def fragments(self) -> Iterator[tuple[str, Fragment, Tensor]]:
        """(kind, where, flat view on the device) of everything that this rank answers for: over all ranks, each number
        once."""
        for piece in self.pieces:
            if piece.owned:
                for kind in self.kinds(piece.flat):
                    yield kind, piece.fragment, self._view(kind, piece)

    def load(self, read: Callable[[str, Fragment], Tensor], step: int) -> None:
        """Takes everything that this rank holds from `read`, and sets the forward weights to the rounded masters.

        A collective. step: optimizer updates done so far (Adam's bias correction depends on it). Raises StateError if
        `read` gives another number of numbers.
        """
        for piece in self.pieces:
            for kind in self.kinds(piece.flat):
                value = read(kind, piece.fragment)
                where = piece.fragment
                if value.numel() != where.stop - where.start:
                    raise StateError(
                        f"{kind} of {where.name} [{where.start}, {where.stop}) needs {where.stop - where.start} "
                        f"numbers, {value.numel()} were read"
                    )
                self._view(kind, piece).copy_(value.flatten())
        for flat in self.flats:
            if "step" in self._inner.state[flat]:
                self._inner.state[flat]["step"].fill_(step)
        self.refresh()

    def refresh(self) -> None:
        """Sets the weights of forward to the rounded masters. A collective."""
        refresh_forward_weights(self._optimizer)

    def set_masters(self, initial: Callable[[str, torch.Size], Tensor]) -> None:
        """Gives masters the first values as they are, unrounded: DeepSpeed makes them from the weights of forward."""
        for piece in self.pieces:
            where = piece.fragment
            value = initial(where.name, torch.Size(where.shape))
            if where.tp_dim is not None:
                value = value.narrow(where.tp_dim, where.tp_start, where.tp_stop - where.tp_start)
            self._view(MASTER, piece).copy_(value.reshape(-1)[where.start : where.stop])

    def expected(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(kind, name, whole shape) of all numbers that the ranks together hold."""
        for flat, parameters in zip(self.flats, parameters_by_flat(self._optimizer), strict=True):
            for parameter in parameters:
                shape = tuple(getattr(parameter, "tp_whole_shape", true_shape(parameter)))
                for kind in self.kinds(flat):
                    yield kind, self._names[parameter], shape

    def kinds(self, flat: Tensor) -> tuple[str, ...]:
        """The kinds of numbers that are kept for a flat tensor."""
        state = self._inner.state[flat]
        return MASTER, *(key for key, value in state.items() if torch.is_tensor(value) and value.shape == flat.shape)

    def tensor(self, kind: str, flat: Tensor) -> Tensor:
        """The whole flat tensor of a kind, without gradient history."""
        return (flat if kind == MASTER else self._inner.state[flat][kind]).detach()

    def _view(self, kind: str, piece: Piece) -> Tensor:
        where = piece.fragment
        return self.tensor(kind, piece.flat).narrow(0, piece.offset, where.stop - where.start)


def flats_by_group(optimizer: Any) -> list[tuple[dict[str, Any], Tensor]]:
    """(parameter group, flat tensor that the inner optimizer really updates) on this rank."""
    groups = optimizer.optimizer.param_groups
    match type(optimizer).__name__:
        case "DeepSpeedZeroOptimizer":
            return list(zip(groups, optimizer.single_partition_of_fp32_groups, strict=True))
        case "BF16_Optimizer":
            return list(zip(groups, optimizer.fp32_groups_flat_partition, strict=True))
        case "DeepSpeedZeroOptimizer_Stage3":
            owners = optimizer.sub_group_to_group_id
            return [(groups[owners[i]], flat) for i, flat in enumerate(optimizer.fp32_partitioned_groups_flat)]
        case other:
            raise EngineError(f"DeepSpeed chose {other}, whose state this project cannot read")


def parameters_by_flat(optimizer: Any) -> list[list[Any]]:
    """The parameters of which each flat tensor holds a part, in the order of `flats_by_group`."""
    match type(optimizer).__name__:
        case "DeepSpeedZeroOptimizer":
            return optimizer.bit16_groups
        case "BF16_Optimizer":
            return optimizer.bf16_groups
        case _:
            return optimizer.fp16_groups


def refresh_forward_weights(optimizer: Any) -> None:
    """Sets the weights that forward uses, on all ranks, to the masters: what ends each of DeepSpeed's updates."""
    if type(optimizer).__name__ != "DeepSpeedZeroOptimizer_Stage3":
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for number in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
    optimizer.invalidate_secondary_tensor()  # hpZ's second copy; the next forward makes it anew
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _pieces(optimizer: Any, names: dict[nn.Parameter, str], tp_rank: int) -> Iterator[Piece]:
    places = _stage_3_places if type(optimizer).__name__ == "DeepSpeedZeroOptimizer_Stage3" else _places
    flats = [flat for _, flat in flats_by_group(optimizer)]
    for parameter, index, offset, start, stop in places(optimizer):
        fragment = _fragment(names[parameter], parameter, start, stop)
        yield Piece(fragment, flats[index], offset, owned=fragment.tp_dim is not None or tp_rank == 0)


def _places(optimizer: Any) -> Iterator[tuple[Any, int, int, int, int]]:
    """(parameter, number of its flat tensor, offset there, start and stop in the parameter) at ZeRO 1 and 2.

    DeepSpeed notes it on each parameter of which this rank has a part.
    """
    for index, group in enumerate(parameters_by_flat(optimizer)):
        for parameter in group:
            if (mapping := parameter._hp_mapping) is not None:
                held, kept = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield parameter, index, kept.start, held.start, held.start + held.numel


def _stage_3_places(optimizer: Any) -> Iterator[tuple[Any, int, int, int, int]]:
    """The same at ZeRO 3, where every parameter is cut evenly: rank r holds its r-th part, the last ones padded."""
    for index, group in enumerate(parameters_by_flat(optimizer)):
        offset = 0
        for parameter in group:
            size = parameter.partition_numel()
            start = size * torch.distributed.get_rank(parameter.ds_process_group)
            stop = min(start + size, parameter.ds_numel)
            if start < stop:
                yield parameter, index, offset, start, stop
            offset += size


def _fragment(name: str, parameter: Any, start: int, stop: int) -> Fragment:
    dim = getattr(parameter, "tp_dim", None)
    if dim is None:
        return Fragment(name, tuple(true_shape(parameter)), None, 0, 0, start, stop)
    return Fragment(name, tuple(parameter.tp_whole_shape), dim, parameter.tp_start, parameter.tp_stop, start, stop)


def true_shape(parameter: nn.Parameter) -> torch.Size:
    """Of this rank's tensor-parallel slice: ZeRO 3 leaves the parameter itself empty."""
    return getattr(parameter, "ds_shape", parameter.shape)

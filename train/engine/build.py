"""A recipe for a module → the module with its first weights on the device, so that no rank ever holds a whole large
model.

The module is built on the meta device (shapes, no numbers), with its parallel layers already put in. Then each
parameter gets its numbers, one at a time: the whole tensor is drawn on the CPU, cut to the slice of this
tensor-parallel rank, rounded to the type that forward uses, moved, and at ZeRO 3 shared out among the data-parallel
ranks before the next one is drawn.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from train.errors import EngineError

Initial = Callable[[str, torch.Size], Tensor]
"""(logical name, whole shape) to the whole first value of a parameter, fp32 on the CPU, the same on every rank"""


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, without numbers. Raises EngineError for what could not get any later."""
    with torch.device("meta"):
        module = build()
    if strays := [name for name, p in module.named_parameters() if not p.is_meta]:
        raise EngineError(f"{strays[0]} was given numbers while the model was built; they come from its initial value")
    if strays := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise EngineError(f"{strays[0]} is a buffer: nothing gives it numbers. Compute it in forward instead")
    return module


def materialise(
    module: nn.Module,
    initial: Initial,
    *,
    device: str,
    dtype: torch.dtype,
    share_out: Callable[[nn.Parameter], None] | None = None,
) -> None:
    """Replaces every parameter by one that has numbers. A collective if there is a `share_out`.

    Attributes and gradient hooks of the parameters go with them; a weight that two modules share stays one.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for path, owner in module.named_modules():
        for name, empty in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if empty not in made:
                value = _value(logical_name(f"{path}.{name}".removeprefix(".")), empty, initial)
                made[empty] = _filled(empty, value, device, dtype)
                del value
                if share_out is not None:
                    share_out(made[empty])
            setattr(owner, name, made[empty])


def zero_3(deepspeed: Any, settings: dict[str, Any], mesh: Any) -> Callable[[nn.Parameter], None]:
    """The function that leaves on each data-parallel rank its share of a parameter.

    It is what `deepspeed.zero.Init` does to each module it meets, here with one context for all parameters: a context
    reads the whole dictionary each time, and refuses to make the groups of hpZ twice.
    """
    from deepspeed.utils import groups

    context = deepspeed.zero.Init(
        module=nn.Module(),
        data_parallel_group=None if mesh is None else mesh.get_data_parallel_group(),
        config_dict_or_path=settings,
        mpu=mesh,
        zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
    )
    return lambda parameter: context._convert_to_zero_parameters([parameter])


def logical_name(name: str) -> str:
    """The name of a parameter in the model itself, whatever module was put around it."""
    return name.removeprefix("model.")


def _value(name: str, empty: Any, initial: Initial) -> Tensor:
    """This rank's slice of the parameter's whole first value."""
    value = initial(name, torch.Size(getattr(empty, "tp_whole_shape", empty.shape)))
    if (dim := getattr(empty, "tp_dim", None)) is not None:
        value = value.narrow(dim, empty.tp_start, empty.tp_stop - empty.tp_start)
    if value.shape != empty.shape:
        raise EngineError(f"the first value of {name} has shape {tuple(value.shape)}, its place {tuple(empty.shape)}")
    return value


def _filled(empty: nn.Parameter, value: Tensor, device: str, dtype: torch.dtype) -> nn.Parameter:
    """Storage of its own, of its own size: a slice would keep the whole tensor alive."""
    filled = nn.Parameter(torch.empty(value.shape, device=device, dtype=dtype), empty.requires_grad)
    filled.data.copy_(value)
    vars(filled).update(vars(empty))
    for hook in (empty._backward_hooks or {}).values():
        filled.register_hook(hook)
    return filled

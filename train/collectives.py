"""Collectives that autograd passes through, each with the backward that belongs to its forward.

| function          | forward                                | backward                               |
|-------------------|----------------------------------------|----------------------------------------|
| `enter`           | identity                               | sum over ranks                         |
| `summed`          | sum over ranks                         | identity                               |
| `gathered`        | joins the parts along a dimension      | sum over ranks, each keeps its part    |
| `scattered_sum`   | sum over ranks, each keeps its part    | joins the parts along a dimension      |
| `exchanged`       | all-to-all                             | all-to-all                             |

The pairs are the f, g of Shoeybi et al. (Megatron-LM, arXiv 1909.08053, section 3) and their sequence-parallel forms
(Korthikanti et al., arXiv 2205.05198, section 4.2.2). Sums are in the dtype of the tensor. Every backward returns the
tensor that was reduced, never the one it was copied from: a gradient with strides would otherwise stay unsummed.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

_ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"  # torch 2.13
_REDUCE_SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """x, equal on all ranks, into a region where each rank computes a part of what follows."""
    return _Enter.apply(x, group)  # pyright: ignore[reportReturnType]


def summed(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the ranks' x, on every rank."""
    return _Summed.apply(x, group)  # pyright: ignore[reportReturnType]


def gathered(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """The ranks' x one after the other along `dim`, on every rank."""
    return _Gathered.apply(x, dim, group)  # pyright: ignore[reportReturnType]


def scattered_sum(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """This rank's part, along `dim`, of the sum of the ranks' x. Raises ValueError if the length does not divide."""
    if x.shape[dim] % group.size():
        raise ValueError(f"dimension {dim} of {tuple(x.shape)} does not divide over {group.size()} ranks")
    return _ScatteredSum.apply(x, dim, group)  # pyright: ignore[reportReturnType]


def exchanged(x: Tensor, group: ProcessGroup) -> Tensor:
    """x (R, ...): slice r goes to rank r. Returns (R, ...): slice r came from rank r. Its own inverse."""
    return _Exchanged.apply(x, group)  # pyright: ignore[reportReturnType]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (d,) = grad_outputs
        return sum_of(d, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        return sum_of(x, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (d,) = grad_outputs
        return d, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return joined(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (d,) = grad_outputs
        return _own_part_of_sum(d, ctx.dim, ctx.group), None, None


class _ScatteredSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _own_part_of_sum(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (d,) = grad_outputs
        return joined(d, ctx.dim, ctx.group), None, None


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (d,) = grad_outputs
        return _all_to_all(d, ctx.group), None


# Below: plain collectives, without autograd. None writes into its argument: a gradient may have other readers.


def sum_of(x: Tensor, group: ProcessGroup) -> Tensor:
    """A new tensor, the sum of the ranks' x."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def joined(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """A new tensor, the ranks' x one after the other along `dim`."""
    n = group.size()
    parts = x.new_empty((n * x.shape[0], *x.shape[1:]))
    getattr(dist, _ALL_GATHER)(parts, x.contiguous(), group=group)
    return parts if dim == 0 else torch.cat(parts.chunk(n), dim)


def _own_part_of_sum(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    n = group.size()
    parts = x.contiguous() if dim == 0 else torch.cat(x.chunk(n, dim))
    own = x.new_empty((parts.shape[0] // n, *parts.shape[1:]))
    getattr(dist, _REDUCE_SCATTER)(own, parts, group=group)
    return own


def _all_to_all(x: Tensor, group: ProcessGroup) -> Tensor:
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    return received

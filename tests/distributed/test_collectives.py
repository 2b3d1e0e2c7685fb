"""Each backward is the transpose of its forward, for gradients of any strides, and spares its arguments."""

from typing import Any

import pytest

from tests.distributed.ranks import run_ranks


def transposes() -> dict[str, tuple[float, float]]:
    """(<f(x), y>, <x, f'(y)>) over both ranks: equal for every x and y exactly if backward is the transpose of forward.

    y has the strides of a transposed tensor. Where all ranks go on with the same result, as after `summed`, each rank's
    y is the gradient of the *one* loss that all of them compute, so it is counted once.
    """
    import torch

    from train.collectives import enter, exchanged, gathered, scattered_sum, summed

    mesh = _mesh()
    group, rank = mesh.tp_group, mesh.tp_rank
    cases = {
        # name: (function, x equal on all ranks, f(x) equal on all ranks and read as one)
        "enter": (lambda x: enter(x, group), True, False),
        "summed": (lambda x: summed(x, group), False, True),
        "gathered": (lambda x: gathered(x, 1, group), False, False),
        "scattered_sum": (lambda x: scattered_sum(x, 1, group), False, False),
        "exchanged": (lambda x: exchanged(x, group), False, False),
    }
    found = {}
    for name, (function, same_x, same_y) in cases.items():
        x = _random((2, 4, 3), 10 if same_x else 10 + rank).requires_grad_()
        out = function(x)
        y = _random(out.shape[::-1], 20 if same_y else 20 + rank).permute(2, 1, 0)
        assert not y.is_contiguous()
        (gradient,) = torch.autograd.grad(out, x, y)
        products = torch.stack(((out.detach() * y).sum(), (x.detach() * gradient).sum()))
        torch.distributed.all_reduce(products)
        forward, backward = products.tolist()
        found[name] = (forward / 2 if same_y else forward, backward / 2 if same_x else backward)
    return found


def _mesh() -> Any:
    from tests.distributed.parallel_model import make_mesh

    return make_mesh(2, 1)


def _random(shape: Any, seed: int) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_backward_is_the_transpose_of_its_forward():
    """In double precision, so that 1e-12 leaves room for nothing but the order of a few sums."""
    for name, (forward, backward) in run_ranks(transposes, 2)[0].items():
        assert forward == pytest.approx(backward, rel=1e-12), name


def strided_and_shared() -> list[Any]:
    """Gradients of an input from a column-major gradient, and of a neighbour that is handed the same gradient."""
    import torch

    from train.collectives import enter

    mesh = _mesh()
    x = torch.zeros(2, 3, requires_grad=True)
    neighbour = torch.zeros(2, 3, requires_grad=True)
    (enter(x, mesh.tp_group) + neighbour).backward(torch.full((3, 2), mesh.tp_rank + 1.0).T)
    assert x.grad is not None
    assert neighbour.grad is not None
    return [x.grad.tolist(), neighbour.grad.tolist()]


def test_a_strided_gradient_is_summed_and_what_shares_it_is_not():
    """DeepSpeed's AutoTP loses the sum here (1 for 3); reducing in place would change the neighbour's gradient."""
    for rank, (reduced, neighbours) in enumerate(run_ranks(strided_and_shared, 2)):
        assert reduced == [[3.0] * 3] * 2
        assert neighbours == [[rank + 1.0] * 3] * 2


def indivisible() -> str:
    import torch

    from train.collectives import scattered_sum

    try:
        scattered_sum(torch.zeros(1, 3, 2), 1, _mesh().tp_group)
    except ValueError as error:
        return str(error)
    return ""


def test_a_length_that_does_not_divide_is_refused():
    assert "does not divide over 2 ranks" in run_ranks(indivisible, 2)[0]

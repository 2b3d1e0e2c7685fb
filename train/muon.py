"""Muon for the hidden matrices, AdamW for everything else: one optimizer, made for the flat tensors of ZeRO.

DeepSpeed hands it what each rank holds, parameters laid end to end and cut anywhere, with gradients that are already
reduced and clipped. Momentum is kept and updated there. Then fragments are brought together to whole matrices, tensor-
parallel slices included, each matrix is orthogonalised by one rank, and every rank gets its fragments of the result
back: so an update does not depend on the layout. What must be known for it, which fragment lies where, is told once
with `use_layout`.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Weight decay and the scale that lets AdamW's
learning rate serve for both: Liu et al., Muon is scalable for LLM training, arXiv 2502.16982, section 2.2.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.init import is_hidden_matrix
from train.fragment import Fragment
from train.matrix_exchange import Round, plan
from train.optimizer_config import OptimizerKind

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""a, b, c of x -> a x + b x^3 + c x^5, which takes singular values in (0, 1] towards 1, to within about 0.3, fast"""


class MuonAdamW(torch.optim.AdamW):
    """Groups with `kind` = muon also have `momentum` and `ns_steps`; groups with `kind` = adamw are torch's AdamW's."""

    def __init__(self, groups: list[dict[str, Any]], *, matrix_dtype: torch.dtype, matrix_device: str, **adamw: Any):
        """groups: see `train/optim.py`. matrix_dtype: what matrices travel and are orthogonalised in, on
        matrix_device, which the process group of all ranks must serve. adamw: arguments of torch.optim.AdamW.
        """
        super().__init__(groups, **adamw)
        self._like = torch.empty(0, dtype=matrix_dtype, device=matrix_device)
        self._places: dict[Tensor, dict[Fragment, int]] = {}
        self._rounds: dict[Tensor, list[Round]] = {}

    def use_layout(self, flats: Sequence[Tensor], pieces: Iterable[tuple[Fragment, Tensor, int]]) -> None:
        """Tells where hidden matrices are. A collective of all ranks, to be called once before the first step.

        flats: all flat tensors of this rank, in the order of every other rank. pieces: (what, the flat tensor that
        holds it, its offset there). Raises ValueError if the fragments of all ranks do not make whole matrices.
        """
        places: dict[Tensor, dict[Fragment, int]] = {flat: {} for flat in flats}
        for fragment, flat, offset in pieces:
            if is_hidden_matrix(fragment.name):
                places[flat][fragment] = offset
        rank, held = _from_all_ranks([list(places[flat]) for flat in flats])
        for number, flat in enumerate(flats):
            held_here = [of_rank[number] for of_rank in held]
            if any(held_here):
                self._places[flat] = places[flat]
                self._rounds[flat] = plan(held_here, rank)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of the parameters that are in the groups now: DeepSpeed calls it for all, or for one at a time.

        A collective of all ranks.
        """
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["kind"] == OptimizerKind.adamw]
        loss = super().step(closure)
        self.param_groups = groups
        for group in groups:
            if group["kind"] == OptimizerKind.muon:
                for flat in group["params"]:
                    self._update(flat, group)
        return loss

    def _update(self, flat: Tensor, group: dict[str, Any]) -> None:
        if flat not in self._rounds:
            raise RuntimeError("Muon does not know which matrices its flat tensors hold: call use_layout before step")
        assert flat.grad is not None
        state, keep, gradient = self.state[flat], group["momentum"], flat.grad
        if "momentum" not in state:
            state["momentum"] = fresh_momentum(flat)
        momentum = state["momentum"].mul_(keep).add_(gradient)
        for round_ in self._rounds[flat]:
            views = [self._view(flat, fragment) for fragment in round_.own]
            parts = [gradient[view].add(momentum[view], alpha=keep).to(self._like) for view in views]
            matrix = round_.gather(parts, self._like)
            if matrix is not None:
                matrix = orthogonalised(matrix, group["ns_steps"])
            for view, fragment, direction in zip(views, round_.own, round_.scatter(matrix, self._like), strict=True):
                rate = group["lr"] * update_scale(fragment.shape)
                flat[view].mul_(1 - group["lr"] * group["weight_decay"]).add_(direction.to(flat), alpha=-rate)

    def _view(self, flat: Tensor, fragment: Fragment) -> slice:
        offset = self._places[flat][fragment]
        return slice(offset, offset + fragment.stop - fragment.start)


def fresh_momentum(flat: Tensor) -> Tensor:
    """The momentum of a flat tensor that was never updated."""
    return torch.zeros_like(flat, requires_grad=False)


def update_scale(shape: Sequence[int]) -> float:
    """What brings the root mean square of an orthogonal matrix to AdamW's usual 0.2 (arXiv 2502.16982, eq. 4)."""
    return 0.2 * math.sqrt(max(shape))


def orthogonalised(matrix: Tensor, n_steps: int) -> Tensor:
    """The matrix with its singular vectors, and singular values that are all near 1 (Jordan et al. 2024).

    (rows, columns), computed in its own dtype. bf16 is enough: what is left of the spread of the singular values is
    larger than its rounding.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(n_steps):
        squares = x @ x.T
        x = torch.addmm(x, torch.addmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _from_all_ranks(mine: list[list[Fragment]]) -> tuple[int, list[list[list[Fragment]]]]:
    """(this rank, what each rank gave)."""
    if not dist.is_initialized():
        return 0, [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return dist.get_rank(), everyone

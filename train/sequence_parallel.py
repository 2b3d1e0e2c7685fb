"""Ulysses sequence parallelism (Jacobs et al., arXiv 2309.14509), put into a plain model from outside.

Each of sp_size ranks holds T / sp_size positions of every row, all heads; inside `attention.core` it holds all T
positions of H / sp_size heads. One all-to-all before the core and one after it change between the two. Every rank is
given whole rows: `apply` lets the embedding cut them, `Mesh.own_part` cuts the targets. `whole_rows` and `whole_logits`
put together what evaluation and sampling want to see.

Shapes: B batch, T positions of a row, t = T / sp_size, H and K query and key/value heads, D head_dim, V vocab.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Context
from model.transformer import Block, Transformer
from train.collectives import exchanged, joined
from train.mesh import Mesh, sequence_part


def apply(model: Transformer, mesh: Mesh) -> None:
    """Changes the model in place, after `tensor_parallel.apply` if that is needed."""
    if mesh.sp_size == 1:
        return

    def own_positions(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """(B, T) or (T,) to (B, t) or (t,)."""
        return sequence_part(inputs[0], -1, mesh.sp_rank, mesh.sp_size)

    for table in (model.embedding, model.position):
        if table is not None:
            table.register_forward_pre_hook(own_positions, prepend=True)  # before tensor parallelism cuts t in turn
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention.set_submodule("core", UlyssesCore(block.attention.core, mesh))


class UlyssesCore(nn.Module):
    """A core on t positions and all heads, made from one that wants all positions: (B, H, t, D) to (B, H, t, D)."""

    def __init__(self, core: nn.Module, mesh: Mesh):
        super().__init__()
        self.core, self.mesh = core, mesh

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        n = self.mesh.sp_size
        heads = [x.unflatten(1, (n, -1)) for x in (q, k, v)]  # (B, n, H / n, t, D): rank r gets the r-th H / n heads
        mixed = torch.cat(heads, dim=2).transpose(0, 1)  # (n, B, (H + 2 K) / n, t, D): q, k and v travel together
        received = exchanged(mixed, self.mesh.sp_group).permute(1, 2, 0, 3, 4).flatten(2, 3)  # (B, ..., T, D)
        q, k, v = received.split([part.shape[2] for part in heads], dim=1)
        y = self.core(q, k, v, context).unflatten(2, (n, -1))  # (B, H / n, n, t, D)
        return exchanged(y.permute(2, 0, 1, 3, 4), self.mesh.sp_group).transpose(0, 1).flatten(1, 2)


def whole_rows(parts: Tensor, mesh: Mesh) -> Tensor:
    """(B, t) losses of this rank's positions to (B, T), on every rank of the row. A collective without gradient."""
    return parts if mesh.sp_size == 1 else joined(parts, 1, mesh.sp_group)


def whole_logits(forward: Callable[..., Tensor], mesh: Mesh, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
    """(B, T) to (B, T, V), on every rank of the row, for any T. A collective without gradient.

    forward: the parallel model, (tokens, segments) to (B, t, V / tp_size). Rows are padded at the right to a length
    that can be cut; what is there is seen by no earlier position.
    """
    n_positions = tokens.shape[1]
    missing = -n_positions % mesh.sequence_multiple
    tokens = F.pad(tokens, (0, missing))
    if segments is not None:
        segments = F.pad(segments, (0, missing), value=-1)
    with torch.no_grad():
        logits = forward(tokens, segments)
        if mesh.tp_size > 1:
            logits = joined(logits, 2, mesh.tp_group)
        if mesh.sp_size > 1:
            logits = joined(logits, 1, mesh.sp_group)
    return logits[:, :n_positions]

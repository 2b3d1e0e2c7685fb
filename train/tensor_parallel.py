"""Tensor parallelism, put into a plain model from outside: each rank keeps a slice of every matrix.

`apply` takes a whole model (on the meta device, or with values) and leaves this rank's: `table` says for each parameter
name how it is cut, the layers below say what a cut layer computes. Then the engine gives every parameter its values,
and `seal` sees that they are still marked, and lets partial gradients be summed. `token_losses` is the loss of logits
that are cut along the vocabulary.

| cut        | weight (out, in)    | bias                       | output                                              |
|------------|---------------------|----------------------------|-----------------------------------------------------|
| column     | rows                | cut                        | this rank's features: heads, or columns of the MLP  |
| row        | columns             | replicated, added once     | summed over ranks                                   |
| vocabulary | rows                |                            | embedding: summed; head: this rank's logits         |

Attention and MLP are a region each: one sum forward at its end, one backward at its beginning (Shoeybi et al.,
Megatron-LM, arXiv 1909.08053). With sequence-parallel norms (Korthikanti et al., arXiv 2205.05198) the residual stream
is cut along the sequence between regions: sums become reduce-scatters, and regions begin with an all-gather.

Shapes: B batch, T positions of this rank (T / sp_size of a row), C d_model, V vocab; t = T / tp_size with
sequence-parallel norms, else T.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from model.config import Bias, ModelConfig, Positions, Residual
from model.loss import IGNORED_TARGET
from model.transformer import Block, Transformer
from train.collectives import enter, gathered, scattered_sum, sum_of, summed
from train.mesh import Mesh, sequence_part
from train.sequence_parallel import UlyssesCore


class LayoutError(Exception):
    """A model's parameters and the way they are cut do not belong together."""

    exit_code = 2


class Cut(StrEnum):
    column = "column"
    row = "row"
    vocabulary = "vocabulary"
    replicated = "replicated"
    per_head = "per_head"
    """replicated, but each rank uses it on its own heads: its gradient is always a part"""


_DIM = {Cut.column: 0, Cut.row: 1, Cut.vocabulary: 0}


@dataclass(frozen=True)
class Rule:
    pattern: str
    """regular expression that matches the whole name of a parameter"""
    cut: Cut


def table(config: ModelConfig) -> list[Rule]:
    """How each parameter of the network is cut. Names are those of `model/transformer.py`."""
    block = r"blocks\.\d+\."
    rules = [
        Rule(r"embedding\.weight", Cut.vocabulary),
        Rule(block + r"attention\.[qkv]\.(weight|bias)", Cut.column),
        Rule(block + r"attention\.o\.weight", Cut.row),
        Rule(block + r"mlp\.(gate|up)\.(weight|bias)", Cut.column),
        Rule(block + r"mlp\.down\.weight", Cut.row),
        Rule(block + r"(attention|mlp)_norm\.(weight|bias)", Cut.replicated),
    ]
    if not config.tie_embeddings:
        rules.append(Rule(r"head\.weight", Cut.vocabulary))
    if config.bias == Bias.all:
        rules.append(Rule(block + r"(attention\.o|mlp\.down)\.bias", Cut.replicated))
    if config.qk_norm:
        rules.append(Rule(block + r"attention\.[qk]_norm\.weight", Cut.per_head))
    if config.residual != Residual.post_norm:
        rules.append(Rule(r"norm\.(weight|bias)", Cut.replicated))
    if config.positions == Positions.learned:
        rules.append(Rule(r"position\.weight", Cut.replicated))
    return rules


def cuts_of(names: Iterable[str], rules: list[Rule]) -> dict[str, Cut]:
    """The cut of each name. Raises LayoutError, which lists every name without a rule or with two, and every rule
    without a name."""
    found: dict[str, list[Rule]] = {
        name: [rule for rule in rules if re.fullmatch(rule.pattern, name)] for name in names
    }
    used = {rule for matching in found.values() for rule in matching}
    problems = [f"no rule matches {name}: it would stay whole unsaid" for name, rules in found.items() if not rules]
    problems += [
        f"{name} is matched by {len(matching)} rules: {', '.join(rule.pattern for rule in matching)}"
        for name, matching in found.items()
        if len(matching) > 1
    ]
    problems += [f"the rule {rule.pattern} ({rule.cut}) matches no parameter" for rule in rules if rule not in used]
    if problems:
        raise LayoutError("tensor parallelism's table and the model disagree:\n  " + "\n  ".join(problems))
    return {name: matching[0].cut for name, matching in found.items()}


def apply(model: Transformer, mesh: Mesh) -> None:
    """Leaves this rank's share of the model, in place. Raises LayoutError.

    Every cut parameter, bias or matrix, carries `tensor_model_parallel` = True (DeepSpeed's gradient norm and clipping
    go by it), `tp_dim`, `tp_start`, `tp_stop` (its slice of the whole) and `tp_whole_shape`.
    """
    if mesh.tp_size == 1:
        return
    if any(isinstance(module, UlyssesCore) for module in model.modules()):
        raise LayoutError("tensor parallelism comes before sequence parallelism, whose hooks its layers would lose")
    cuts = _cuts(model)
    _cut_parameters(model, cuts, mesh)
    _replace_layers(model, cuts, mesh)
    if model.position is not None and mesh.cuts_norms:
        model.position.register_forward_pre_hook(_cut_last(mesh))
    for block in model.blocks:
        assert isinstance(block, Block)
        for region in (block.attention, block.mlp):
            region.register_forward_pre_hook(_enter_region(mesh))
    model.norm.register_forward_hook(lambda _, __, output: _whole(output, mesh))  # pyright: ignore[reportArgumentType]


def seal(model: Transformer, mesh: Mesh) -> None:
    """To be called once, on the model as it is handed to DeepSpeed, whose parameters are new ones since `apply`.

    Raises LayoutError that names every parameter which is cut and does not say so, or says so and is not: DeepSpeed
    takes an unmarked slice for a replica, in silence. Then lets the gradients that are partial be summed over the
    tensor-parallel ranks.
    """
    if mesh.tp_size == 1:
        return
    cuts = _cuts(model)
    named = list(model.named_parameters())
    problems = [problem for name, parameter in named for problem in _problems(name, parameter, cuts[name])]
    if problems:
        raise LayoutError("gradient norm and clipping would be silently wrong:\n  " + "\n  ".join(problems))
    for name, parameter in named:
        if cuts[name] == Cut.per_head or (cuts[name] == Cut.replicated and mesh.cuts_norms):
            parameter.register_hook(lambda gradient: sum_of(gradient, mesh.tp_group))


def norms_in_force(model: Transformer) -> set[bool]:
    """Whether sums of the blocks leave each rank its own positions; empty without tensor parallelism."""
    return {layer.mesh.cuts_norms for layer in model.modules() if isinstance(layer, RowLinear)}


def own_slice(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """A view of what a rank keeps of the whole tensor of `parameter`, whose marks say which slice that is."""
    dim = getattr(parameter, "tp_dim", None)
    if dim is None:
        return whole
    start, stop = parameter.tp_start, parameter.tp_stop  # pyright: ignore[reportAttributeAccessIssue]
    return whole.narrow(dim, start, stop - start)


# --- cutting ----------------------------------------------------------------------------------------------------------


def _cuts(model: Transformer) -> dict[str, Cut]:
    return cuts_of([name for name, _ in model.named_parameters()], table(model.config))


def _cut_parameters(model: nn.Module, cuts: dict[str, Cut], mesh: Mesh) -> None:
    slices = {
        id(parameter): _slice(name, parameter, _DIM[cuts[name]], mesh)
        for name, parameter in model.named_parameters()
        if cuts[name] in _DIM
    }
    for module in model.modules():  # a tied weight is in two modules, and stays one parameter
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in slices:
                setattr(module, key, slices[id(parameter)])


def _slice(name: str, parameter: nn.Parameter, dim: int, mesh: Mesh) -> nn.Parameter:
    whole = parameter.shape[dim]
    if whole % mesh.tp_size:
        raise LayoutError(f"{name} {tuple(parameter.shape)}: {whole} does not divide by tp_size={mesh.tp_size}")
    length = whole // mesh.tp_size
    start = mesh.tp_rank * length
    part = nn.Parameter(parameter.detach().narrow(dim, start, length).clone(memory_format=torch.contiguous_format))
    marks: dict[str, Any] = {
        "tensor_model_parallel": True,
        "tp_dim": dim,
        "tp_start": start,
        "tp_stop": start + length,
        "tp_whole_shape": tuple(parameter.shape),
    }
    for mark, value in marks.items():
        setattr(part, mark, value)
    return part


def _replace_layers(model: nn.Module, cuts: dict[str, Cut], mesh: Mesh) -> None:
    """The layers of matrices that need more than a narrower weight."""
    for name, cut in cuts.items():
        path, _, kind = name.rpartition(".")
        layer = model.get_submodule(path)
        match layer, cut:
            case nn.Linear(), Cut.row:
                model.set_submodule(path, RowLinear(layer, mesh))
            case nn.Embedding(), Cut.vocabulary:
                model.set_submodule(path, VocabularyEmbedding(layer, mesh))
            case nn.Linear(), Cut.column | Cut.vocabulary if kind == "weight":
                layer.out_features = layer.weight.shape[0]


def _problems(name: str, parameter: Any, cut: Cut) -> Iterator[str]:
    marked = getattr(parameter, "tensor_model_parallel", False)
    if marked != (cut in _DIM):
        yield (
            f"{name} is marked tensor_model_parallel, but every rank holds all of it"
            if marked
            else f"{name} is cut ({cut}) but not marked tensor_model_parallel"
        )
    elif marked:
        expected = list(parameter.tp_whole_shape)
        expected[parameter.tp_dim] = parameter.tp_stop - parameter.tp_start
        if (shape := list(getattr(parameter, "ds_shape", parameter.shape))) != expected:  # ZeRO 3 leaves shape empty
            yield f"{name} has shape {shape}, its marks say {expected}"


# --- layers -----------------------------------------------------------------------------------------------------------


def _whole(x: Tensor, mesh: Mesh) -> Tensor:
    """(B, t, C) to (B, T, C), into a region that each rank computes a part of."""
    return gathered(x, 1, mesh.tp_group) if mesh.cuts_norms else enter(x, mesh.tp_group)


def _total(x: Tensor, mesh: Mesh) -> Tensor:
    """(B, T, C), the part of a sum that this rank computed, to (B, t, C), the sum."""
    return scattered_sum(x, 1, mesh.tp_group) if mesh.cuts_norms else summed(x, mesh.tp_group)


def _enter_region(mesh: Mesh) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward_pre_hook on attention or MLP: the residual stream is its first argument."""
    return lambda _, inputs: (_whole(inputs[0], mesh), *inputs[1:])


def _cut_last(mesh: Mesh) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    """A forward_pre_hook that cuts position numbers (T,) or (B, T) like the residual stream."""
    return lambda _, inputs: sequence_part(inputs[0], -1, mesh.tp_rank, mesh.tp_size)


class RowLinear(nn.Module):
    """x W^T + b, x (B, T, F / tp_size) with the features of this rank, to (B, t, C)."""

    def __init__(self, layer: nn.Linear, mesh: Mesh):
        super().__init__()
        self.weight, self.bias, self.mesh = layer.weight, layer.bias, mesh

    def forward(self, x: Tensor) -> Tensor:
        y = _total(F.linear(x, self.weight), self.mesh)
        return y if self.bias is None else y + self.bias


class VocabularyEmbedding(nn.Module):
    """Rows of a table of which each rank has V / tp_size: (B, T) to (B, t, C). Ids of other ranks give zeros here."""

    def __init__(self, layer: nn.Embedding, mesh: Mesh):
        super().__init__()
        self.weight, self.mesh = layer.weight, mesh

    def forward(self, tokens: Tensor) -> Tensor:
        own, index = _own_ids(tokens, self.weight.shape[0], self.mesh)
        rows = F.embedding(index, self.weight)
        return _total(rows.masked_fill(~own.unsqueeze(-1), 0), self.mesh)


def _own_ids(ids: Tensor, n_own: int, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Which ids this rank has, and their rows here (0 for the others)."""
    index = ids - mesh.tp_rank * n_own
    own = (index >= 0) & (index < n_own)
    return own, index.where(own, 0)


# --- loss -------------------------------------------------------------------------------------------------------------


def token_losses(logits: Tensor, targets: Tensor, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """(nats, log_z), each (...) fp32 and equal on all tensor-parallel ranks, as `model.loss.token_losses` gives them.

    logits: (..., V / tp_size) of this rank; targets: (...). Three numbers a position are reduced: the largest logit,
    the sum of exponentials, the target's logit. Kept for backward: the logits as they came, and (...)-shaped tensors.
    """
    own, index = _own_ids(targets, logits.shape[-1], mesh)
    return _TokenLosses.apply(logits, targets != IGNORED_TARGET, own, index, mesh.tp_group)  # pyright: ignore[reportReturnType]


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, real: Tensor, own: Tensor, index: Tensor, group: ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        x = logits.float()
        largest = x.amax(-1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        exponentials = (x - largest.unsqueeze(-1)).exp().sum(-1)
        target = x.gather(-1, index.unsqueeze(-1)).squeeze(-1).where(own, 0)
        exponentials, target = sum_of(torch.stack((exponentials, target)), group).unbind()
        log_z = exponentials.log() + largest
        ctx.save_for_backward(logits, real, own, index, log_z)
        return (log_z - target).where(real, 0), log_z.where(real, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """d nats / d logits = softmax - one-hot of the target; d log_z / d logits = softmax."""
        d_nats, d_log_z = grad_outputs
        logits, real, own, index, log_z = ctx.saved_tensors
        softmax = (logits.float() - log_z.unsqueeze(-1)).exp()
        d = softmax * (d_nats + d_log_z).where(real, 0).unsqueeze(-1)
        d.scatter_add_(-1, index.unsqueeze(-1), -d_nats.where(real & own, 0).unsqueeze(-1))
        return d.to(logits.dtype), None, None, None, None

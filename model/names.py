"""Where each parameter of ours lies in Hugging Face's layouts: one table a layout, read in both directions.

A row gives, for names of ours, the name of theirs and how the two tensors relate. Most are equal. GPT-2 keeps the
matrices of its `Conv1D` transposed, and q, k and v as three parts of one. Rotary positions are half-split here as
there, so no rows are permuted. Qwen3, Qwen2 and Mistral use Llama's names. No torch until tensors are at hand.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Layout(StrEnum):
    """As Hugging Face calls them in `model_type`."""

    llama = "llama"
    qwen3 = "qwen3"
    qwen2 = "qwen2"
    mistral = "mistral"
    gpt2 = "gpt2"


class Place(NamedTuple):
    """Where a tensor of ours lies: in part `part` of `parts` equal ones (along its rows) of the tensor called `name`,
    after that was transposed if it is `transposed`."""

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1


_LLAMA = [
    (r"embedding\.weight", "model.embed_tokens.weight"),
    (r"blocks\.(\d+)\.attention_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blocks\.(\d+)\.attention\.([qkvo])\.(weight|bias)", r"model.layers.\1.self_attn.\2_proj.\3"),
    (r"blocks\.(\d+)\.attention\.([qk])_norm\.weight", r"model.layers.\1.self_attn.\2_norm.weight"),
    (r"blocks\.(\d+)\.mlp_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blocks\.(\d+)\.mlp\.(gate|up|down)\.(weight|bias)", r"model.layers.\1.mlp.\2_proj.\3"),
    (r"norm\.weight", "model.norm.weight"),
    (r"head\.weight", "lm_head.weight"),
]
_GPT2 = [
    (r"embedding\.weight", "transformer.wte.weight"),
    (r"position\.weight", "transformer.wpe.weight"),
    (r"blocks\.(\d+)\.attention_norm\.(weight|bias)", r"transformer.h.\1.ln_1.\2"),
    (r"blocks\.(\d+)\.attention\.[qkv]\.(weight|bias)", r"transformer.h.\1.attn.c_attn.\2"),
    (r"blocks\.(\d+)\.attention\.o\.(weight|bias)", r"transformer.h.\1.attn.c_proj.\2"),
    (r"blocks\.(\d+)\.mlp_norm\.(weight|bias)", r"transformer.h.\1.ln_2.\2"),
    (r"blocks\.(\d+)\.mlp\.up\.(weight|bias)", r"transformer.h.\1.mlp.c_fc.\2"),
    (r"blocks\.(\d+)\.mlp\.down\.(weight|bias)", r"transformer.h.\1.mlp.c_proj.\2"),
    (r"norm\.(weight|bias)", r"transformer.ln_f.\1"),
    (r"head\.weight", "lm_head.weight"),
]


def place_of(name: str, layout: Layout) -> Place:
    """Raises KeyError for a name that the layout has no place for."""
    for pattern, replacement in _GPT2 if layout == Layout.gpt2 else _LLAMA:
        if match := re.fullmatch(pattern, name):
            return _placed(name, match.expand(replacement), layout)
    raise KeyError(f"the {layout} layout has no place for the parameter {name}")


def _placed(name: str, theirs: str, layout: Layout) -> Place:
    if layout != Layout.gpt2:
        return Place(theirs)
    transposed = ".c_" in theirs and theirs.endswith(".weight")
    if ".c_attn." in theirs:
        return Place(theirs, transposed, part="qkv".index(name.split(".")[-2]), parts=3)
    return Place(theirs, transposed)


def parts_of(names: Iterable[str], layout: Layout) -> dict[str, list[str]]:
    """Each tensor of theirs, with the names of ours that it is made of, in order."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: place_of(name, layout).part):
        found.setdefault(place_of(name, layout).name, []).append(name)
    return found


def to_ours(theirs: "Tensor", place: Place) -> "Tensor":
    """Ours, from the tensor that holds it."""
    whole = theirs.T if place.transposed else theirs
    return whole.chunk(place.parts)[place.part].contiguous()


def to_theirs(parts: "Sequence[Tensor]", place: Place) -> "Tensor":
    """Theirs, from all tensors of ours that it holds, in order; `place`: that of any of them."""
    import torch

    whole = torch.cat(list(parts)) if place.parts > 1 else parts[0]
    return (whole.T if place.transposed else whole).contiguous()


def their_shape(shape: Sequence[int], place: Place) -> tuple[int, ...]:
    """Of the tensor that holds ours, which has this `shape`."""
    whole = (place.parts * shape[0], *shape[1:])
    return whole[::-1] if place.transposed else whole

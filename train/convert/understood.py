"""A Hugging Face config.json → a ModelConfig, or everything that cannot be followed.

Each field is read, or must have the one value that is our network, or is known to change no logits; any other is
refused by name. Values that `transformers` takes for absent fields are taken as well, and told; where its silent value
is often wrong (rope_theta), the file must state it. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conf.check import build, defaults_of
from conf.errors import ConfigError
from data_prep.files import DataError
from model.config import Mlp, ModelConfig
from model.names import Layout
from train.convert.layouts import ARCHITECTURES, ROPE_FIELDS, ROPE_TYPES

ACTIVATIONS = {"gelu_new": Mlp.gelu_tanh, "gelu_pytorch_tanh": Mlp.gelu_tanh, "gelu": Mlp.gelu}
NO_EFFECT = frozenset(
    [
        "architectures",
        "model_type",
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "attention_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "task_specific_params",
        "pretraining_tp",
        "reorder_and_upcast_attn",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ]
)
"""fields that change no logits outside of training (pretraining_tp and the upcast: the order of sums)"""
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


@dataclass(frozen=True)
class Understood:
    """A config.json, read."""

    model: ModelConfig
    layout: Layout
    context: int
    ids: dict[str, int | None]
    notes: tuple[str, ...]
    """values that the file does not state, and what of it is not carried over"""


def understood(tree: Mapping[str, Any], *, rope_theta: float | None = None, ignored: Sequence[str] = ()) -> Understood:
    """rope_theta: for a file that states none; ignored: fields to pass over although we do not know them.

    Raises DataError with everything that cannot be followed.
    """
    layout = _layout_of(tree)
    fields = _Fields(tree)
    own = _gpt2_choices(fields) if layout == Layout.gpt2 else _llama_choices(fields, layout, rope_theta)
    own["vocab_size"] = fields.needed("vocab_size")
    own["tie_embeddings"] = fields.given("tie_word_embeddings", layout == Layout.gpt2)
    fields.fixed("is_encoder_decoder", False)
    context = own["max_positions"] if layout == Layout.gpt2 else fields.needed("max_position_embeddings")
    ids = {name: _first_id(tree.get(name)) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields.close(ignored)
    model = _built(own, fields.problems)
    return Understood(model, layout, context, ids, tuple(fields.notes))


def _layout_of(tree: Mapping[str, Any]) -> Layout:
    kind = tree.get("model_type")
    if kind not in [layout.value for layout in Layout]:
        raise DataError(f"config.json: model_type={kind!r} is unknown here; known are {', '.join(Layout)}")
    layout = Layout(kind)
    architectures = tree.get("architectures") or [ARCHITECTURES[layout]]
    if architectures != [ARCHITECTURES[layout]]:
        raise DataError(
            f"config.json: architectures={architectures} is not [{ARCHITECTURES[layout]!r}], the language model of "
            f"model_type={kind}"
        )
    return layout


@dataclass
class _Fields:
    """The fields of a config.json, and which of them have been looked at."""

    tree: Mapping[str, Any]
    seen: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def needed(self, key: str) -> Any:
        self.seen.add(key)
        if self.tree.get(key) is None:
            self.problems.append(f"`{key}` is not stated")
        return self.tree.get(key)

    def given(self, key: str, default: Any) -> Any:
        """For a field that may be absent, or null, and then has one meaning."""
        self.seen.add(key)
        if (value := self.tree.get(key)) is not None:
            return value
        self.notes.append(f"`{key}` is not stated: {default} is taken, as transformers does")
        return default

    def fixed(self, key: str, *allowed: Any) -> Any:
        """For a field that may be absent, and must otherwise have one of these values, the first being what absence
        means."""
        self.seen.add(key)
        value = self.tree.get(key, allowed[0])
        if value not in allowed:
            known = " or ".join(repr(one) for one in allowed)
            self.problems.append(f"`{key}`={value!r} is another network than ours; it must be {known}")
        return value

    def close(self, ignored: Sequence[str]) -> None:
        self.problems += [f"`{key}` is read here and cannot be ignored" for key in ignored if key in self.seen]
        unknown = sorted(set(self.tree) - self.seen - NO_EFFECT)
        for key in unknown:
            if key in ignored:
                self.notes.append(f"`{key}`={self.tree[key]!r} is passed over, as asked")
            else:
                self.problems.append(
                    f"`{key}`={self.tree[key]!r} is a field without a meaning here; if it changes no logits, name it "
                    f"in ignore_fields=[{key}]"
                )
        self.notes += [
            f"`{key}`={self.tree[key]} is not carried over: there is no dropout here"
            for key in DROPOUTS
            if self.tree.get(key)
        ]


def _llama_choices(fields: _Fields, layout: Layout, rope_theta: float | None) -> dict[str, Any]:
    own: dict[str, Any] = {
        "d_model": fields.needed("hidden_size"),
        "d_ff": fields.needed("intermediate_size"),
        "n_layers": fields.needed("num_hidden_layers"),
        "n_heads": fields.needed("num_attention_heads"),
        "norm_eps": fields.needed("rms_norm_eps"),
        "mlp": "swiglu",
        "norm": "rmsnorm",
        "positions": "rotary",
        "qk_norm": layout == Layout.qwen3,
    }
    own["n_kv_heads"] = fields.given("num_key_value_heads", own["n_heads"])
    fields.fixed("hidden_act", "silu")
    own |= _rope_choices(fields, rope_theta)
    match layout:
        case Layout.llama:
            biased = fields.fixed("attention_bias", False, True)
            if fields.fixed("mlp_bias", False, True) != biased:
                fields.problems.append(
                    f"`mlp_bias` must be as `attention_bias`={biased}: here biases are on all or none"
                )
            own["bias"] = "all" if biased else "none"
            own["head_dim"] = _head_dim(fields)
        case Layout.mistral:
            own["head_dim"] = _head_dim(fields)
            fields.seen.add("sliding_window")
            own["sliding_window"] = fields.tree.get("sliding_window")
            if "sliding_window" not in fields.tree:
                fields.problems.append("`sliding_window` is not stated: null, or a number (transformers takes 4096)")
        case Layout.qwen3:
            fields.fixed("attention_bias", False)
            own["head_dim"] = fields.needed("head_dim")
            own["sliding_window"] = _window(fields, own["n_layers"])
        case _:
            own["bias"] = "qkv"
            own["sliding_window"] = _window(fields, own["n_layers"])
    return own


def _head_dim(fields: _Fields) -> int | None:
    """Absent or null: d_model / n_heads, here as there."""
    fields.seen.add("head_dim")
    return fields.tree.get("head_dim")


def _window(fields: _Fields, n_layers: int) -> int | None:
    """Of Qwen: the layers from max_window_layers on slide, if any do. Here all slide, or none."""
    slides = fields.fixed("use_sliding_window", False, True)
    window, first = fields.tree.get("sliding_window"), fields.tree.get("max_window_layers")
    kinds = fields.tree.get("layer_types")
    fields.seen |= {"sliding_window", "max_window_layers", "layer_types"}
    if kinds is None and slides and window is not None and first is None:
        fields.problems.append("`max_window_layers` is not stated: which layers slide depends on the reader")
    if kinds is None:
        kinds = [
            "sliding_attention" if slides and i >= (first or 0) else "full_attention" for i in range(n_layers or 0)
        ]
    if set(kinds) == {"full_attention"}:
        if window is not None and not slides:
            fields.notes.append(f"`sliding_window`={window} has no effect: use_sliding_window is false")
        return None
    if set(kinds) != {"sliding_attention"} or not slides or window is None:
        fields.problems.append(
            f"`layer_types` (or max_window_layers={first}) has {sorted(set(kinds))} with use_sliding_window={slides} "
            f"and sliding_window={window}: here all layers slide, or none"
        )
    return window


def _rope_choices(fields: _Fields, assumed: float | None) -> dict[str, Any]:
    """Of rope_theta, rope_scaling (before transformers 5) and rope_parameters (since), which may say the same twice."""
    fields.seen |= {"rope_theta", "rope_scaling", "rope_parameters"}
    given = [fields.tree[key] for key in ("rope_parameters", "rope_scaling") if fields.tree.get(key)]
    if not all(isinstance(section, Mapping) for section in given):
        fields.problems.append(f"`rope_parameters` and `rope_scaling` must be objects, not {given}")
        return {}
    sections = [dict(section) for section in given]
    thetas = [section.pop("rope_theta", None) for section in sections] + [fields.tree.get("rope_theta")]
    thetas = [theta for theta in thetas if theta is not None]
    if not all(isinstance(theta, int | float) for theta in thetas):
        fields.problems.append(f"`rope_theta` must be a number, not {thetas}")
        return {}
    stated = {float(theta) for theta in thetas}
    if assumed is not None and stated and stated != {assumed}:
        fields.problems.append(f"rope_theta={assumed} was given, but the file states {sorted(stated)}")
    stated = stated or ({assumed} if assumed else set())
    if not stated:
        fields.problems.append(
            "`rope_theta` is not stated, and transformers would take 10000 without a word (right for Llama 1 and 2). "
            "Write it into the file, or give rope_theta=10000"
        )
    if len(stated) > 1:
        fields.problems.append(f"`rope_theta` is stated as {sorted(stated)}: which one is meant?")
    scalings = [{"rope_type": section.pop("type", "default")} | section for section in sections]
    if any(scaling != scalings[0] for scaling in scalings):
        fields.problems.append(f"`rope_parameters` and `rope_scaling` contradict each other: {scalings}")
    scaling = _scaling(fields, scalings[0] if scalings else {"rope_type": "default"})
    return {"rope_theta": next(iter(stated), None), "rope_scaling": scaling}


def _scaling(fields: _Fields, scaling: dict[str, Any]) -> dict[str, Any]:
    kind = scaling.pop("rope_type")
    if kind not in ROPE_TYPES:
        fields.problems.append(f"rope_type={kind!r} is unknown here; known are {', '.join(ROPE_TYPES)}")
        return {}
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0:
        fields.problems.append("`partial_rotary_factor` must be 1")
    own: dict[str, Any] = {"kind": ROPE_TYPES[kind].value}
    for theirs, ours in ROPE_FIELDS[kind].items():
        if (value := scaling.pop(theirs, None)) is not None:
            own[ours] = value
        elif not theirs.startswith("beta_"):  # 32 and 1, there as here
            fields.problems.append(f"`{theirs}` of rope_type={kind} is not stated")
    if kind == "yarn":
        usual = 0.1 * math.log(own.get("factor") or 1) + 1
        if not math.isclose(scaling.pop("attention_factor", None) or usual, usual, rel_tol=1e-6):
            fields.problems.append(f"`attention_factor` of yarn must be 0.1 ln(factor) + 1 = {usual:.6g}")
        if scaling.pop("truncate", True) is not True:
            fields.problems.append("`truncate` of yarn must be true")
    fields.problems += [f"`{key}`={value!r} of rope_type={kind} is unknown here" for key, value in scaling.items()]
    return own


def _gpt2_choices(fields: _Fields) -> dict[str, Any]:
    width, heads, positions = fields.needed("n_embd"), fields.needed("n_head"), fields.needed("n_positions")
    fields.fixed("scale_attn_weights", True)
    fields.fixed("scale_attn_by_inverse_layer_idx", False)
    fields.fixed("add_cross_attention", False)
    fields.fixed("n_ctx", positions)  # an old name for it
    activation = fields.given("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        fields.problems.append(f"`activation_function`={activation!r} is unknown here; known: {', '.join(ACTIVATIONS)}")
    return {
        "d_model": width,
        "d_ff": fields.given("n_inner", 4 * (width or 0)),
        "n_layers": fields.needed("n_layer"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "max_positions": positions,
        "norm_eps": fields.needed("layer_norm_epsilon"),
        "mlp": str(ACTIVATIONS.get(activation, Mlp.gelu)),
        "norm": "layernorm",
        "positions": "learned",
        "bias": "all",
    }


def _first_id(value: Any) -> Any:
    """Llama 3 has several ids that end a text; the first one ends a document."""
    return value[0] if isinstance(value, list) and value else value


def _built(own: dict[str, Any], problems: list[str]) -> ModelConfig:
    if problems:
        raise DataError("config.json cannot be followed:\n  " + "\n  ".join(problems))
    sizes = [own.get(key) for key in ("head_dim", "n_heads", "d_model")]
    head, heads, width = (size if isinstance(size, int) else 0 for size in sizes)
    if head and head * heads == width:
        own["head_dim"] = None  # the usual width, said in the usual way
    try:
        return build(ModelConfig, defaults_of(ModelConfig) | own)
    except ConfigError as error:
        raise DataError("config.json makes no sense:\n  " + "\n  ".join(error.problems)) from None

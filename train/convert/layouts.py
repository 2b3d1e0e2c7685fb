"""A ModelConfig → a Hugging Face config.json. The way back is in `understood.py`.

Every field is written that `transformers` would otherwise fill in without a word (a forgotten rope_theta becomes 10000
there). What a layout cannot express is refused with the option named. No torch.
"""

from collections.abc import Mapping
from typing import Any

from conf.errors import ConfigError
from model.config import Bias, Init, Mlp, ModelConfig, Norm, Positions, Residual, Scaling
from model.names import Layout

ARCHITECTURES = {
    Layout.llama: "LlamaForCausalLM",
    Layout.qwen3: "Qwen3ForCausalLM",
    Layout.qwen2: "Qwen2ForCausalLM",
    Layout.mistral: "MistralForCausalLM",
    Layout.gpt2: "GPT2LMHeadModel",
}
ROPE_TYPES = {"default": Scaling.none, "linear": Scaling.linear, "yarn": Scaling.yarn, "llama3": Scaling.llama3}
ROPE_FIELDS = {
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
    },
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "default": {},
}
"""rope_type → {their field: ours in RopeScaling}"""
_SAME = {
    "attention_softcap": (None,),
    "logit_softcap": (None,),
    "residual": (Residual.sequential,),
    "rotary_fraction": (1.0,),
    "init": (Init.gpt2, Init.scaled),
}
_ROTARY = _SAME | {"norm": (Norm.rmsnorm,), "mlp": (Mlp.swiglu,), "positions": (Positions.rotary,)}
EXPRESSES: dict[Layout, dict[str, tuple[Any, ...]]] = {
    Layout.llama: _ROTARY | {"bias": (Bias.none, Bias.all), "qk_norm": (False,), "sliding_window": (None,)},
    Layout.qwen3: _ROTARY | {"bias": (Bias.none,), "qk_norm": (True,)},
    Layout.qwen2: _ROTARY | {"bias": (Bias.qkv,), "qk_norm": (False,)},
    Layout.mistral: _ROTARY | {"bias": (Bias.none,), "qk_norm": (False,)},
    Layout.gpt2: _SAME
    | {
        "norm": (Norm.layernorm,),
        "mlp": (Mlp.gelu, Mlp.gelu_tanh),
        "positions": (Positions.learned,),
        "bias": (Bias.all,),
        "qk_norm": (False,),
        "sliding_window": (None,),
    },
}
"""what an option may be for a layout to express it"""


def layout_for(model: ModelConfig, asked: Layout | None) -> Layout:
    """The layout asked for, or the first that expresses the model. Raises ConfigError that names what it cannot."""
    if asked is not None:
        if found := refusals(model, asked):
            raise ConfigError(found)
        return asked
    by_layout = {layout: refusals(model, layout) for layout in Layout}
    for layout, found in by_layout.items():
        if not found:
            return layout
    raise ConfigError(
        [
            f"no layout can express this model; the {layout} one: {'; '.join(found)}"
            for layout, found in by_layout.items()
        ]
    )


def refusals(model: ModelConfig, layout: Layout) -> list[str]:
    """What of the model this layout cannot express."""
    found = [
        f"model.{key}={getattr(model, key)} (it has {' or '.join(str(value) for value in allowed)})"
        for key, allowed in EXPRESSES[layout].items()
        if getattr(model, key) not in allowed
    ]
    if layout in (Layout.qwen2, Layout.gpt2) and model.q_width != model.d_model:
        found.append(f"model.head_dim={model.head_dim} (it has d_model / n_heads)")
    if layout == Layout.llama and model.d_model % model.n_heads:
        found.append(f"model.d_model={model.d_model} (it must divide by n_heads={model.n_heads})")
    if layout == Layout.gpt2 and model.n_kv_heads != model.n_heads:
        found.append(f"model.n_kv_heads={model.n_kv_heads} (it has n_heads={model.n_heads})")
    return [f"layout={layout} cannot express {problem}" for problem in found]


def config_json(
    model: ModelConfig, layout: Layout, *, context: int, dtype: str, ids: Mapping[str, int | None]
) -> dict[str, Any]:
    """context: tokens the model was trained to look back on; dtype: as torch calls it; ids: `bos_token_id` …"""
    return {
        "architectures": [ARCHITECTURES[layout]],
        "model_type": layout.value,
        "initializer_range": model.init_std,
        "use_cache": True,
        "torch_dtype": dtype,  # the name that readers before transformers 5 know
        "dtype": dtype,
        **ids,
        **_own_fields(model, layout, context),
    }


def differing(wanted: ModelConfig, found: ModelConfig, layout: Layout) -> list[str]:
    """The fields of a config.json in which two models of one layout differ, with both values."""
    mine, theirs = (_own_fields(model, layout, 0) for model in (wanted, found))
    return [f"{key} is {theirs[key]!r}, not {mine[key]!r}" for key in mine if mine[key] != theirs[key]]


def _own_fields(model: ModelConfig, layout: Layout, context: int) -> dict[str, Any]:
    """The fields that decide the numbers."""
    common = {"vocab_size": model.vocab_size, "tie_word_embeddings": model.tie_embeddings}
    own = _gpt2_fields(model) if layout == Layout.gpt2 else _llama_fields(model, layout, context)
    return common | own


def _llama_fields(model: ModelConfig, layout: Layout, context: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "max_position_embeddings": context,
        "attention_dropout": 0.0,
        **_rope_fields(model),
    }
    every = model.bias == Bias.all
    match layout:
        case Layout.llama:
            return fields | {"head_dim": model.head_width, "attention_bias": every, "mlp_bias": every}
        case Layout.mistral:
            return fields | {"head_dim": model.head_width, "sliding_window": model.sliding_window}
        case Layout.qwen3:
            return fields | {"head_dim": model.head_width, "attention_bias": False} | _window_fields(model)
        case _:
            return fields | _window_fields(model)


def _window_fields(model: ModelConfig) -> dict[str, Any]:
    slides = model.sliding_window is not None
    return {
        "use_sliding_window": slides,
        "sliding_window": model.sliding_window,
        "max_window_layers": 0 if slides else model.n_layers,
        "layer_types": ["sliding_attention" if slides else "full_attention"] * model.n_layers,
    }


def _rope_fields(model: ModelConfig) -> dict[str, Any]:
    """rope_theta and rope_scaling for readers before transformers 5, rope_parameters for those since."""
    theta, scaling = model.rope_theta, model.rope_scaling
    if scaling.kind == Scaling.ntk:  # the same frequencies as those of another base: see model/rope.py
        width = model.rotary_width
        theta, kind = theta * scaling.factor ** (width / (width - 2)), Scaling.none
    else:
        kind = scaling.kind
    name = next(name for name, ours in ROPE_TYPES.items() if ours == kind)
    fields = {theirs: getattr(scaling, ours) for theirs, ours in ROPE_FIELDS[name].items()}
    return {
        "rope_theta": theta,
        "rope_scaling": {"rope_type": name, **fields} if fields else None,
        "rope_parameters": {"rope_type": name, "rope_theta": theta, **fields},
    }


def _gpt2_fields(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": model.d_model,
        "n_inner": model.d_ff,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_positions": model.max_positions,
        "activation_function": "gelu_new" if model.mlp == Mlp.gelu_tanh else "gelu",
        "layer_norm_epsilon": model.norm_eps,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }

"""Independent networks to compare ours with: Hugging Face's, given our weights, and one in float64, written from the
papers with a loop over positions."""

import math
import re

import torch
import transformers
from torch import Tensor

from model.config import Bias, Mlp, ModelConfig, Norm, Positions, Residual, RopeScaling, Scaling

# --- Hugging Face -----------------------------------------------------------------------------------------------------


def hugging_face(family: str, config: ModelConfig, context: int) -> torch.nn.Module:
    """A model of `family` with the shape of `config`, fp32, for rows of `context` tokens, half of which are the context
    before stretching, if rotary positions are stretched. Random weights."""
    shape = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "attn_implementation": "eager",
    }
    match family:
        case "gpt1" | "gpt2":
            assert config.max_positions is not None
            kind = transformers.OpenAIGPTConfig if family == "gpt1" else transformers.GPT2Config
            theirs = kind(
                **shape,
                n_positions=config.max_positions,
                n_embd=config.d_model,
                n_layer=config.n_layers,
                n_head=config.n_heads,
                layer_norm_epsilon=config.norm_eps,
            )
        case "pythia":
            theirs = transformers.GPTNeoXConfig(
                **shape,
                hidden_size=config.d_model,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                intermediate_size=config.d_ff,
                hidden_act="gelu" if config.mlp == Mlp.gelu else "gelu_new",
                layer_norm_eps=config.norm_eps,
                use_parallel_residual=config.residual == Residual.parallel,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": config.rope_theta,
                    "partial_rotary_factor": config.rotary_fraction,
                },
            )
        case _:
            kinds = {
                "llama": transformers.LlamaConfig,
                "mistral": transformers.MistralConfig,
                "qwen2": transformers.Qwen2Config,
                "qwen3": transformers.Qwen3Config,
            }
            window = {"sliding_window": config.sliding_window} if family == "mistral" else {}
            theirs = kinds[family](
                **shape,
                **window,
                hidden_size=config.d_model,
                intermediate_size=config.d_ff,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                num_key_value_heads=config.n_kv_heads,
                head_dim=config.head_width,
                rms_norm_eps=config.norm_eps,
                max_position_embeddings=context // 2,
                rope_parameters=_rope_parameters(config.rope_theta, config.rope_scaling),
            )
    return transformers.AutoModelForCausalLM.from_config(theirs).eval()


def _rope_parameters(theta: float, scaling: RopeScaling) -> dict[str, float | str]:
    base = {"rope_theta": theta}
    match scaling.kind:
        case Scaling.none:
            return {"rope_type": "default", **base}
        case Scaling.linear:
            return {"rope_type": "linear", "factor": scaling.factor, **base}
        case Scaling.ntk:
            # "dynamic" stretches by factor · context / max_position_embeddings - (factor - 1) = factor + 1
            return {"rope_type": "dynamic", "factor": scaling.factor - 1, **base}
        case Scaling.yarn:
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_context,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                **base,
            }
        case Scaling.llama3:
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_context,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                **base,
            }


def in_their_layout(family: str, tensors: dict[str, Tensor], n_heads: int) -> dict[str, Tensor]:
    """Our parameters (or their gradients) under their names and in their shapes: names, transposes and joined matrices
    differ, no number does."""
    tensors = dict(tensors)
    if family in ("gpt1", "gpt2", "pythia"):
        for name in [name for name in tensors if ".attention.q." in name]:
            parts = [tensors.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
            tensors[name.replace(".q.", ".qkv.")] = _joined(family, parts, n_heads)
    if family in ("gpt1", "gpt2"):  # their linear layers hold (in, out)
        linear = re.compile(r".*\.(qkv|o|up|down)\.weight")
        tensors = {name: x.T if linear.fullmatch(name) else x for name, x in tensors.items()}
    return {_their_name(family, name): x for name, x in tensors.items()}


def _joined(family: str, parts: list[Tensor], n_heads: int) -> Tensor:
    if family == "pythia":  # head by head, each with its q, k and v
        return torch.stack([part.unflatten(0, (n_heads, -1)) for part in parts], dim=1).flatten(0, 2)
    return torch.cat(parts)


def _their_name(family: str, name: str) -> str:
    layer, _, kind = name.rpartition(".")
    for ours, theirs in _NAMES.get(family, _NAMES["llama"]):
        if match := re.fullmatch(ours, layer):
            return f"{match.expand(theirs)}.{kind}"
    raise KeyError(name)


def _gpt_names(embedding: str, position: str) -> list[tuple[str, str]]:
    block = r"transformer.h.\1."
    return [
        ("embedding", f"transformer.{embedding}"),
        ("position", f"transformer.{position}"),
        (r"blocks\.(\d+)\.attention_norm", block + "ln_1"),
        (r"blocks\.(\d+)\.mlp_norm", block + "ln_2"),
        (r"blocks\.(\d+)\.attention\.qkv", block + "attn.c_attn"),
        (r"blocks\.(\d+)\.attention\.o", block + "attn.c_proj"),
        (r"blocks\.(\d+)\.mlp\.up", block + "mlp.c_fc"),
        (r"blocks\.(\d+)\.mlp\.down", block + "mlp.c_proj"),
        ("norm", "transformer.ln_f"),
        ("head", "lm_head"),
    ]


_NAMES = {
    "gpt1": _gpt_names("tokens_embed", "positions_embed"),
    "gpt2": _gpt_names("wte", "wpe"),
    "pythia": [
        ("embedding", "gpt_neox.embed_in"),
        (r"blocks\.(\d+)\.attention_norm", r"gpt_neox.layers.\1.input_layernorm"),
        (r"blocks\.(\d+)\.mlp_norm", r"gpt_neox.layers.\1.post_attention_layernorm"),
        (r"blocks\.(\d+)\.attention\.qkv", r"gpt_neox.layers.\1.attention.query_key_value"),
        (r"blocks\.(\d+)\.attention\.o", r"gpt_neox.layers.\1.attention.dense"),
        (r"blocks\.(\d+)\.mlp\.up", r"gpt_neox.layers.\1.mlp.dense_h_to_4h"),
        (r"blocks\.(\d+)\.mlp\.down", r"gpt_neox.layers.\1.mlp.dense_4h_to_h"),
        ("norm", "gpt_neox.final_layer_norm"),
        ("head", "lm_head"),
    ],
    "llama": [
        ("embedding", "model.embed_tokens"),
        (r"blocks\.(\d+)\.attention_norm", r"model.layers.\1.input_layernorm"),
        (r"blocks\.(\d+)\.mlp_norm", r"model.layers.\1.post_attention_layernorm"),
        (r"blocks\.(\d+)\.attention\.([qkvo])", r"model.layers.\1.self_attn.\2_proj"),
        (r"blocks\.(\d+)\.attention\.([qk])_norm", r"model.layers.\1.self_attn.\2_norm"),
        (r"blocks\.(\d+)\.mlp\.(gate|up|down)", r"model.layers.\1.mlp.\2_proj"),
        ("norm", "model.norm"),
        ("head", "lm_head"),
    ],
}

# --- float64 ----------------------------------------------------------------------------------------------------------


def float64_logits(config: ModelConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """(T,) ids of one document to (T, V), a loop over positions and heads; rotary positions without scaling."""
    x = weights["embedding.weight"][tokens]
    if config.positions == Positions.learned:
        x = x + weights["position.weight"][: len(tokens)]
    for n in range(config.n_layers):
        own = {name.removeprefix(f"blocks.{n}."): w for name, w in weights.items() if name.startswith(f"blocks.{n}.")}
        match config.residual:
            case Residual.sequential:
                x = x + _attention(config, own, _norm(config, own, "attention_norm", x))
                x = x + _mlp(config, own, _norm(config, own, "mlp_norm", x))
            case Residual.parallel:
                attended = _attention(config, own, _norm(config, own, "attention_norm", x))
                x = x + attended + _mlp(config, own, _norm(config, own, "mlp_norm", x))
            case Residual.post_norm:
                x = _norm(config, own, "attention_norm", x + _attention(config, own, x))
                x = _norm(config, own, "mlp_norm", x + _mlp(config, own, x))
    if config.residual != Residual.post_norm:
        x = _norm(config, weights, "norm", x)
    return _capped(x @ weights.get("head.weight", weights["embedding.weight"]).T, config.logit_softcap)


def _attention(config: ModelConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    q, k, v = (
        _linear(weights, f"attention.{part}", x).unflatten(-1, (-1, config.head_width)).unbind(1) for part in "qkv"
    )
    if config.qk_norm:
        q = [_rms(head, config.norm_eps) * weights["attention.q_norm.weight"] for head in q]
        k = [_rms(head, config.norm_eps) * weights["attention.k_norm.weight"] for head in k]
    if config.positions == Positions.rotary:
        q, k = [_turned(config, head) for head in q], [_turned(config, head) for head in k]
    heads = []
    for h in range(config.n_heads):
        group = h // (config.n_heads // config.n_kv_heads)
        rows = []
        for t in range(len(x)):
            first = 0 if config.sliding_window is None else max(0, t - config.sliding_window + 1)
            scores = k[group][first : t + 1] @ q[h][t] / math.sqrt(config.head_width)
            rows.append(_capped(scores, config.attention_softcap).softmax(0) @ v[group][first : t + 1])
        heads.append(torch.stack(rows))
    return _linear(weights, "attention.o", torch.cat(heads, dim=-1))


def _turned(config: ModelConfig, head: Tensor) -> Tensor:
    """(T, D): column pairs (i, i + R/2) as complex numbers, times e^(i·angle)."""
    width = config.rotary_width
    i = torch.arange(width // 2, dtype=torch.float64)
    angles = torch.arange(len(head), dtype=torch.float64)[:, None] * config.rope_theta ** (-2 * i / width)
    turning = torch.complex(head[:, : width // 2], head[:, width // 2 : width])
    turned = turning * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag, head[:, width:]), dim=-1)


def _mlp(config: ModelConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    up = _linear(weights, "mlp.up", x)
    match config.mlp:
        case Mlp.swiglu:
            gate = _linear(weights, "mlp.gate", x)
            inner = gate / (1 + torch.exp(-gate)) * up
        case Mlp.gelu:
            inner = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        case Mlp.gelu_tanh:
            inner = up * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return _linear(weights, "mlp.down", inner)


def _norm(config: ModelConfig, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if config.norm == Norm.rmsnorm:
        return _rms(x, config.norm_eps) * weights[f"{name}.weight"]
    centred = x - x.mean(-1, keepdim=True)
    bias = weights[f"{name}.bias"] if config.bias == Bias.all else 0
    return _rms(centred, config.norm_eps) * weights[f"{name}.weight"] + bias


def _rms(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)

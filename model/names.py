"""Our parameter names beside Hugging Face's Llama names. One table, read in both directions."""

import re

_TABLE = [
    (r"embedding\.weight", "model.embed_tokens.weight"),
    (r"blocks\.(\d+)\.attention_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blocks\.(\d+)\.attention\.([qkvo])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"blocks\.(\d+)\.mlp_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blocks\.(\d+)\.mlp\.(gate|up|down)\.weight", r"model.layers.\1.mlp.\2_proj.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"head\.weight", "lm_head.weight"),
]


def llama_name(name: str) -> str:
    """The name that Hugging Face's Llama gives our parameter `name`. Raises KeyError for a name that has none."""
    for pattern, replacement in _TABLE:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise KeyError(f"no Llama name for parameter {name}")

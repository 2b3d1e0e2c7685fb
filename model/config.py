"""The shape of one decoder-only network, and the sizes that follow from it. No torch, so that planning is instant."""

from dataclasses import dataclass, field, fields
from enum import StrEnum

IGNORED_TARGET = -100
"""stands where a position has nothing to predict"""


class Norm(StrEnum):
    rmsnorm = "rmsnorm"
    layernorm = "layernorm"


class Positions(StrEnum):
    rotary = "rotary"
    learned = "learned"
    none = "none"


class Mlp(StrEnum):
    swiglu = "swiglu"
    """down(silu(gate(x)) * up(x)): three matrices"""
    gelu = "gelu"
    """down(gelu(up(x))), the exact function: two matrices"""
    gelu_tanh = "gelu_tanh"
    """the same with the tanh approximation of GPT-2"""


class Bias(StrEnum):
    none = "none"
    qkv = "qkv"
    """on q, k and v only"""
    all = "all"
    """on every linear layer but the head, and in LayerNorm"""


class Residual(StrEnum):
    sequential = "sequential"
    """x + attention(norm x), then x + mlp(norm x)"""
    parallel = "parallel"
    """x + attention(norm x) + mlp(norm' x): GPT-NeoX, Pythia"""
    post_norm = "post_norm"
    """norm(x + attention(x)), then norm(x + mlp(x)), no norm before the head: GPT-1"""


class Init(StrEnum):
    gpt2 = "gpt2"
    scaled = "scaled"
    mup = "mup"


class Scaling(StrEnum):
    none = "none"
    linear = "linear"
    ntk = "ntk"
    yarn = "yarn"
    llama3 = "llama3"


_READS = {
    Scaling.none: (),
    Scaling.linear: ("factor",),
    Scaling.ntk: ("factor",),
    Scaling.yarn: ("factor", "original_context", "beta_fast", "beta_slow"),
    Scaling.llama3: ("factor", "original_context", "low_freq_factor", "high_freq_factor"),
}
"""what each kind of scaling goes by"""


@dataclass
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than they were trained for: see model/rope.py."""

    kind: Scaling = Scaling.none
    factor: float = 1.0
    """how many times longer the context becomes"""
    original_context: int = 8192
    """tokens of context before stretching (yarn, llama3)"""
    low_freq_factor: float = 1.0
    """llama3: waves longer than original_context / this are stretched in full"""
    high_freq_factor: float = 4.0
    """llama3: waves shorter than original_context / this are left alone"""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original context are left alone"""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often are stretched in full"""

    def problems(self) -> list[str]:
        if self.factor < 1 or self.original_context < 1:
            return [
                f"model.rope_scaling: factor={self.factor} and original_context={self.original_context} must be at "
                "least 1"
            ]
        unread = [
            f"model.rope_scaling.{setting.name}={getattr(self, setting.name)} does nothing while "
            f"model.rope_scaling.kind={self.kind}"
            for setting in fields(self)
            if setting.name not in ("kind", *_READS[self.kind]) and getattr(self, setting.name) != setting.default
        ]
        if unread:
            return unread
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            return [
                f"model.rope_scaling: low_freq_factor={self.low_freq_factor} must be above 0 and below "
                f"high_freq_factor={self.high_freq_factor}"
            ]
        if not 0 < self.beta_slow < self.beta_fast:
            return [
                f"model.rope_scaling: beta_slow={self.beta_slow} must be above 0 and below beta_fast={self.beta_fast}"
            ]
        return []


@dataclass
class ModelConfig:
    """A decoder-only transformer. The defaults, a small Llama, learn something on a laptop; see also `conf/model/`."""

    vocab_size: int = 4096
    """rows of the embedding; at least the tokenizer's vocabulary (more is padding, which is trained but never used)"""
    n_layers: int = 3
    d_model: int = 128
    """width of the residual stream"""
    n_heads: int = 4
    n_kv_heads: int = 2
    """key and value heads; n_heads gives multi-head, 1 gives multi-query attention"""
    head_dim: int | None = None
    """width of one head; null means d_model / n_heads"""
    d_ff: int = 384
    """width of the MLP"""
    mlp: Mlp = Mlp.swiglu
    norm: Norm = Norm.rmsnorm
    norm_eps: float = 1e-5
    residual: Residual = Residual.sequential
    bias: Bias = Bias.none
    qk_norm: bool = False
    """RMSNorm of each query and key head before positions (Henry et al., arXiv 2010.04245; as in Qwen3)"""
    positions: Positions = Positions.rotary
    max_positions: int | None = None
    """rows of the table of learned positions: the longest context there can be"""
    rope_theta: float = 10_000.0
    """base of the rotary frequencies"""
    rotary_fraction: float = 1.0
    """share of each head that is rotated (Pythia: a quarter)"""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    sliding_window: int | None = None
    """a position sees itself and so many less one before it; null means all earlier ones"""
    attention_softcap: float | None = None
    """attention scores s become c·tanh(s/c) (Gemma 2, arXiv 2408.00118, section 2)"""
    logit_softcap: float | None = None
    """the same for logits"""
    tie_embeddings: bool = True
    """one matrix for the embedding and the output head"""
    init: Init = Init.gpt2
    """recipe of the initial weights: see model/init.py"""
    init_std: float = 0.02
    """standard deviation of the initial weights, before the recipe's scaling (scaled does not use it)"""
    mup_base_width: int | None = None
    """init=mup: the d_model at which learning rate and init_std were chosen; d_ff and n_heads x head_dim are taken to
    have grown in the same proportion since"""
    mup_base_head_dim: int | None = None
    """init=mup: the head_dim at that width; the same as head_dim now if heads became more, not wider"""

    @property
    def head_width(self) -> int:
        """D: columns of one head."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def rotary_width(self) -> int:
        """Columns of one head that are rotated."""
        return int(self.head_width * self.rotary_fraction)

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_width

    @property
    def attention_scale(self) -> float:
        """What the products of queries and keys are multiplied by: 1 / sqrt(D).

        muP: proportional to 1/D, for queries and keys align as they learn (Yang et al., arXiv 2203.03466, definition
        4.1), with the factor that makes it 1 / sqrt(D) at the base.
        """
        if self.init != Init.mup:
            return self.head_width**-0.5
        assert self.mup_base_head_dim is not None, "init=mup without mup_base_head_dim: problems() was not asked"
        return self.mup_base_head_dim**0.5 / self.head_width

    @property
    def width_ratio(self) -> float:
        """m of muP: how many times wider than the base; 1 under every other recipe."""
        return self.d_model / self.mup_base_width if self.init == Init.mup and self.mup_base_width else 1.0

    def problems(self) -> list[str]:
        found = [
            f"model.{name}={getattr(self, name)} must be at least 1"
            for name in ("vocab_size", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")
            if getattr(self, name) < 1
        ]
        found += [
            f"model.{name}={getattr(self, name)} must be above 0, or null"
            for name in (
                "head_dim",
                "max_positions",
                "sliding_window",
                "attention_softcap",
                "logit_softcap",
                "mup_base_width",
                "mup_base_head_dim",
            )
            if getattr(self, name) is not None and getattr(self, name) <= 0
        ]
        for name in ("rope_theta", "norm_eps", "init_std"):
            if getattr(self, name) <= 0:
                found.append(f"model.{name}={getattr(self, name)} must be above 0")
        return found or [*self._head_problems(), *self._position_problems(), *self._recipe_problems()]

    def _head_problems(self) -> list[str]:
        found: list[str] = []
        if self.head_dim is None and self.d_model % self.n_heads:
            low, high = _nearest_multiples(self.d_model, self.n_heads)
            found.append(
                f"model.d_model={self.d_model} does not divide by model.n_heads={self.n_heads}; "
                f"nearest widths {low} and {high}, or set model.head_dim"
            )
        if self.n_heads % self.n_kv_heads:
            divisors = [k for k in range(1, self.n_heads + 1) if self.n_heads % k == 0]
            found.append(
                f"model.n_heads={self.n_heads} does not divide by model.n_kv_heads={self.n_kv_heads}; "
                f"n_kv_heads can be one of {divisors}"
            )
        return found

    def _position_problems(self) -> list[str]:
        """What is set must be read: an option of one kind of positions is refused under another."""
        found: list[str] = []
        if self.positions == Positions.rotary:
            if self.rope_theta <= 1:
                found.append(f"model.rope_theta={self.rope_theta} must be above 1: frequencies fall by its powers")
            if not 0 < self.rotary_fraction <= 1:
                found.append(f"model.rotary_fraction={self.rotary_fraction} must lie in (0, 1]")
            elif self.rotary_width < 2 or self.rotary_width % 2:
                found.append(
                    f"heads of width {self.rotary_width} cannot be rotated: rotary positions need an even width "
                    f"(head_dim {self.head_width} x model.rotary_fraction={self.rotary_fraction})"
                )
            elif self.rotary_width == 2 and self.rope_scaling.kind == Scaling.ntk:
                found.append(
                    "model.rope_scaling.kind=ntk stretches slow dimensions more than fast ones, and heads of which 2 "
                    f"columns are rotated (head_dim {self.head_width} x model.rotary_fraction={self.rotary_fraction}) "
                    "have one; use kind=linear"
                )
        else:
            found += [
                f"model.{setting.name}={getattr(self, setting.name)} does nothing while model.positions="
                f"{self.positions}"
                for setting in fields(self)
                if setting.name in ("rope_theta", "rotary_fraction") and getattr(self, setting.name) != setting.default
            ]
            if self.rope_scaling.kind != Scaling.none:
                found.append(f"model.rope_scaling does nothing while model.positions={self.positions}")
        if (self.positions == Positions.learned) != (self.max_positions is not None):
            found.append(
                f"model.positions={self.positions} and model.max_positions={self.max_positions}: learned positions "
                "need the length of their table, and nothing else has one"
            )
        return found

    def _recipe_problems(self) -> list[str]:
        if self.init == Init.scaled and self.init_std != ModelConfig.init_std:
            return [f"model.init_std={self.init_std} does nothing while model.init=scaled"]
        return [
            f"model.init={self.init} and model.{name}={getattr(self, name)}: init=mup needs the {what} at which its "
            "settings were chosen, and no other recipe has one"
            for name, what in (("mup_base_width", "d_model"), ("mup_base_head_dim", "head_dim"))
            if (self.init == Init.mup) != (getattr(self, name) is not None)
        ]


def context_problems(config: ModelConfig, seq_len: int) -> list[str]:
    """What is wrong with rows of `seq_len` tokens for this network."""
    if config.max_positions is None or seq_len <= config.max_positions:
        return []
    return [
        f"data.seq_len={seq_len} is longer than the table of learned positions, model.max_positions="
        f"{config.max_positions}; set data.seq_len={config.max_positions} or less, or model.max_positions={seq_len}"
    ]


def _nearest_multiples(value: int, factor: int) -> tuple[int, int]:
    low = max(factor, value // factor * factor)
    return low, value // factor * factor + factor

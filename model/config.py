"""The shape of one decoder-only network, and the sizes that follow from it. No torch, so that planning is instant."""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """Sizes of a Llama-style transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    The defaults are the smallest network that learns something on a laptop; `conf/model/` names larger ones.
    """

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
    """width of the gated MLP"""
    rope_theta: float = 10_000.0
    """base of the rotary frequencies"""
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    """one matrix for the embedding and the output head"""
    init_std: float = 0.02
    """standard deviation of the initial weights, before the depth scaling of output projections"""

    @property
    def head_width(self) -> int:
        """D: columns of one head."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_width

    def problems(self) -> list[str]:
        found = [
            f"model.{name}={getattr(self, name)} must be at least 1"
            for name in ("vocab_size", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")
            if getattr(self, name) < 1
        ]
        for name in ("rope_theta", "norm_eps", "init_std"):
            if getattr(self, name) <= 0:
                found.append(f"model.{name}={getattr(self, name)} must be above 0")
        if found:
            return found
        if self.head_dim is None and self.d_model % self.n_heads:
            low, high = _nearest_multiples(self.d_model, self.n_heads)
            found.append(
                f"model.d_model={self.d_model} does not divide by model.n_heads={self.n_heads}; "
                f"nearest widths {low} and {high}, or set model.head_dim"
            )
        elif self.head_width < 2 or self.head_width % 2:
            found.append(f"heads of width {self.head_width} cannot be rotated: rotary positions need an even width")
        if self.n_heads % self.n_kv_heads:
            divisors = [k for k in range(1, self.n_heads + 1) if self.n_heads % k == 0]
            found.append(
                f"model.n_heads={self.n_heads} does not divide by model.n_kv_heads={self.n_kv_heads}; "
                f"n_kv_heads can be one of {divisors}"
            )
        return found


def _nearest_multiples(value: int, factor: int) -> tuple[int, int]:
    low = max(factor, value // factor * factor)
    return low, value // factor * factor + factor

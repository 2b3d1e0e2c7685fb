"""What `python -m train.convert` can be told. No torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from model.names import Layout


class Target(StrEnum):
    hf = "hf"
    weights = "weights"


class Dtype(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class ConvertCommand:
    source: str
    """a run's folder, a Hugging Face folder, or a folder of our weights"""
    out: str
    """the folder to make; it may exist if it is empty"""
    to: Target | None = None
    """null means: weights from a Hugging Face folder, a Hugging Face folder from anything else"""
    step: int | None = None
    """which checkpoint of a run; null means the newest that is whole"""
    layout: Layout | None = None
    """how the Hugging Face folder describes the model; null means the first layout that can express it"""
    dtype: Dtype | None = None
    """what the tensors are stored in; null means as they are in the source (a run's: fp32)"""
    context: int | None = None
    """tokens the model is said to look back on (max_position_embeddings); null means what the source says (a run:
    data.seq_len)"""
    tokenizer: bool = True
    """false leaves the tokenizer out, and its ids unchecked"""
    shard_bytes: int = 5_000_000_000
    """a file of tensors is closed before it grows above this"""
    rope_theta: float | None = None
    """for a Hugging Face folder whose config.json does not state it"""
    ignore_fields: list[str] = field(default_factory=list)
    """fields of config.json that change no logits, although they are unknown here"""

    def problems(self) -> list[str]:
        found = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in ("context", "shard_bytes")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if self.rope_theta is not None and self.rope_theta <= 0:
            found.append(f"rope_theta={self.rope_theta} must be above 0")
        return found

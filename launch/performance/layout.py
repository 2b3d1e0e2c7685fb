"""What is computed, and how it is spread over GPUs: all that the time and the memory of a step are predicted from."""

from dataclasses import dataclass

from launch.performance.stacks import Stack
from model.config import ModelConfig


@dataclass(frozen=True)
class Layout:
    """One training step. dp x tp x pp x cp GPUs."""

    model: ModelConfig
    seq_len: int
    micro_batch: int
    """sequences per data-parallel rank per forward"""
    accumulation: int
    """forwards per step and rank"""
    dp: int = 1
    tp: int = 1
    pp: int = 1
    virtual_stages: int = 1
    """model chunks per pipeline rank (interleaving); the product has no pipeline, published rows have"""
    cp: int = 1
    """ranks that share out every row: context parallelism or Ulysses"""
    all_to_all: bool = False
    """they exchange heads for positions (Ulysses); else keys and values are gathered"""
    zero: int = 1
    """0 to 3; on one data-parallel rank they are the same"""
    hpz: int = 1
    """ranks that keep a second copy of the weights among them; 1 means there is none"""
    precision: str = "bf16"
    """bf16, fp16, fp8 (matmuls of the blocks only) or fp32"""
    recompute: str = "none"
    """none, selective or full"""
    sequence_parallel: bool = True
    """with tp: norms and the residual stream are shared out over its ranks too"""

    @property
    def n_gpus(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def n_shards(self) -> int:
        """Ranks among which ZeRO shares states out: those of context parallelism hold the same weights."""
        return self.dp * self.cp

    @property
    def tokens(self) -> int:
        """Of one forward on one GPU."""
        return self.micro_batch * self.seq_len // self.cp

    @property
    def tokens_per_step(self) -> int:
        return self.dp * self.accumulation * self.micro_batch * self.seq_len

    @property
    def layers_of_stage(self) -> float:
        return self.model.n_layers / self.pp


@dataclass(frozen=True)
class Job:
    """A layout under the software that runs it."""

    layout: Layout
    stack: Stack

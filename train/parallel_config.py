"""How a run is spread over ranks and executed; but for precision, none of it changes what is learned. Imports no
torch."""

from dataclasses import dataclass
from enum import StrEnum


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    bf16_states = "bf16_states"


class Recompute(StrEnum):
    none = "none"
    """everything that backward needs is kept"""
    full = "full"
    """only the input of each block is kept; its forward runs again in backward"""
    selective = "selective"
    """results of matrix products and attention are kept; norms, rotations and activations run again"""


class Compile(StrEnum):
    off = "off"
    inductor = "inductor"
    aot_eager = "aot_eager"
    """traced and differentiated ahead of time, but run by torch's own kernels: shows what breaks a graph, needs no
    compiler"""


class AttentionKernel(StrEnum):
    auto = "auto"
    """torch chooses; the start of the run says which"""
    flash = "flash"
    efficient = "efficient"
    cudnn = "cudnn"
    math = "math"
    """all scores are kept: for comparison"""


@dataclass
class ParallelConfig:
    zero_stage: int = 1
    """what the data-parallel ranks share out: 1 optimizer states, 2 and gradients, 3 and weights"""
    precision: Precision = Precision.fp32
    """fp32 throughout; bf16 weights with fp32 masters, fp32 moments and fp32 gradient sums; or bf16_states: weights,
    masters, moments and gradient sums all bf16, which is smaller and loses updates below 1/256 of a weight"""
    bucket_elements: int = 50_000_000
    """gradients are reduced in buckets of this many numbers"""
    hpz_size: int | None = None
    """ZeRO 3: so many neighbouring ranks (those of a node) keep a second copy of the weights among them, so that only
    the first gathering of a step goes over the network; null means none (hpZ of ZeRO++, arXiv 2306.10209)"""
    offload_optimizer: bool = False
    """masters and moments live in the memory of the CPU, which also does the update"""
    tp_size: int = 1
    """tensor parallelism: so many neighbouring ranks share out every matrix"""
    sequence_parallel_norms: bool = True
    """with tp_size above 1: each of those ranks runs the norms, and keeps the residual stream, for its own part of the
    sequence (arXiv 2205.05198)"""
    sp_size: int = 1
    """sequence parallelism (Ulysses, arXiv 2309.14509): so many ranks share out every row, for long contexts"""
    activation_checkpointing: Recompute = Recompute.none
    compile: Compile = Compile.off
    """torch.compile of each block"""
    attention_kernel: AttentionKernel = AttentionKernel.auto
    """any other than auto is used or the run stops"""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.zero_stage == 0:
            found.append(
                "parallel.zero_stage=0 is refused: DeepSpeed's stage 0 takes an Adam step at construction in bf16 and "
                "does not skip NaN gradients in fp32; zero_stage=1 on one process is plain training with fp32 masters"
            )
        elif self.zero_stage not in (1, 2, 3):
            found.append(f"parallel.zero_stage={self.zero_stage} must be 1, 2 or 3")
        for name in ("tp_size", "sp_size"):
            if getattr(self, name) < 1:
                found.append(f"parallel.{name}={getattr(self, name)} must be at least 1")
        if self.bucket_elements < 1:
            found.append(f"parallel.bucket_elements={self.bucket_elements} must be at least 1")
        if self.compile != Compile.off and self.zero_stage == 3:
            found.append(
                f"parallel.compile={self.compile} does not go with parallel.zero_stage=3: DeepSpeed gathers weights in "
                "hooks that break every block's graph some twenty times, so hardly anything would be compiled; use "
                "zero_stage=2 (with tp_size, where weights do not fit), or compile=off"
            )
        if self.hpz_size is not None and self.hpz_size < 2:
            found.append(f"parallel.hpz_size={self.hpz_size} must be at least 2 (the ranks of a node), or null")
        if self.hpz_size is not None and self.zero_stage != 3:
            found.append(
                f"parallel.hpz_size={self.hpz_size} needs parallel.zero_stage=3: at stage {self.zero_stage} every rank "
                "holds all weights anyway"
            )
        if self.hpz_size is not None and self.tp_size > 1:
            found.append(
                f"parallel.hpz_size={self.hpz_size} does not go with parallel.tp_size={self.tp_size}: DeepSpeed counts "
                "hpZ's groups across tensor-parallel ranks and would mix their slices; set hpz_size=null or tp_size=1"
            )
        if self.offload_optimizer and self.precision == Precision.bf16_states:
            found.append(
                "parallel.offload_optimizer=true does not go with parallel.precision=bf16_states: DeepSpeed then wants "
                "its own CPU optimizer, which has to be compiled; use precision=bf16, or no offload"
            )
        return found

    def problems_on(self, data_ranks: int) -> list[str]:
        """What is wrong with this many data-parallel ranks (with sequence parallelism, of all its ranks too)."""
        if self.hpz_size is None or data_ranks % self.hpz_size == 0:
            return []
        sizes = [size for size in range(2, data_ranks + 1) if data_ranks % size == 0]
        return [
            f"parallel.hpz_size={self.hpz_size} does not divide {data_ranks} data-parallel ranks; "
            + (f"it can be one of {sizes}, or null" if sizes else "a single rank has nobody to share with: set null")
        ]

"""What `python -m train.verify` compares: every layout with the run it must equal, how close, and why not closer.

All cases train the same small models from the same seed on the same rows. No torch.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from model.config import Bias, Mlp, ModelConfig, Norm, Positions
from train.config import LossConfig
from train.parallel_config import Compile, ParallelConfig, Precision, Recompute

STEPS, ROWS, SEQ_LEN, VOCAB = 10, 8, 32, 256
CLIP, DECAY = 0.5, 0.1
EPS = 1e-4
"""of AdamW: large, since where a gradient is nearly zero its rounding would else decide the sign of a full update"""


def lr_of(step: int) -> float:
    return 1e-2 * (step + 1) / STEPS


class Rows(StrEnum):
    whole = "whole"
    """every position has a target"""
    ragged = "ragged"
    """rows of very different numbers of targets, documents masked"""
    packed = "packed"
    """three documents a row, masked"""
    apart = "apart"
    """the same documents, each in a padded row of its own"""


class Family(StrEnum):
    llama = "llama"
    gpt2 = "gpt2"


def model_of(case: "Case") -> ModelConfig:
    """Sizes that divide by four ranks, and not by more than they must."""
    llama = ModelConfig(vocab_size=VOCAB, n_layers=2, d_model=40, n_heads=8, n_kv_heads=4, head_dim=6, d_ff=52)
    match case.family:
        case Family.llama:
            return replace(llama, qk_norm=True, tie_embeddings=False)
        case Family.gpt2:
            return replace(
                llama,
                norm=Norm.layernorm,
                positions=Positions.learned,
                max_positions=SEQ_LEN,
                mlp=Mlp.gelu_tanh,
                bias=Bias.all,
            )


@dataclass(frozen=True)
class Bound:
    """How far apart two runs may lie, and why."""

    relative: float
    """of losses and gradient norms"""
    why: str
    weights: float = 1e-5
    """of weights, against the largest of their tensor (see compare.py): ten updates' roundings add up"""


SAME = Bound(1e-6, "the same operations in the same order, but for the sums of a matrix product")
SUMS = Bound(1e-5, "sums over rows, positions, heads or columns run in another order")
BF16 = Bound(2e-2, "bf16 keeps 8 bits of a number")
BF16_STATES = Bound(5e-2, "weights and moments keep 8 bits, so small updates are lost")

PLAIN = "torch alone"
"""one process without DeepSpeed: what nearly every case is compared with"""


@dataclass(frozen=True)
class Case:
    name: str
    ranks: int = 1
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    accumulation: int = 1
    rows: Rows = Rows.whole
    family: Family = Family.llama
    against: str = PLAIN
    bound: Bound = SUMS
    compares_weights: bool = True


def cases(compiler: Compile = Compile.aot_eager) -> list[Case]:
    """compiler: of the compiled cases. aot_eager shows that blocks are traced whole and needs no compiler; inductor
    makes kernels of its own, which add up in their own order."""
    return [*_data_parallel(), *_tensor_and_sequence_parallel(), *_execution(compiler), *_rows(), *_states()]


def _data_parallel() -> list[Case]:
    return [
        Case(
            f"ZeRO {stage}, {ranks} rank{'s' * (ranks > 1)}, accumulation {accumulation}",
            ranks,
            ParallelConfig(zero_stage=stage),
            accumulation=accumulation,
            bound=SAME if ranks == accumulation == 1 else SUMS,
        )
        for stage in (1, 2, 3)
        for ranks, accumulation in ((1, 1), (1, 4), (2, 1), (2, 4), (4, 1))
    ]


def _tensor_and_sequence_parallel() -> list[Case]:
    def case(name: str, ranks: int, family: Family = Family.llama, accumulation: int = 1, **layout: object) -> Case:
        return Case(name, ranks, ParallelConfig(**layout), family=family, accumulation=accumulation)  # type: ignore[arg-type]

    return [
        *(case(f"TP 2, ZeRO {stage}", 2, tp_size=2, zero_stage=stage) for stage in (1, 2, 3)),
        case("TP 2, norms whole", 2, tp_size=2, sequence_parallel_norms=False),
        case("TP 4, accumulation 2", 4, accumulation=2, tp_size=4),
        *(case(f"DP 2 x TP 2, ZeRO {stage}", 4, tp_size=2, zero_stage=stage) for stage in (1, 2, 3)),
        *(case(f"SP 2, ZeRO {stage}", 2, sp_size=2, zero_stage=stage) for stage in (1, 2, 3)),
        case("DP 2 x SP 2", 4, sp_size=2),
        case("SP 2 x TP 2, ZeRO 2", 4, sp_size=2, tp_size=2, zero_stage=2),
        case("GPT-2, ZeRO 3, 2 ranks", 2, Family.gpt2, zero_stage=3),
        case("GPT-2, TP 2", 2, Family.gpt2, tp_size=2),
        case("GPT-2, SP 2 x TP 2", 4, Family.gpt2, sp_size=2, tp_size=2),
    ]


def _execution(compiler: Compile) -> list[Case]:
    full, selective = Recompute.full, Recompute.selective

    def case(name: str, ranks: int = 1, bound: Bound = SAME, **layout: object) -> Case:
        return Case(name, ranks, ParallelConfig(**layout), bound=bound)  # type: ignore[arg-type]

    both = ParallelConfig(sp_size=2, tp_size=2)
    return [
        case("checkpointing full", activation_checkpointing=full),
        case("checkpointing selective", activation_checkpointing=selective),
        case("checkpointing full, ZeRO 3, 2 ranks", 2, SUMS, activation_checkpointing=full, zero_stage=3),
        case("checkpointing selective, TP 2", 2, SUMS, activation_checkpointing=selective, tp_size=2),
        case("compiled", 1, SAME if compiler == Compile.aot_eager else SUMS, compile=compiler),
        case("compiled, TP 2, ZeRO 2", 2, SUMS, compile=compiler, tp_size=2, zero_stage=2),
        Case("loss in chunks", loss=LossConfig(chunk_tokens=11)),
        Case("loss in chunks, SP 2 x TP 2", 4, both, LossConfig(chunk_tokens=11)),
        Case("z-loss in chunks, TP 2", 2, ParallelConfig(tp_size=2), LossConfig(1e-2, 11), against="z-loss"),
    ]


def _rows() -> list[Case]:
    layout = ParallelConfig(sp_size=2, tp_size=2)
    return [
        Case("ragged rows", rows=Rows.ragged, accumulation=4),
        Case("ragged rows, 2 ranks", 2, rows=Rows.ragged, accumulation=2),
        Case("ragged rows, SP 2 x TP 2", 4, layout, rows=Rows.ragged, accumulation=2),
        Case("packed and masked = documents apart", rows=Rows.packed, against="documents apart"),
        Case("GPT-2, packed = documents apart", 2, ParallelConfig(tp_size=2), rows=Rows.packed, family=Family.gpt2,
             against="GPT-2, documents apart"),
    ]  # fmt: skip


def _states() -> list[Case]:
    def case(name: str, ranks: int, bound: Bound, **layout: object) -> Case:
        parallel = ParallelConfig(**layout)  # type: ignore[arg-type]
        return Case(name, ranks, parallel, accumulation=2, bound=bound, compares_weights=bound == SUMS)

    bf16, pure = Precision.bf16, Precision.bf16_states
    return [
        *(case(f"optimizer on the CPU, ZeRO {n}", 2, SUMS, zero_stage=n, offload_optimizer=True) for n in (1, 2, 3)),
        case("hpZ 2 of 4 ranks", 4, SUMS, zero_stage=3, hpz_size=2),
        *(case(f"bf16, ZeRO {n}, 2 ranks", 2, BF16, precision=bf16, zero_stage=n) for n in (1, 2, 3)),
        case("bf16, optimizer on the CPU", 2, BF16, precision=bf16, zero_stage=2, offload_optimizer=True),
        case("bf16, DP 2 x TP 2, ZeRO 3", 4, BF16, precision=bf16, zero_stage=3, tp_size=2),
        case("bf16, SP 2 x TP 2", 4, BF16, precision=bf16, sp_size=2, tp_size=2),
        *(case(f"bf16 states, ZeRO {n}, 2 ranks", 2, BF16_STATES, precision=pure, zero_stage=n) for n in (1, 2, 3)),
    ]


def references() -> list[Case]:
    """Run by torch alone, and named by `against`, with the rows and the family of the case that asks."""
    return [
        Case("z-loss", loss=LossConfig(1e-2)),
        Case("documents apart", rows=Rows.apart),
        Case("GPT-2, documents apart", rows=Rows.apart, family=Family.gpt2),
    ]


def reference_of(case: Case) -> Case:
    """The case that torch alone runs for this one."""
    if case.against != PLAIN:
        return next(other for other in references() if other.name == case.against)
    return Case(PLAIN, rows=case.rows, family=case.family)

"""A training configuration of ours as the job to predict: what DeepSpeed and torch make of our settings."""

from launch.performance.layout import Job, Layout
from launch.performance.stacks import Stack
from model.arithmetic import has_mask
from train.batch import BatchPlan
from train.config import TrainConfig
from train.optimizer_config import OptimizerKind
from train.parallel_config import AttentionKernel, Compile, Precision


def job_of(config: TrainConfig, batch: BatchPlan) -> Job:
    parallel = config.parallel
    layout = Layout(
        model=config.model,
        seq_len=batch.seq_len,
        micro_batch=batch.micro_batch_size,
        accumulation=batch.gradient_accumulation_steps,
        dp=batch.dp_size,
        tp=parallel.tp_size,
        cp=parallel.sp_size,
        all_to_all=True,
        zero=parallel.zero_stage,
        hpz=parallel.hpz_size or 1,
        precision="fp32" if parallel.precision == Precision.fp32 else "bf16",
        recompute=parallel.activation_checkpointing.value,
        sequence_parallel=parallel.sequence_parallel_norms,
    )
    return Job(layout, _stack(config))


def _stack(config: TrainConfig) -> Stack:
    """DeepSpeed hides no reduction below ZeRO 3 (`overlap_comm` is off there). At ZeRO 1 with fp32 sums it reduces them
    in bf16, but gives every rank all of them: as many bytes as if each got its share in fp32. At the higher stages it
    goes by the precision of the weights."""
    parallel = config.parallel
    exact = parallel.precision == Precision.fp32
    return Stack(
        "Crisol",
        attention=_attention(config),
        fused=parallel.compile == Compile.inductor,
        overlaps_reduction=False,
        selective="elementwise",
        gradient_bytes=4 if exact or (parallel.precision == Precision.bf16 and parallel.zero_stage == 1) else 2,
        weight_bytes=4 if exact else 2,
        stream_bytes=4 if exact else 2,
        summing_bytes={Precision.fp32: 12, Precision.bf16: 10, Precision.bf16_states: 6}[parallel.precision],
        orthogonalises=config.optimizer.kind == OptimizerKind.muon,
    )


def _attention(config: TrainConfig) -> str:
    """torch takes FlashAttention-2 where it may choose, and no such kernel for masks."""
    kernel = config.parallel.attention_kernel
    if kernel == AttentionKernel.math or config.model.attention_softcap is not None:
        return "unfused"
    if has_mask(config.model, config.data.seq_len, config.data.mask_documents):
        return "masked"
    match kernel:
        case AttentionKernel.cudnn:
            return "flash3"
        case AttentionKernel.efficient:
            return "triton"
        case _:
            return "flash2"

"""Our configuration → DeepSpeed's dictionary, every key of it chosen here.

DeepSpeed ignores misspelled keys, clips at 1.0 unasked, and takes a smaller number of ranks for a larger one where it
likes: what comes of the dictionary is compared with what was asked in `train/engine/in_force.py`.
"""

from typing import Any

from train.batch import BatchPlan
from train.optimizer_config import OptimizerConfig, OptimizerKind
from train.parallel_config import ParallelConfig, Precision


def deepspeed_settings(plan: BatchPlan, optimizer: OptimizerConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` and `deepspeed.zero.Init` get."""
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_clipping": optimizer.max_grad_norm,
        "steps_per_print": 2**31,
        "zero_optimization": _zero(parallel),
        **_offload_needs(parallel),
        **_muon_needs(optimizer),
        **_precision(parallel),
    }


def _zero(parallel: ParallelConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "reduce_bucket_size": parallel.bucket_elements,
        "allgather_bucket_size": parallel.bucket_elements,
    }
    if parallel.hpz_size is not None:
        zero["zero_hpz_partition_size"] = parallel.hpz_size
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return zero


def _offload_needs(parallel: ParallelConfig) -> dict[str, Any]:
    """Without this key DeepSpeed insists on its own CPU Adam, which a compiler has to build first."""
    return {"zero_force_ds_cpu_optimizer": False} if parallel.offload_optimizer else {}


def _muon_needs(optimizer: OptimizerConfig) -> dict[str, Any]:
    """Without this key DeepSpeed takes no optimizer that it does not know, and ours is one."""
    return {"zero_allow_untested_optimizer": True} if optimizer.kind == OptimizerKind.muon else {}


def _precision(parallel: ParallelConfig) -> dict[str, Any]:
    match parallel.precision:
        case Precision.fp32:
            return {"bf16": {"enabled": False}}
        case Precision.bf16:
            # Gradients summed in fp32: more exact and half the host time of DeepSpeed's default path.
            return {"bf16": _BF16, "data_types": {"grad_accum_dtype": "fp32"}}
        case Precision.bf16_states:
            states = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
            return {"bf16": {**_BF16, **states}, "data_types": {"grad_accum_dtype": "bf16"}}


_BF16 = {"enabled": True, "check_grad_overflow": True}
"""Without the check, ZeRO 2, and ZeRO 1 with bf16 states, apply a step whose gradients are NaN."""

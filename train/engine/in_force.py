"""What the configuration asks for beside what is in force: a list of rows, to be printed and to be refused.

Asked is read from our configuration; in force from the objects that DeepSpeed made of it (tensors and optimizers,
rather than the dictionary it was given, wherever there is one). Whoever switches on more (a kernel, compilation) adds
rows of its own to the list.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.init import is_hidden_matrix
from train.batch import BatchPlan
from train.engine.build import logical_name
from train.engine.state import TrainingState, flats_by_group, parameters_by_flat, true_shape
from train.errors import EngineError
from train.optimizer_config import OptimizerConfig, OptimizerKind
from train.parallel_config import ParallelConfig, Precision


@dataclass(frozen=True)
class Row:
    """One line of the effective run."""

    what: str
    asked: Any
    in_force: Any

    @property
    def differs(self) -> bool:
        return self.asked != self.in_force


def refuse_differences(rows: list[Row]) -> None:
    """Raises EngineError that names every row in which something else is in force than was asked."""
    if different := [f"{row.what}: asked {row.asked}, in force {row.in_force}" for row in rows if row.differs]:
        raise EngineError("DeepSpeed does not do what the configuration asks:\n  " + "\n  ".join(different))


def render(rows: list[Row]) -> str:
    """The rows as the table that a person reads; what differs is marked."""
    width = max(len(row.what) for row in rows)
    return "\n".join(
        f"  {row.what:<{width}}  {row.asked}" + (f"  BUT IN FORCE: {row.in_force}" if row.differs else "")
        for row in rows
    )


def effective_rows(
    engine: Any,
    state: TrainingState,
    plan: BatchPlan,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    *,
    data_ranks: int,
    width_ratio: float,
    device: str,
) -> list[Row]:
    """Everything that DeepSpeed was asked to do. A collective (parameters are counted over the data-parallel ranks)."""
    return [
        *_zero_rows(engine, parallel),
        *_batch_rows(engine, plan, optimizer, data_ranks),
        *_dtype_rows(engine, state, parallel),
        *_optimizer_rows(engine, state, optimizer, parallel, width_ratio, device),
    ]


def _zero_rows(engine: Any, parallel: ParallelConfig) -> list[Row]:
    from deepspeed.utils import groups

    optimizer = engine.optimizer
    hpz_group: Any = groups._get_zero_param_intra_parallel_group()
    hpz = 1 if hpz_group is None else torch.distributed.get_world_size(hpz_group)
    return [
        Row("ZeRO stage", parallel.zero_stage, _stage(optimizer)),
        Row("ranks with a second copy of the weights (hpZ)", parallel.hpz_size or 1, hpz),
        Row("hpZ inside the optimizer", parallel.hpz_size or 1, getattr(optimizer, "zero_hpz_partition_size", 1)),
        Row("optimizer offloaded to the CPU", parallel.offload_optimizer, _offloads(optimizer)),
    ]


def _batch_rows(engine: Any, plan: BatchPlan, optimizer: OptimizerConfig, data_ranks: int) -> list[Row]:
    rows_per_step = plan.micro_batch_size * plan.gradient_accumulation_steps * data_ranks
    return [
        Row("micro-batch size", plan.micro_batch_size, engine.train_micro_batch_size_per_gpu()),
        Row("gradient accumulation steps", plan.gradient_accumulation_steps, engine.gradient_accumulation_steps()),
        Row("rows in all forwards of a step", rows_per_step, engine.train_batch_size()),
        Row("clipping", optimizer.max_grad_norm, engine.gradient_clipping()),
        Row("clipping inside the optimizer", optimizer.max_grad_norm, engine.optimizer.clip_grad),
    ]


def _dtype_rows(engine: Any, state: TrainingState, parallel: ParallelConfig) -> list[Row]:
    low, high = {
        Precision.fp32: (torch.float32, torch.float32),
        Precision.bf16: (torch.bfloat16, torch.float32),
        Precision.bf16_states: (torch.bfloat16, torch.bfloat16),
    }[parallel.precision]
    weights = {getattr(parameter, "ds_tensor", parameter).dtype for parameter in engine.module.parameters()}
    kinds: dict[str, set[torch.dtype]] = {}
    for flat in state.flats:
        for kind in state.kinds(flat):
            kinds.setdefault(kind, set()).add(state.tensor(kind, flat).dtype)
    return [
        Row("dtype of forward weights", _names({low}), _names(weights)),
        *(Row(f"dtype of {kind}", _names({high}), _names(dtypes)) for kind, dtypes in kinds.items()),
        Row("dtype of gradient sums", _names({high}), _names(_gradient_sums(engine.optimizer))),
    ]


def _optimizer_rows(
    engine: Any,
    state: TrainingState,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    width_ratio: float,
    device: str,
) -> list[Row]:
    inner = engine.optimizer.optimizer
    where = torch.device("cpu" if parallel.offload_optimizer else device).type
    devices = {state.tensor(kind, flat).device.type for flat in state.flats for kind in state.kinds(flat)}
    hyper = {(group["betas"], group["eps"]) for group in inner.param_groups}
    return [
        Row("optimizer", _OPTIMIZERS[optimizer.kind], type(inner).__name__),
        Row("updated by Muon", *_muon_matrices(engine, optimizer)),
        Row("Muon's momentum and iterations", *_muon_settings(inner, optimizer)),
        Row("betas, eps", {((optimizer.beta1, optimizer.beta2), optimizer.eps / width_ratio)}, hyper),
        Row("device of masters and moments", {where}, devices),
        Row("groups", _groups_asked(engine.module, optimizer, width_ratio), _groups_in_force(engine.optimizer)),
        Row("numbers with a master", *_covered(engine, state)),
    ]


_OPTIMIZERS = {OptimizerKind.adamw: "AdamW", OptimizerKind.muon: "MuonAdamW"}


def _muon_matrices(engine: Any, config: OptimizerConfig) -> tuple[str, str]:
    """(asked, in force): the matrices inside blocks, and the parameters of groups of that kind."""
    named = [(logical_name(name), parameter) for name, parameter in engine.module.named_parameters()]
    asked = [p for name, p in named if config.kind == OptimizerKind.muon and is_hidden_matrix(name)]
    optimizer = engine.optimizer
    groups = zip(flats_by_group(optimizer), parameters_by_flat(optimizer), strict=True)
    used = [p for (group, _), members in groups if group.get("kind") == OptimizerKind.muon for p in members]
    return _tensors(asked), _tensors(used)


def _muon_settings(inner: Any, config: OptimizerConfig) -> tuple[set, set]:
    asked = {(config.muon_momentum, config.ns_steps)} if config.kind == OptimizerKind.muon else set()
    groups = [group for group in inner.param_groups if group.get("kind") == OptimizerKind.muon]
    return asked, {(group["momentum"], group["ns_steps"]) for group in groups}


def _stage(optimizer: Any) -> int:
    match type(optimizer).__name__:
        case "DeepSpeedZeroOptimizer":
            return 2 if optimizer.partition_gradients else 1
        case "DeepSpeedZeroOptimizer_Stage3":
            return 3
        case _:
            return 1


def _offloads(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False))


def _gradient_sums(optimizer: Any) -> set[torch.dtype]:
    """Of the buffers in which gradients are added up over micro-batches."""
    match type(optimizer).__name__:
        case "BF16_Optimizer":
            return {flat.dtype for flat in optimizer.fp32_groups_gradients_flat}
        case "DeepSpeedZeroOptimizer_Stage3":
            return {optimizer.grad_partitions_flat_buffer.dtype}
        case _:  # made anew for each step
            return {optimizer.gradient_accumulation_dtype}


def _groups_asked(module: nn.Module, config: OptimizerConfig, width_ratio: float) -> dict[str, str]:
    """Matrices decay, everything else does not; under muP hidden matrices learn slower and decay as fast."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        ratio = width_ratio if is_hidden_matrix(logical_name(name)) else 1.0
        decay = config.weight_decay * ratio if len(true_shape(parameter)) >= 2 else 0.0
        found.setdefault((decay, 1 / ratio), []).append(parameter)
    return _census(found)


def _groups_in_force(optimizer: Any) -> dict[str, str]:
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for (group, _), parameters in zip(flats_by_group(optimizer), parameters_by_flat(optimizer), strict=True):
        found.setdefault((group["weight_decay"], group["lr_scale"]), []).extend(parameters)
    return _census(found)


def _census(found: dict[tuple[float, float], list[nn.Parameter]]) -> dict[str, str]:
    return {
        f"weight decay {decay:.4g}, learning rate x {scale:.4g}": _tensors(parameters)
        for (decay, scale), parameters in sorted(found.items())
    }


def _tensors(parameters: list[nn.Parameter]) -> str:
    return f"{len(parameters)} tensors, {sum(true_shape(p).numel() for p in parameters):,} numbers"


def _covered(engine: Any, state: TrainingState) -> tuple[int, int]:
    """(numbers in this rank's model, those that the pieces of its data-parallel ranks hold)."""
    held = torch.tensor(sum(p.fragment.stop - p.fragment.start for p in state.pieces), device=engine.device)
    torch.distributed.all_reduce(held, group=engine.seq_data_parallel_group)
    return sum(true_shape(parameter).numel() for parameter in engine.module.parameters()), int(held)


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))

"""A configuration and a rank grid → the engine that trains: every part put on in its order.

Model on the meta device → tensor parallelism → sequence parallelism → kernel, recomputation, compilation → objective →
first weights, DeepSpeed (`train/engine/`). `effective_run` says afterwards what of it is in force.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.init import initial_value
from model.transformer import Transformer
from train import execution, sequence_parallel, tensor_parallel
from train.batch import BatchPlan
from train.config import TrainConfig
from train.engine.core import Engine, start
from train.engine.in_force import Row, refuse_differences, render
from train.engine.library import join_ranks
from train.mesh import Mesh
from train.objective import Objective
from train.parallel import RankGrid
from train.parallel_config import AttentionKernel, Compile, ParallelConfig, Precision

Initial = Callable[[str, torch.Size], Tensor]


def assemble(
    config: TrainConfig, batch: BatchPlan, grid: RankGrid, device: str, initial: Initial | None = None
) -> Engine:
    """A collective. Raises EngineError or LayoutError if the parts do not fit together.

    initial: gives the whole first value of each parameter; None: drawn by the model's recipe from run.seed.
    """
    join_ranks(device)
    mesh = Mesh(grid, config.parallel.sequence_parallel_norms)
    return start(
        lambda: _objective(config, mesh),
        initial or partial(initial_value, config=config.model, seed=config.run.seed),
        plan=batch,
        optimizer=config.optimizer,
        parallel=config.parallel,
        loss=config.loss,
        grid=grid,
        device=device,
        mesh=mesh,
        width_ratio=config.model.width_ratio,
        ready=lambda module: tensor_parallel.seal(_model(module), mesh),
    )


def _objective(config: TrainConfig, mesh: Mesh) -> Objective:
    model = Transformer(config.model)
    tensor_parallel.apply(model, mesh)
    sequence_parallel.apply(model, mesh)
    execution.apply(model, config.parallel)
    objective = Objective(model, config.loss.chunk_tokens)
    objective.own_part = mesh.own_part
    if mesh.tp_size > 1:
        objective.token_losses = partial(tensor_parallel.token_losses, mesh=mesh)
    return objective


def _model(module: nn.Module) -> Transformer:
    assert isinstance(module, Objective)
    return module.model


def effective_run(config: TrainConfig, engine: Engine, grid: RankGrid) -> str:
    """What is in force after the first step, as a table. A collective. Raises EngineError if it is not what was
    asked."""
    rows = [*engine.effective_run(), *_execution_rows(config, engine, grid)]
    refuse_differences(rows)
    return render(rows)


def _execution_rows(config: TrainConfig, engine: Engine, grid: RankGrid) -> list[Row]:
    model, parallel = _model(engine.module), config.parallel
    kernel = execution.attention_kernel_in_force(
        model,
        (config.batch.micro_batch_size, config.data.seq_len),
        grid,
        masked=config.data.mask_documents,
        dtype=torch.float32 if parallel.precision == Precision.fp32 else torch.bfloat16,
        device=engine.device,
    )
    is_asked = (
        parallel.attention_kernel == AttentionKernel.auto or execution.KERNEL_NAMES[parallel.attention_kernel] in kernel
    )
    return [
        Row("tensor-parallel ranks of a matrix", {parallel.tp_size}, _tensor_parallel_ranks(model)),
        Row(
            "norms cut over tensor-parallel ranks",
            {parallel.sequence_parallel_norms} if parallel.tp_size > 1 else set(),
            tensor_parallel.norms_in_force(model),
        ),
        Row("attention stays inside documents", config.data.mask_documents, engine.saw_segments),
        Row("sequence-parallel ranks of a row", {parallel.sp_size}, _sequence_parallel_ranks(model)),
        Row("activation checkpointing", {parallel.activation_checkpointing}, execution.policies_in_force(model)),
        Row("blocks compiled", _compilation(parallel, model), execution.compilation_in_force(model)),
        Row("attention kernel", kernel if is_asked else parallel.attention_kernel, kernel),
        Row("positions with logits at a time", config.loss.chunk_tokens or "all", engine.module.chunk_tokens or "all"),
    ]


def _tensor_parallel_ranks(model: Transformer) -> set[int]:
    """In how many slices the matrices of the blocks are cut, by their marks."""
    cut = [p for p in model.blocks.parameters() if len(getattr(p, "ds_shape", p.shape)) >= 2]
    return {_slices(parameter) for parameter in cut}


def _slices(parameter: Any) -> int:
    dim = getattr(parameter, "tp_dim", None)
    return 1 if dim is None else parameter.tp_whole_shape[dim] // (parameter.tp_stop - parameter.tp_start)


def _sequence_parallel_ranks(model: Transformer) -> set[int]:
    cores = [block.attention.core for block in model.layers]
    return {core.mesh.sp_size if isinstance(core, sequence_parallel.UlyssesCore) else 1 for core in cores}


def _compilation(parallel: ParallelConfig, model: Transformer) -> str:
    return "none" if parallel.compile == Compile.off else f"{len(model.blocks)}, without a break"

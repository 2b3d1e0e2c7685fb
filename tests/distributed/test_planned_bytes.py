"""The plan's bytes against what ranks really hold: tensors of DeepSpeed's partitions, and what autograd saves."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from conf.app import CONF_FOLDER
from conf.check import read_config
from model.config import ModelConfig
from tests.distributed.ranks import run_ranks
from train.tensor_parallel import Cut, cuts_of, table

GELU = {"norm": "layernorm", "mlp": "gelu_tanh", "bias": "all", "positions": "learned", "max_positions": 64}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *product(
        [
            {},
            GELU,
            {"residual": "parallel", "norm": "layernorm"},
            {"residual": "post_norm"},
            {"qk_norm": True},
            {"positions": "none"},
            {"sliding_window": 16},
            {"n_kv_heads": 8},
        ],
        [{}, {"masked": True, "dtype": "bfloat16"}],
    ),
    ({}, {"norms": False}),
    (GELU, {"norms": False}),
    ({}, {"kernel": "math"}),
    ({"qk_norm": True}, {"kernel": "math", "masked": True, "dtype": "bfloat16"}),
]
"""(settings of the model, how it is run)"""


def saved(tp_size: int, sp_size: int) -> list[tuple[Any, int, int]]:
    """(case, bytes that autograd saves in a forward and its result, bytes as planned) of each case, on this rank."""
    return [(case, *_saved(tp_size, sp_size, *case)) for case in CASES]


def _saved(
    tp_size: int,
    sp_size: int,
    settings: dict[str, Any],
    run: dict[str, Any],
) -> tuple[int, int]:
    import torch

    from model.arithmetic import activation_bytes
    from tests.distributed import parallel_model
    from train.plan import own_network

    rows, seq_len, norms = 2, 64, run.get("norms", True)
    dtype, masked, math = getattr(torch, run.get("dtype", "float32")), run.get("masked", False), "kernel" in run
    mesh = parallel_model.make_mesh(tp_size, sp_size, norms)
    config = parallel_model.make_config(**settings)
    values = {name: p.detach() for name, p in parallel_model.whole_model(config).named_parameters()}
    model = parallel_model.parallel_model(config, mesh, values).to(dtype)
    tokens = torch.zeros(rows, seq_len, dtype=torch.int64)
    segments = torch.zeros(rows, seq_len, dtype=torch.int64) if masked else None
    expected = activation_bytes(
        own_network(config, tp_size),
        rows,
        seq_len,
        dtype.itemsize,
        masked=masked,
        by_hand=math,
        norm_shards=tp_size if norms else 1,
        sp_size=sp_size,
    )
    return _storages(model, lambda: model.hidden(tokens, segments), math=math), expected


def _storages(model: Any, forward: Any, *, math: bool) -> int:
    """Bytes of the storages that hold floats and are saved, each once; weights are none of them."""
    from contextlib import nullcontext

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other gets its address
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, sdpa_kernel(SDPBackend.MATH) if math else nullcontext():
        keep(forward())
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


@pytest.mark.parametrize(("tp_size", "sp_size"), [(2, 1), (1, 2), (2, 2)])
def test_activations_of_a_rank_are_what_autograd_saves(tp_size: int, sp_size: int):
    """To the byte, under tensor parallelism, with and without sequence-parallel norms, and under Ulysses."""
    for found in run_ranks(saved, tp_size * sp_size, tp_size, sp_size):
        assert [(case, held) for case, held, _ in found] == [(case, planned) for case, _, planned in found]


LAYOUTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(({"zero_stage": stage, "precision": precision}, {}) for stage, precision in product(
        (1, 2, 3), ("fp32", "bf16", "bf16_states")
    )),
    *(({"zero_stage": stage, "precision": "bf16"}, {"optimizer": "muon"}) for stage in (1, 2, 3)),
    ({"zero_stage": 2, "precision": "bf16", "offload_optimizer": True}, {}),
    ({"zero_stage": 3, "precision": "bf16", "offload_optimizer": True}, {}),
]  # fmt: skip
"""(settings of ParallelConfig, of the rest)"""
N_PARAMETERS, LARGEST = 2 * 9 + 3, 132 * 35
HPZ = [({"zero_stage": 3, "precision": "bf16", "hpz_size": 2}, {})]
TENSOR_PARALLEL = [({"zero_stage": stage, "precision": "bf16", "tp_size": 2}, {}) for stage in (1, 2, 3)]


def states(layouts: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[tuple[Any, dict[str, int], dict[str, int]]]:
    """(layout, bytes of each part in this rank's tensors after the first backward of two, bytes as planned)."""
    return [((parallel, rest), *_states(parallel, **rest)) for parallel, rest in layouts]


def _states(parallel: dict[str, Any], optimizer: str = "adamw") -> tuple[dict[str, int], dict[str, int]]:
    from functools import partial

    from model.init import initial_value
    from model.transformer import Transformer
    from tests.distributed.engines import micro_batches
    from tests.distributed.parallel_model import make_config, make_mesh, make_objective
    from train import tensor_parallel
    from train.batch import solve_batch
    from train.config import LossConfig
    from train.engine.core import start
    from train.engine.library import join_ranks
    from train.optimizer_config import OptimizerConfig, OptimizerKind
    from train.parallel_config import ParallelConfig, Precision

    join_ranks("cpu")
    config = make_config(vocab_size=132, d_model=35, d_ff=50)  # odd, so that shares are padded
    chosen: dict[str, Any] = parallel | {"precision": Precision(parallel["precision"])}
    settings = ParallelConfig(**chosen)
    mesh = make_mesh(settings.tp_size, 1)
    grid = mesh.grid
    batch = solve_batch(
        global_batch_size=8, micro_batch_size=8 // grid.dp_size // 2, dp_size=grid.dp_size, seq_len=32,
        total_tokens=256,
    )  # fmt: skip

    models: list[Transformer] = []

    def build() -> Any:
        model = Transformer(config)
        tensor_parallel.apply(model, mesh)
        models.append(model)
        return make_objective(model, mesh)

    engine = start(
        build, partial(initial_value, config=config, seed=0), plan=batch,
        optimizer=OptimizerConfig(kind=OptimizerKind(optimizer)), parallel=settings, loss=LossConfig(), grid=grid,
        device="cpu", mesh=mesh, ready=lambda _: tensor_parallel.seal(models[0], mesh),
    )  # fmt: skip
    seen: list[dict[str, int]] = []
    engine.progress = lambda: seen.append(_held(engine))  # before and after each of two micro-batches
    engine.train_step(micro_batches(batch, grid, 0), 1e-2)
    return seen[1], _planned(config, settings, optimizer, batch)


def _held(engine: Any) -> dict[str, int]:
    """Bytes of this rank's tensors, each storage once."""
    import torch

    optimizer, state = engine._deepspeed.optimizer, engine._state
    parameters = [parameter for _, parameter in engine._named]
    moments = [value for flat in state.flats for value in state._inner.state[flat].values()]
    weights = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]
    second = [parameter.ds_secondary_tensor for parameter in parameters if hasattr(parameter, "ds_secondary_tensor")]
    match type(optimizer).__name__:
        case "BF16_Optimizer":
            sums = optimizer.fp32_groups_gradients_flat
        case "DeepSpeedZeroOptimizer":
            shares = (*optimizer.averaged_gradients.values(), *optimizer.all_grad_tensors.values())  # none at ZeRO 1
            sums = [tensor for share in shares for tensor in share or []]
        case _:
            sums = [optimizer.grad_partitions_flat_buffer]
    gradients = [parameter.grad for parameter in parameters]
    return {
        "weights": _bytes(weights),
        "second_copy": _bytes(tensor for tensor in second if tensor is not None),
        "gradients": _bytes(tensor for tensor in (*sums, *gradients) if tensor is not None),
        "optimizer": _bytes([*state.flats, *(m for m in moments if torch.is_tensor(m) and m.dim())]),
    }


def _bytes(tensors: Iterator[Any] | list[Any]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _planned(config: Any, parallel: Any, optimizer: str, batch: Any) -> dict[str, int]:
    from dataclasses import asdict, replace

    from conf.compose import compose
    from train.__main__ import APP
    from train.plan import Machine, make_plan

    run = compose(APP, ["run.name=x", f"optimizer={optimizer}", "data.folder=none"])
    run = replace(run, model=config, parallel=replace(parallel, offload_optimizer=False))
    parts = asdict(make_plan(run, batch, Machine("CPU", 1, 1.0, "", None), None).memory)
    return {name: parts[name] for name in ("weights", "second_copy", "gradients", "optimizer")}


@pytest.mark.parametrize(
    ("n_ranks", "layouts"), [(2, LAYOUTS), (4, HPZ), (4, TENSOR_PARALLEL)], ids=["2", "hpZ", "tensor parallel"]
)
def test_states_of_a_rank_are_what_is_planned(n_ranks: int, layouts: list[tuple[dict[str, Any], dict[str, Any]]]):
    """To the byte, but for what DeepSpeed fills up: at ZeRO 3 each parameter to a multiple of the ranks, so a number on
    each; else each group of parameters to twice that. At ZeRO 2 that sums in the weights' precision, gradients on the
    border of two shares are kept whole."""
    for found in run_ranks(states, n_ranks, layouts):
        for layout, held, planned in found:
            widths = {"weights": 4, "second_copy": 4, "gradients": 6, "optimizer": 12}
            at_border = layout[0]["zero_stage"] == 2 and layout[0]["precision"] != "bf16"
            for part, n_bytes in held.items():
                more = N_PARAMETERS * widths[part] + (4 * LARGEST * at_border if part == "gradients" else 0)
                assert planned[part] <= n_bytes <= planned[part] + more, (layout, part, n_bytes, planned[part])


PRESETS = sorted(path.stem for path in (CONF_FOLDER / "model").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_of_every_preset_are_those_of_its_modules(preset: str):
    """Whole, and on a rank of each tensor-parallel size that can cut it."""
    import torch

    from model.arithmetic import count_parameters
    from model.transformer import Transformer
    from train.layout_problems import cutting_problems

    config = read_config(ModelConfig, CONF_FOLDER / "model" / f"{preset}.yaml")
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Transformer(config).named_parameters()}
    counts = count_parameters(config)
    assert counts.n_params == sum(shape.numel() for shape in shapes.values())
    cuts = cuts_of(shapes, table(config))
    whole = sum(shape.numel() for name, shape in shapes.items() if cuts[name] in (Cut.replicated, Cut.per_head))
    for tp_size in (2, 4, 8):
        if not cutting_problems(config, 1024, tp_size=tp_size, sp_size=1, sequence_parallel_norms=True):
            assert counts.of_rank(tp_size) == whole + (counts.n_params - whole) // tp_size

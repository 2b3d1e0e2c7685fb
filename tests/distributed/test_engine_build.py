"""The model's first weights on the device: what a rank holds meanwhile, and that nothing of the module is lost."""

from typing import Any

import pytest

from tests.distributed.engines import assembled, kept, mesh_of, plan_of_step, reader, sent
from tests.distributed.ranks import run_ranks


def started(build, initial=None, **parallel):
    """An engine around any module, with first values that tell where they belong."""
    from train.config import LossConfig
    from train.engine.core import start
    from train.optimizer_config import OptimizerConfig
    from train.parallel_config import ParallelConfig

    grid, plan = plan_of_step()
    mesh = parallel.pop("mesh", None) or mesh_of(grid)
    options = {
        "optimizer": OptimizerConfig(),
        "parallel": ParallelConfig(**parallel),
        "loss": LossConfig(),
        "mesh": mesh,
    }
    return start(build, initial or numbered, plan=plan, grid=grid, device="cpu", **options)


def numbered(name: str, shape):
    """0, 1, 2, … plus 1000 times the length of the name: exact in fp32, another for each place and name used here."""
    import torch

    return torch.arange(shape.numel(), dtype=torch.float32).reshape(shape) + 1000 * len(name)


N_LAYERS, LAYER_BYTES = 12, 4 * 64**2


class BuiltError(Exception):
    """The moment at which the first weights are complete."""


def most_bytes_while_built(stage: int, whole_first: bool = False) -> int:
    """Bytes of all tensors of this process, at the worst moment at which a weight is drawn or all are complete."""
    import gc

    import torch
    from torch import nn

    from train.engine import core

    alive = []

    def look(*arguments):
        gc.collect()  # what waits in a cycle is freed sooner or later, which is not to decide
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and not thing.is_meta]
        alive.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
        return numbered(*arguments) if arguments else None

    def stop(*arguments, **options):
        look()
        raise BuiltError

    core.adamw = stop
    if whole_first:
        core.zero_3 = lambda *arguments: None
    gc.freeze()  # from here on only what is new
    with pytest.raises(BuiltError):
        started(
            lambda: nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(N_LAYERS))), look, zero_stage=stage
        )
    assert len(alive) == N_LAYERS + 1
    return max(alive)


@pytest.mark.parametrize(("stage", "n_ranks", "share"), [(1, 1, 1), (2, 2, 1), (3, 2, 1 / 2)])
def test_between_two_weights_a_rank_holds_its_share_of_the_model_and_no_more(stage: int, n_ranks: int, share: float):
    """Half a weight of room for what is not the model: counters, buffers of a few numbers."""
    bound = (share * N_LAYERS + 1 / 2) * LAYER_BYTES
    assert max(run_ranks(most_bytes_while_built, n_ranks, stage)) <= bound
    if stage == 3:
        assert min(run_ranks(most_bytes_while_built, n_ranks, stage, True)) > bound  # the measure would see it


def cut(whole: tuple[int, ...], dim: int, rank: int) -> Any:
    """A parameter that carries what tensor parallelism notes on it, by a mesh of two ranks."""
    import torch

    half = whole[dim] // 2
    shape = [half if number == dim else length for number, length in enumerate(whole)]
    parameter: Any = torch.nn.Parameter(torch.empty(shape))
    parameter.tp_dim, parameter.tp_whole_shape = dim, whole
    parameter.tp_start, parameter.tp_stop = rank * half, rank * half + half
    parameter.tensor_model_parallel = True
    return parameter


class TwoTensorRanks:
    """The least that the engine and DeepSpeed ask of a mesh: both ranks tensor-parallel, no two data-parallel."""

    def __init__(self):
        import torch

        self.tp_rank, self.sp_rank, self.dp_rank = torch.distributed.get_rank(), 0, 0
        singles = [torch.distributed.new_group([rank]) for rank in range(2)]
        self.tensor, self.data = torch.distributed.new_group([0, 1]), singles[self.tp_rank]

    def get_data_parallel_rank(self):
        return 0

    def get_data_parallel_world_size(self):
        return 1

    def get_data_parallel_group(self):
        return self.data

    def get_tensor_model_parallel_rank(self):
        return self.tp_rank

    def get_tensor_model_parallel_world_size(self):
        return 2

    def get_tensor_model_parallel_group(self):
        return self.tensor

    get_model_parallel_rank = get_tensor_model_parallel_rank
    get_model_parallel_world_size = get_tensor_model_parallel_world_size
    get_model_parallel_group = get_tensor_model_parallel_group


def cut_in_two(stage: int):
    """(what this rank owns at the start, its own share after other numbers were loaded, names it was asked for)."""
    import torch
    from torch import nn

    from train.engine.library import join_ranks
    from train.parallel import prepare_environment, rank_grid

    prepare_environment("cpu", rank_grid())
    join_ranks("cpu")
    mesh = TwoTensorRanks()

    def build():
        module: Any = nn.Module()
        module.rows, module.columns = cut((6, 5), 0, mesh.tp_rank), cut((5, 6), 1, mesh.tp_rank)
        module.whole = nn.Parameter(torch.empty(7))
        return module

    engine = one_row_engine(build, mesh, stage)
    first, asked = sent(kept(engine)), []

    def negative(kind, fragment):
        asked.append((kind, fragment.name))
        wholes = {(kind, name): -numbered(name, torch.Size(shape)).numpy() for name, shape in SHAPES.items()}
        return reader(wholes)(kind, fragment)

    engine.load(negative, 1)
    return first, sent(kept(engine)), sorted(asked)


def one_row_engine(build, mesh, stage: int):
    from train.batch import solve_batch
    from train.config import LossConfig
    from train.engine.core import start
    from train.optimizer_config import OptimizerConfig
    from train.parallel import rank_grid
    from train.parallel_config import ParallelConfig

    mesh = mesh or mesh_of(rank_grid())
    plan = solve_batch(global_batch_size=1, micro_batch_size=1, dp_size=1, seq_len=1, total_tokens=1)
    parallel = ParallelConfig(zero_stage=stage)
    options = {"optimizer": OptimizerConfig(), "parallel": parallel, "loss": LossConfig(), "mesh": mesh}
    return start(build, numbered, plan=plan, grid=rank_grid(), device="cpu", **options)


SHAPES = {"rows": (6, 5), "columns": (5, 6), "whole": (7,)}


@pytest.mark.parametrize("stage", [1, 3])
def test_slices_are_cut_from_whole_values_and_what_ranks_share_belongs_to_the_first(stage: int):
    import torch

    (first, then, asked), (other, other_then, other_asked) = run_ranks(cut_in_two, 2, stage)
    for sign, ranks in ((1, (first, other)), (-1, (then, other_then))):
        for (kind, name), whole in assembled(ranks).items():
            expected = sign * numbered(name, torch.Size(SHAPES[name])).numpy()
            assert bool((whole == (0 if kind != "master" and sign > 0 else expected)).all()), (kind, name)
    assert {fragment.name for _, fragment in first} == set(SHAPES)
    assert {fragment.name for _, fragment in other} == {"rows", "columns"}
    assert asked == other_asked == sorted((k, n) for k in ("master", "exp_avg", "exp_avg_sq") for n in SHAPES)


def tied_and_hooked(stage: int):
    """(names of fragments, one object for both, the attribute is there, calls of the hook) of a tied weight."""
    import torch
    from torch import nn

    calls = []

    def build():
        module: Any = nn.ModuleDict({"first": nn.Linear(4, 4, bias=False), "second": nn.Linear(4, 4, bias=False)})
        module["second"].weight = module["first"].weight
        module["first"].weight.note = "kept"
        module["first"].weight.register_hook(lambda gradient: calls.append(1))
        return module

    engine = one_row_engine(build, None, stage)
    module = engine._deepspeed.module
    first, second = module["first"].weight, module["second"].weight
    if stage < 3:
        (first * torch.ones(4)).sum().backward()
    return sorted({f.name for _, f, _ in engine.fragments()}), first is second, first.note, len(calls)


def test_a_tied_weight_stays_one_with_its_attributes_and_hooks():
    assert run_ranks(tied_and_hooked, 1, 1) == [(["first.weight"], True, "kept", 1)]
    assert run_ranks(tied_and_hooked, 1, 3)[0][:3] == (["first.weight"], True, "kept")


def refusals() -> list[str]:
    import torch
    from torch import nn

    from train.errors import EngineError

    def with_buffer():
        module = nn.Linear(4, 4)
        module.register_buffer("table", torch.zeros(4))
        return module

    def with_numbers():
        return nn.Linear(4, 4, device="cpu")

    def uneven():
        module: Any = nn.Module()
        module.rows = cut((6, 5), 0, 0)
        module.rows.tp_stop = 4
        return module

    messages = []
    for build, parallel in (
        (with_buffer, {}),
        (with_numbers, {}),
        (uneven, {}),
        (lambda: nn.Linear(4, 4), {"zero_stage": 3, "hpz_size": 2}),
    ):
        with pytest.raises(EngineError) as caught:
            started(build, **parallel)
        messages.append(str(caught.value))
    return messages


def test_what_cannot_be_built_is_refused_by_name():
    buffer, numbers, uneven, hpz = run_ranks(refusals, 1)[0]
    assert "table is a buffer" in buffer
    assert "weight was given numbers" in numbers
    assert "first value of rows has shape (4, 5), its place (3, 5)" in uneven
    assert "parallel.hpz_size=2 does not divide 1 data-parallel ranks" in hpz

"""A tiny model in an engine: what the tests of the engine have in common. Runs on ranks."""

import functools

VOCAB, SEQ_LEN, GLOBAL = 131, 32, 8


def config():
    from model.config import ModelConfig

    # sizes that do not divide by the number of ranks, so that padding and uneven shards are met
    return ModelConfig(vocab_size=VOCAB, n_layers=2, d_model=36, n_heads=6, n_kv_heads=2, d_ff=50)


def plan_of_step(accumulation: int = 1):
    """(grid, plan) of steps of GLOBAL rows on all ranks."""
    from train.batch import solve_batch
    from train.parallel import prepare_environment, rank_grid

    grid = rank_grid()
    prepare_environment("cpu", grid)
    plan = solve_batch(
        global_batch_size=GLOBAL,
        micro_batch_size=GLOBAL // grid.dp_size // accumulation,
        dp_size=grid.dp_size,
        seq_len=SEQ_LEN,
        total_tokens=1,
    )
    return grid, plan


def start_engine(plan, grid, optimizer=None, **parallel):
    """The model of `config()` with the first values of seed 0, in an engine."""
    from model.init import initial_value
    from model.transformer import Transformer
    from train.config import LossConfig
    from train.engine.core import start
    from train.objective import Objective
    from train.optimizer_config import OptimizerConfig
    from train.parallel_config import ParallelConfig

    return start(
        lambda: Objective(Transformer(config())),
        functools.partial(initial_value, config=config(), seed=0),
        plan=plan,
        optimizer=optimizer or OptimizerConfig(),
        parallel=ParallelConfig(**parallel),
        loss=LossConfig(),
        grid=grid,
        device="cpu",
        mesh=mesh_of(grid),
    )


def mesh_of(grid):
    from train.engine.library import join_ranks
    from train.mesh import Mesh

    join_ranks("cpu")
    return Mesh(grid)


def rows(step: int):
    import torch

    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, VOCAB, (GLOBAL, SEQ_LEN + 1), generator=generator)


def micro_batches(plan, grid, step: int):
    """This rank's (tokens, targets) of a step."""
    mine = rows(step)[grid.dp_rank * plan.sequences_per_rank :][: plan.sequences_per_rank]
    return [(ids[:, :-1], ids[:, 1:]) for ids in mine.split(plan.micro_batch_size)]


def kept(engine):
    """{(kind, fragment): copy of its numbers} of this rank."""
    return {(kind, fragment): view.clone() for kind, fragment, view in engine.fragments()}


def sent(tensors: dict) -> dict:
    """The same as fp32 arrays, which can go from rank to test (bf16 numbers are fp32 numbers)."""
    return {key: tensor.float().numpy() for key, tensor in tensors.items()}


def same(a, b) -> bool:
    """Equal keys, and equal numbers to the bit."""
    return a.keys() == b.keys() and all(bool((a[key] == b[key]).all()) for key in a)


def assembled(ranks) -> dict:
    """{(kind, name): whole array} from what each rank `kept` and `sent`. Fails if a number is missing or double."""
    import numpy as np

    wholes, times = {}, {}
    for (kind, fragment), numbers in (item for rank in ranks for item in rank.items()):
        key = (kind, fragment.name)
        whole = wholes.setdefault(key, np.zeros(fragment.shape, np.float32))
        count = times.setdefault(key, np.zeros(fragment.shape, np.int8))
        assert whole.shape == fragment.shape
        place = np.arange(whole.size).reshape(whole.shape)
        if fragment.tp_dim is not None:
            place = place.take(range(fragment.tp_start, fragment.tp_stop), axis=fragment.tp_dim)
        place = place.reshape(-1)[fragment.start : fragment.stop]
        whole.reshape(-1)[place] = numbers
        count.reshape(-1)[place] += 1
    assert all(bool((count == 1).all()) for count in times.values())
    return wholes


def reader(wholes):
    """The other way: what `load` asks for, cut from whole arrays."""
    import torch

    def read(kind, fragment):
        whole = torch.from_numpy(wholes[kind, fragment.name])
        if fragment.tp_dim is not None:
            whole = whole.narrow(fragment.tp_dim, fragment.tp_start, fragment.tp_stop - fragment.tp_start)
        return whole.reshape(-1)[fragment.start : fragment.stop]

    return read


def changed_settings(change) -> None:
    """From here on DeepSpeed is given a dictionary that `change` has been at."""
    from train.engine import core

    right = core.deepspeed_settings

    def wrong(*arguments):
        settings = right(*arguments)
        change(settings)
        return settings

    core.deepspeed_settings = wrong

"""Muon under DeepSpeed: whatever the layout, the same as plain torch on whole matrices; its state in and out."""

import dataclasses
import functools
import random
from typing import Any

import pytest

from tests.distributed.engines import assembled
from tests.distributed.muon_runs import CLIP, PEAK_LR, STEPS, engine_run, loaded, lr_of, plain_torch
from tests.distributed.ranks import run_ranks

SUM_OF_LR = sum(lr_of(step) for step in range(STEPS))


@functools.cache
def reference():
    return run_ranks(plain_torch, 1)[0]


@functools.cache
def run(world_size: int, zero_stage: int, accumulation: int = 1, tp_size: int = 1, **options: Any):
    """(curve, {(kind, name): whole array})."""
    function = functools.partial(engine_run, accumulation, tp_size, zero_stage=zero_stage, **options)
    ranks = run_ranks(function, world_size)
    return ranks[0][0], assembled([owned for _, owned in ranks])


def test_reference_is_clipped_by_very_different_factors():
    norms = [norm for _, norm in reference()[0]]
    assert CLIP < min(norms) < max(norms) / 2


@pytest.mark.parametrize(
    ("world_size", "zero_stage", "accumulation", "tp_size", "offload"),
    [
        (1, 1, 2, 1, False),
        (2, 1, 1, 1, False),
        (2, 2, 2, 1, False),
        (2, 3, 2, 1, False),
        (4, 1, 1, 1, False),
        (4, 3, 1, 1, False),
        (2, 1, 1, 2, False),
        (4, 2, 1, 2, False),
        (4, 3, 2, 2, False),
        (2, 3, 1, 1, True),
    ],
)
def test_fp32_equals_plain_torch_on_whole_matrices(
    world_size: int, zero_stage: int, accumulation: int, tp_size: int, offload: bool
):
    """Orthogonalisation multiplies small singular values by up to 3.4445^5 = 485, and with them the rounding of the
    gradient and of the first Newton-Schulz step, each about 2^-23 of its norm; the reference has none (fp64). With
    singular values near 1 and the factor lr 0.2 sqrt(max(rows, columns)) that is the uncertainty of one step's update
    in any entry; four times, for two roundings and for what earlier steps did to the gradient. The bound of the rest is
    test_engine's. Without clipping a weight would be off by hundreds of times the bound, without decay by ten times.
    """
    curve, state = run(world_size, zero_stage, accumulation, tp_size, offload_optimizer=offload)
    expected_curve, expected_weights = reference()
    for (loss, norm), (expected_loss, expected_norm) in zip(curve, expected_curve, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
    for name, tensor in expected_weights.items():
        is_muons = name.startswith("blocks.") and tensor.ndim == 2
        assert {kind for kind, n in state if n == name} == {"master"} | (MUON if is_muons else ADAM)
        if is_muons:
            bound = 4 * SUM_OF_LR * 0.2 * max(tensor.shape) ** 0.5 * 485 * 2**-23
        else:
            bound = 1e-3 * SUM_OF_LR + 1e-5 * float(abs(tensor).max())
        assert float(abs(state["master", name] - tensor).max()) < bound, name


MUON, ADAM = {"momentum"}, {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "bf16"), (3, "bf16"), (1, "bf16_states")])
def test_bf16_stays_near_plain_torch(zero_stage: int, precision: str):
    """bf16 keeps 8 bits of a number: losses near 5 agree to about 1e-3 of themselves over a few steps, or to 1e-2 where
    masters are bf16 too and move in steps of 1/256 of themselves."""
    curve, _ = run(2, zero_stage, precision=precision)
    expected, _ = reference()
    bound = 1e-3 if precision == "bf16" else 1e-2
    assert [loss for loss, _ in curve] == pytest.approx([loss for loss, _ in expected], rel=bound)
    assert [norm for _, norm in curve] == pytest.approx([norm for _, norm in expected], rel=20 * bound)


@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "bf16"), (3, "bf16"), (1, "bf16_states")])
def test_state_read_out_and_put_back_continues_bit_for_bit(zero_stage: int, precision: str):
    whole = run(2, zero_stage, precision=precision)
    halves = run(2, zero_stage, precision=precision, interrupted_after=2)
    assert whole[0] == halves[0]
    assert all((whole[1][key] == halves[1][key]).all() for key in whole[1])


def test_momentum_goes_from_layout_to_layout_without_losing_a_bit():
    """ZeRO 3 on four ranks, two of them tensor-parallel, then one process, then ZeRO 2 on two."""
    state = start = run(4, 3, 2, 2, offload_optimizer=False)[1]
    for world_size, zero_stage in ((1, 1), (2, 2)):
        state = assembled(run_ranks(functools.partial(loaded, state, zero_stage=zero_stage), world_size))
        assert state.keys() == start.keys()
        assert all((state[key] == start[key]).all() for key in start)


# --- without DeepSpeed: any cuts --------------------------------------------------------------------------------------

SHAPES = {
    "blocks.0.a.weight": (7, 5),
    "blocks.0.b.weight": (5, 11),
    "blocks.1.a.weight": (8, 8),
    "blocks.1.b.weight": (1, 9),
    "blocks.2.a.weight": (6, 4),
}


@pytest.mark.parametrize("seed", range(4))
def test_an_update_does_not_depend_on_how_matrices_are_cut(seed: int):
    """To the bit: momentum is elementwise, and the product of whole matrices is the same on every rank."""
    expected = assembled(run_ranks(hand_cut_run, 1, [whole_fragments()]))
    world_size = 2 + seed % 3
    held = random_cuts(random.Random(seed), world_size)
    found = assembled(run_ranks(hand_cut_run, world_size, held))
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in expected)


Cut = tuple[str, tuple[int, ...], int | None, int, int, int, int]
"""the fields of a Fragment"""


def whole_fragments() -> list[Cut]:
    return [(name, shape, None, 0, 0, 0, shape[0] * shape[1]) for name, shape in SHAPES.items()]


def random_cuts(chance: random.Random, world_size: int) -> list[list[Cut]]:
    """What each rank holds: every matrix in one or two tensor-parallel slices, each cut anywhere, in any order of
    ranks, some with none of it; one matrix is held twice, as by tensor-parallel ranks that do not cut it."""
    held: list[list[Cut]] = [[] for _ in range(world_size)]
    for name, shape in SHAPES.items():
        dim = chance.choice([None, 0, 1])
        middle = shape[dim] // 2 if dim is not None else 0
        slices = [(0, middle), (middle, shape[dim])] if dim is not None and middle else [(0, 0)]
        dim = dim if middle else None
        for start, stop in slices:
            size = shape[0] * shape[1] if dim is None else (stop - start) * shape[1 - dim]
            borders = [0, *sorted(chance.randint(0, size) for _ in range(world_size - 1)), size]
            ranks = chance.sample(range(world_size), world_size)
            for rank, first, last in zip(ranks, borders[:-1], borders[1:], strict=True):
                if first < last:
                    held[rank].append((name, shape, dim, start, stop, first, last))
    twice = next(cut for fragments in held for cut in fragments)
    held[chance.randrange(world_size)].append(twice)
    return [list(dict.fromkeys(fragments)) for fragments in held]


def hand_cut_run(held: list[list[Cut]]) -> dict:
    """What this rank owns after three steps with given gradients: two flat tensors, with gaps."""
    import torch
    import torch.distributed as dist

    from train.fragment import Fragment
    from train.muon import MuonAdamW

    rank = 0
    if len(held) > 1:
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    fragments = [Fragment(*cut) for cut in held[rank]]
    flats, pieces = laid_out(fragments)
    group = {"kind": "muon", "momentum": 0.9, "ns_steps": 5, "params": flats, "weight_decay": 0.1}
    optimizer = MuonAdamW([group], lr=PEAK_LR, matrix_dtype=torch.float32, matrix_device="cpu")
    optimizer.use_layout(flats, pieces)
    for step in range(4):
        for fragment, flat, offset in pieces:
            numbers = whole(fragment, step)
            place = slice(offset, offset + fragment.stop - fragment.start)
            if step == 0:
                flat.data[place] = numbers
                continue
            assert flat.grad is not None
            flat.grad[place] = numbers
        if step:
            optimizer.step()
    elsewhere = {cut for fragments in held[:rank] for cut in fragments}
    return {
        (kind, fragment): tensor[offset : offset + fragment.stop - fragment.start].detach().numpy()
        for fragment, flat, offset in pieces
        for kind, tensor in (("master", flat), ("momentum", optimizer.state[flat]["momentum"]))
        if dataclasses.astuple(fragment) not in elsewhere
    }


def laid_out(fragments: list[Any]) -> tuple[list[Any], list[tuple[Any, Any, int]]]:
    """Matrices a in one flat tensor, b in the other, each fragment after a gap of two."""
    import torch

    flats, pieces = [], []
    for kind in "ab":
        mine = [fragment for fragment in fragments if fragment.name.endswith(f"{kind}.weight")]
        flat = torch.nn.Parameter(torch.zeros(sum(2 + f.stop - f.start for f in mine)))
        flat.grad = torch.zeros_like(flat)
        offset = 0
        for fragment in mine:
            pieces.append((fragment, flat, offset + 2))
            offset += 2 + fragment.stop - fragment.start
        flats.append(flat)
    return flats, pieces


def whole(fragment: Any, step: int):
    """The flat numbers of a fragment, cut from the whole matrix that belongs to its name and the step."""
    import torch

    seed = 100 * step + list(SHAPES).index(fragment.name)
    matrix = torch.randn(fragment.shape, generator=torch.Generator().manual_seed(seed))
    if fragment.tp_dim is not None:
        matrix = matrix.narrow(fragment.tp_dim, fragment.tp_start, fragment.tp_stop - fragment.tp_start)
    return matrix.flatten()[fragment.start : fragment.stop]

"""What ranks of one layout write, ranks of any other one read, to the bit; and hashes that know nothing of layouts."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from tests.train.checkpoint.layouts import (
    KINDS,
    LAYOUTS,
    SHAPES,
    fragments_of,
    numbers,
    same_bits,
    slices,
    tensors,
    written,
)
from train.checkpoint import host, reader
from train.checkpoint.cuts import whole
from train.checkpoint.host import HostCopy
from train.checkpoint.reader import Checkpoint
from train.checkpoint.tensor_hash import GOLDEN, TensorHash, hex_of
from train.errors import CheckpointError, StateError
from train.fragment import Fragment

VALUES = tensors()


@pytest.fixture(scope="module", params=LAYOUTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return written(tmp_path_factory.mktemp("saved"), LAYOUTS[request.param], VALUES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_what_every_other_wrote_to_the_bit(checkpoint: Checkpoint, layout: str):
    for rank in LAYOUTS[layout]:
        for kind, fragment, expected in fragments_of(rank, VALUES):
            assert same_bits(checkpoint.read(kind, fragment), expected), (kind, fragment)


def test_whole_tensors_come_out_in_their_shape_and_dtype(checkpoint: Checkpoint):
    assert same_bits(checkpoint.whole("exp_avg", "o.weight"), VALUES["exp_avg", "o.weight"])
    found = {(kind, name): tensor for kind, name, tensor in checkpoint.tensors()}
    assert found.keys() == VALUES.keys()
    assert all(same_bits(found[key], VALUES[key]) for key in found)
    assert {kind for kind, *_ in checkpoint.tensors(("master",))} == {"master"}


def test_any_small_range_of_any_slice_is_read_to_the_bit(checkpoint: Checkpoint):
    """All ranges of up to a row and a half, in slices that no layout above has, against torch's slicing."""
    for name, dim, low, high in (("o.weight", 1, 3, 7), ("q.weight", 0, 1, 6), ("o.weight", 0, 5, 6)):
        shape = SHAPES[name]
        n = (high - low) * (SHAPES[name][0] if dim == 1 else SHAPES[name][1])
        for start in range(n):
            for stop in range(start, min(n, start + 7) + 1):
                part = Fragment(name, shape, dim, low, high, start, stop)
                assert same_bits(checkpoint.read("master", part), numbers(VALUES["master", name], part)), part


def test_the_files_are_safetensors_that_the_library_reads(checkpoint: Checkpoint):
    names = set(SHAPES)
    for path in checkpoint.path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name, _, range_of = key.split("|")
                start, stop = map(int, range_of.split(":"))
                assert name in names
                assert file.get_tensor(key).shape == (stop - start,)
                assert file.get_tensor(key).dtype == KINDS[path.name.split("-")[0]]


def test_a_fragment_may_be_spread_over_chunks_of_host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With chunks of 256 bytes every matrix lies in several, and is read and hashed as if it lay in one."""
    monkeypatch.setattr(host, "CHUNK_BYTES", 256)
    saved = written(tmp_path, LAYOUTS["zero 2, dp 3 x tp 2"], VALUES)
    assert all(same_bits(tensor, VALUES[kind, name]) for kind, name, tensor in saved.tensors())
    assert saved.hashes["master"]["o.weight"] == direct_hash(VALUES["master", "o.weight"])


# --- hashes


def direct_hash(tensor: torch.Tensor) -> str:
    """splitmix64's finaliser over Python integers, element by element."""
    total = 0
    bits = tensor.contiguous().view(-1).view(torch.uint8).numpy().view(f"u{tensor.element_size()}")
    for index, bit in enumerate(bits.tolist()):
        x = (index * GOLDEN + bit) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        total += x ^ x >> 31
    return f"{total % 2**64:016x}"


def bytes_of(flat: torch.Tensor) -> NDArray[np.uint8]:
    return torch.empty(flat.shape, dtype=flat.dtype).copy_(flat).view(torch.uint8).numpy()


def vector_hash(tensor: torch.Tensor) -> str:
    return hex_of(TensorHash()(whole("x", tuple(tensor.shape)), bytes_of(tensor.reshape(-1))))


def test_hashes_in_the_manifest_do_not_depend_on_the_layout(checkpoint: Checkpoint):
    for (kind, name), tensor in VALUES.items():
        assert checkpoint.hashes[kind][name] == direct_hash(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_hash_over_many_blocks_is_the_sum_that_it_is_said_to_be(dtype: torch.dtype):
    """Longer than a block of 65,536, whole and in ragged column slices, wide ones and narrow ones."""
    shape = (3, 70_001)
    tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
    expected = direct_hash(tensor)
    assert vector_hash(tensor) == expected
    hasher = TensorHash()
    for bounds in ((0, 70_001), (0, 1, 17, 66_000, 70_001)):
        total = 0
        for low, high in itertools.pairwise(bounds):
            n = 3 * (high - low)
            for start, stop in ((0, n // 2), (n // 2, n)):
                part = Fragment("x", shape, 1, low, high, start, stop)
                total += hasher(part, bytes_of(numbers(tensor, part)))
        assert hex_of(total) == expected


def test_a_hash_changes_with_any_bit_any_swap_and_any_exchange():
    tensor = torch.randn(6, 5)
    seen = {vector_hash(tensor), vector_hash(torch.zeros(6, 5)), vector_hash(torch.randn(6, 5))}
    altered = 3
    for element in range(tensor.numel()):
        for bit in range(32):
            bits = tensor.clone().view(-1).numpy().view(np.uint32)
            bits[element] ^= np.uint32(1 << bit)
            seen.add(vector_hash(torch.from_numpy(bits).view(torch.float32).view(6, 5)))
            altered += 1
    for a in range(tensor.numel()):
        for b in range(a):
            swapped = tensor.clone().view(-1)
            swapped[[a, b]] = swapped[[b, a]]
            seen.add(vector_hash(swapped.view(6, 5)))
            altered += 1
    seen |= {vector_hash(tensor.t().contiguous().view(6, 5)), vector_hash(-tensor)}
    assert len(seen) == altered + 2


# --- what does not fit


def cut_index(checkpoint: Checkpoint, find: str, put: str) -> Checkpoint:
    """The checkpoint with an index that says something else, as if it had been written so."""
    path = checkpoint.path / "index.jsonl"
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, put))
    return replace(checkpoint, _files={})


def test_numbers_that_no_file_holds_are_an_error_that_names_the_tensor(tmp_path: Path):
    saved = written(tmp_path, LAYOUTS["zero 3, dp 3"], {**VALUES})
    first = '["master-00001.safetensors"'
    line = next(line for line in (saved.path / "index.jsonl").read_text().splitlines() if "o.weight" in line)
    gap = line[line.index(first) : line.index("]", line.index(first)) + 3]
    holed = cut_index(saved, gap, "")
    with pytest.raises(CheckpointError, match=r"32 of 96 numbers of master of o\.weight are in none of its files"):
        holed.whole("master", "o.weight")
    assert same_bits(holed.whole("master", "q.weight"), VALUES["master", "q.weight"])


def test_files_that_disagree_about_a_number_are_both_named(tmp_path: Path):
    saved = written(tmp_path, LAYOUTS["zero 3, dp 3"], VALUES)
    line = next(line for line in (saved.path / "index.jsonl").read_text().splitlines() if '"bias"' in line)
    twice = cut_index(saved, line, line.replace("null, 0, 0, 3, 6]", "null, 0, 0, 2, 5]"))
    with pytest.raises(CheckpointError, match=r"master-0000[12].safetensors and .*master-0000[01].* of master of bias"):
        twice.whole("master", "bias")


def test_a_number_that_two_files_hold_alike_is_no_error(tmp_path: Path):
    saved = written(tmp_path, LAYOUTS["zero 3, dp 3"], VALUES)
    line = next(line for line in (saved.path / "index.jsonl").read_text().splitlines() if '"bias"' in line)
    first = line[line.index("[[") + 1 : line.index("]", line.index("[[")) + 1]
    twice = cut_index(saved, line, line.replace(first, f"{first}, {first}"))
    assert same_bits(twice.whole("master", "bias"), VALUES["master", "bias"])


def test_ranks_that_give_too_few_or_too_many_numbers_make_no_checkpoint(tmp_path: Path):
    lacking = [slices(2)[0], slices(2)[1][:-1]]
    with pytest.raises(CheckpointError, match="the ranks gave 4 numbers of master of bias, which has 8"):
        written(tmp_path, lacking, VALUES)
    with pytest.raises(CheckpointError, match=r"the ranks gave 384 numbers of master of embedding\.weight"):
        written(tmp_path, slices(1) * 2, VALUES, step=2)


OVERLAPS = {
    "ranges of a whole tensor": ("bias", None, [(0, 0, 0, 5), (0, 0, 4, 7)]),
    "ranges of a slice": ("q.weight", 0, [(0, 4, 0, 40), (0, 4, 39, 47), (4, 8, 0, 48)]),
    "slices": ("o.weight", 1, [(0, 4, 0, 48), (3, 7, 0, 48)]),
    "slices along two dimensions": ("q.weight", 0, [(0, 4, 0, 48), (None, 0, 48, 96)]),
    "one range twice": ("bias", None, [(0, 0, 0, 4), (0, 0, 0, 4)]),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_ranks_whose_parts_overlap_and_leave_a_hole_make_no_checkpoint(tmp_path: Path, case: str):
    """The count of numbers is right, or nearly; where they lie is not."""
    name, dim, places = OVERLAPS[case]
    shape = SHAPES[name]
    ranks = [
        [Fragment(name, shape, None, 0, *rest) if low is None else Fragment(name, shape, dim, low, *rest)]
        for low, *rest in places
    ]
    ranks[0] += [whole(other, SHAPES[other]) for other in SHAPES if other != name]
    with pytest.raises(CheckpointError, match=rf"the ranks gave .* of master of {name}"):
        written(tmp_path, ranks, VALUES)
    assert list(tmp_path.glob("step-*")) == []


@pytest.mark.parametrize("n_bytes", [4, 40, 4000])
def test_a_tensor_is_read_in_blocks_of_any_size(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, n_bytes: int):
    """Blocks shorter than a row, of some rows, and of whole tensors."""
    monkeypatch.setattr(reader, "BLOCK_BYTES", n_bytes)
    for rank in LAYOUTS["zero 2, dp 3 x tp 2"]:
        for kind, fragment, expected in fragments_of(rank, VALUES):
            assert same_bits(checkpoint.read(kind, fragment), expected), (kind, fragment)


def test_a_checkpoint_of_more_files_than_may_be_open_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "OPEN_FILES", 2)
    saved = written(tmp_path, LAYOUTS["zero 1, dp 5"], VALUES)
    assert all(same_bits(tensor, VALUES[kind, name]) for kind, name, tensor in saved.tensors())
    assert len(saved._files) == 2


def model() -> list[tuple[str, str, tuple[int, ...]]]:
    return [(kind, name, shape) for kind in KINDS for name, shape in SHAPES.items()]


def test_a_checkpoint_of_another_model_is_told_by_names_and_shapes(checkpoint: Checkpoint):
    checkpoint.require(model())
    other = [one for one in model() if one[:2] != ("master", "bias")]
    other[0] = (*other[0][:2], (16, 16))
    with pytest.raises(StateError) as refused:
        checkpoint.require([*other, ("exp_avg", "head.weight", (16, 12))])
    message = str(refused.value)
    assert "is a checkpoint of another model" in message
    assert "1 tensors of the model are missing: exp_avg of head.weight" in message
    assert "1 tensors have no place in the model: master of bias" in message
    assert "master of embedding.weight (16, 12), in the model (16, 16)" in message


def test_a_fragment_of_another_shape_or_name_is_refused(checkpoint: Checkpoint):
    with pytest.raises(StateError, match=r"master of bias is \(8,\), in the model \(9,\)"):
        checkpoint.read("master", whole("bias", (9,)))
    with pytest.raises(StateError, match="it holds no momentum of bias"):
        checkpoint.read("momentum", whole("bias", (8,)))


@pytest.mark.parametrize(
    "fragment",
    [
        Fragment("x", (4, 6), 1, 2, 7, 0, 4),
        Fragment("x", (4, 6), 1, 2, 4, 0, 9),
        Fragment("x", (4, 6), None, 0, 0, 20, 25),
        Fragment("x", (4, 6), None, 0, 2, 0, 4),
        Fragment("x", (4, 6, 2), 2, 0, 1, 0, 4),
        Fragment("x", (4, 6), None, 0, 0, 0, 23),
    ],
)
def test_a_fragment_that_cannot_be_is_refused(fragment: Fragment):
    with pytest.raises(ValueError, match="x"):
        HostCopy().take("master", fragment, torch.zeros(24))

"""A save while training goes on: what is saved, how it fails, and what a kill at any moment leaves."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import Ranks, run_ranks
from tests.train.checkpoint.layouts import LAYOUTS, SHAPES, fragments_of, same_bits, slices, tensors
from train.config import CheckpointConfig
from train.errors import CheckpointError, UnreadableError


def peers() -> Any:
    """This rank's, over gloo."""
    import torch

    from train.checkpoint.peers import ALONE, Peers

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size == 1:
        return ALONE
    torch.distributed.init_process_group("gloo")

    def agree(flags: list[int]) -> list[int]:
        total = torch.tensor(flags)
        torch.distributed.all_reduce(total)
        return total.tolist()

    return Peers(rank, size, agree)


def saver(folder: Path, together: Any, **rule: Any) -> Any:
    from train.checkpoint.saver import Saver

    return Saver(folder, CheckpointConfig(**rule), together)


def mine(layout: str, together: Any, seed: int = 0) -> Any:
    return fragments_of(LAYOUTS[layout][together.rank], tensors(seed))


# --- one rank


def test_what_is_saved_is_the_state_at_the_call_and_not_what_became_of_it(tmp_path: Path):
    import torch

    from train.checkpoint.cuts import whole
    from train.checkpoint.peers import ALONE
    from train.checkpoint.verify import newest_valid

    live, state = torch.arange(1_000_000.0), {"step": 1, "spent": {"train": 1.0}}
    begun = saver(tmp_path, ALONE)
    for step in (1, 2):  # the second time in memory that the first one used
        live.fill_(step)
        state["step"] = step
        begun.save(step, [("master", whole("w", (1_000_000,)), live)], state)
        live.fill_(-1)
        state["spent"]["train"] = -1.0
        assert begun.wait().problem is None
        state["spent"]["train"] = 1.0
        found, _ = newest_valid(tmp_path)
        assert found is not None
        assert (found.step, found.state) == (step, {"step": step, "spent": {"train": 1.0}})
        assert bool((found.whole("master", "w") == step).all())


def test_polls_cost_a_sum_only_while_a_save_runs_and_tell_its_end_once(tmp_path: Path):
    from train.checkpoint.peers import Peers

    sums: list[list[int]] = []

    def agree(flags: list[int]) -> list[int]:
        sums.append(flags)
        return flags

    alone = Peers(agree=agree)
    begun = saver(tmp_path, alone)
    assert begun.poll() is None
    assert begun.wait() is None
    assert sums == []
    begun.save(1, mine("one process", alone), {})
    outcomes = []
    while begun.state != "idle":
        outcomes.append(begun.poll())
        time.sleep(0.001)
    assert [outcome.step for outcome in outcomes if outcome] == [1]
    assert len(sums) == 1 + len(outcomes)
    assert begun.poll() is None


def test_a_save_that_runs_is_waited_for_before_the_next(tmp_path: Path):
    from train.checkpoint.folders import steps_found
    from train.checkpoint.peers import ALONE

    begun = saver(tmp_path, ALONE)
    begun.save(1, mine("one process", ALONE), {})
    with pytest.raises(RuntimeError, match="save of step 1 is running"):
        begun.save(2, mine("one process", ALONE), {})
    assert begun.wait().step == 1
    begun.save(2, mine("one process", ALONE), {})
    assert begun.wait().step == 2
    assert steps_found(tmp_path) == [2, 1]


def test_old_checkpoints_go_when_a_new_one_is_there(tmp_path: Path):
    from train.checkpoint.peers import ALONE

    begun = saver(tmp_path, ALONE, keep_last=2, keep_every_steps=40, keep_best=True)
    for step, val_loss in ((20, 3.0), (40, 2.5), (60, 2.0), (80, None), (100, 2.1), (120, 2.2), (140, 2.3)):
        begun.save(step, mine("one process", ALONE), {"val_loss": val_loss})
        assert begun.wait().problem is None
    kept = [path.name for path in sorted(tmp_path.iterdir())]
    assert kept == [f"step-{step:08d}" for step in (40, 60, 80, 120, 140)]


# --- two ranks


def save_on_two(folder: str) -> Any:
    from train.checkpoint.verify import newest_valid

    together = peers()
    begun = saver(Path(folder), together)
    begun.save(7, mine("zero 1, dp 2", together), {"rank": together.rank})
    polls = []
    while begun.state != "idle":
        polls.append(begun.poll())
        time.sleep(0.002)
    found, _ = newest_valid(Path(folder), together)
    assert found is not None
    other = LAYOUTS["tp 2"][together.rank]
    read = all(same_bits(found.read(kind, part), numbers) for kind, part, numbers in fragments_of(other, tensors()))
    return len(polls), polls[-1], found.step, found.state, read


def test_two_ranks_write_their_own_files_and_agree_on_the_end(tmp_path: Path):
    first, second = run_ranks(save_on_two, 2, str(tmp_path))
    assert first == second
    _, outcome, step, state, read = first
    assert (outcome.problem, step, state, read) == (None, 7, {"rank": 0}, True)
    expected = {f"{kind}-0000{rank}.safetensors" for kind in ("master", "exp_avg") for rank in (0, 1)}
    found = {path.name for path in (tmp_path / "step-00000007").iterdir()}
    assert found == expected | {"manifest.json", "index.jsonl", "state.json"}


def save_without_room(folder: str) -> Any:
    """Three saves; rank 1 has no room for the second one."""
    import resource

    from train.checkpoint.folders import steps_found

    together = peers()
    begun = saver(Path(folder), together)
    seen = []
    for step in (1, 2, 3):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = 1000 if step == 2 and together.rank == 1 else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        begun.save(step, mine("zero 1, dp 2", together, seed=step), {})
        outcome = begun.wait()
        seen.append((outcome.problem, steps_found(Path(folder)), [p.name for p in Path(folder).glob(".*")]))
        together.from_first(0)
    return seen


def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_the_next_one_succeeds(tmp_path: Path):
    first, second = run_ranks(save_without_room, 2, str(tmp_path))
    assert first == second
    (good, bad, again) = first
    assert good == (None, [1], [])
    assert bad[0].startswith("rank 1: no room to write")
    assert "step-00000002" in bad[0]
    assert bad[1:] == ([1], [])
    assert again == (None, [3, 1], [])


def save_nothing_finite(folder: str) -> Any:
    from train.checkpoint.folders import steps_found
    from train.errors import NumericsError

    together = peers()
    begun = saver(Path(folder), together)
    values = tensors()
    if together.rank == 1:
        values["exp_avg", "o.weight"][5, 6] = float("nan")
    try:
        begun.save(4, fragments_of(slices(2)[together.rank], values), {})
    except NumericsError as error:
        message = str(error)
    else:
        return "saved"
    begun.save(5, mine("tp 2", together), {})
    return message, begun.wait().problem, steps_found(Path(folder)), [path.name for path in Path(folder).glob(".*")]


def test_a_number_that_is_not_finite_is_named_on_all_ranks_and_not_saved(tmp_path: Path):
    first, second = run_ranks(save_nothing_finite, 2, str(tmp_path))
    told = "the state after step 4 is not finite: rank 1: exp_avg of o.weight. It was not saved"
    assert first == second == (told, None, [5], [])


def save_in_own_folders(folder: str) -> Any:
    together = peers()
    begun = saver(Path(folder) / f"node-{together.rank}", together)
    begun.save(1, mine("tp 2", together), {})
    return begun.wait().problem


def test_nodes_without_a_common_file_system_are_told_so(tmp_path: Path):
    first, second = run_ranks(save_in_own_folders, 2, str(tmp_path))
    assert first == second
    assert "All nodes of a run need one common file system: set run.folder" in first
    assert not list((tmp_path / "node-0").iterdir())


def damage_and_verify(folder: str) -> Any:
    """[(file, step found, messages)] with one file after the other cut short; each is the share of one of the ranks."""
    from train.checkpoint.verify import newest_valid

    together = peers()
    seen = []
    for step in (1, 2):
        begun = saver(Path(folder), together)
        begun.save(step, mine("zero 1, dp 2", together), {})
        begun.wait()
    for path in sorted((Path(folder) / "step-00000002").iterdir()):
        content = path.read_bytes()
        together.from_first(0)
        if together.is_first:
            path.write_bytes(content[:-2])
        together.from_first(0)
        found, messages = newest_valid(Path(folder), together)
        seen.append((path.name, found.step if found else None, [str(message) for message in messages]))
        if together.is_first:
            path.write_bytes(content)
    return seen


def test_damage_in_one_ranks_share_is_told_to_all_which_take_the_one_before(tmp_path: Path):
    first, second = run_ranks(damage_and_verify, 2, str(tmp_path))
    assert first == second
    assert len(first) == 7
    for name, step, (message,) in first:
        assert step == 1, name
        assert name in message


# --- kill -9


def killed(folder: str, moment: str) -> None:
    """Saves step 1, begins step 2, and dies: so many seconds later, or in a state of the save."""
    import torch

    from train.checkpoint.cuts import whole
    from train.checkpoint.peers import ALONE

    begun = saver(Path(folder), ALONE)
    for step in (1, 2):
        tensor = torch.full((4_000_000,), float(step))
        begun.save(step, [(kind, whole("w", (4_000_000,)), tensor) for kind in ("master", "exp_avg")], {})
        if step == 1:
            begun.wait()
    if moment == "finishing":
        while begun.state != "finishing":
            begun.poll()
    else:
        time.sleep(float(moment))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["0", "0.01", "0.05", "0.5", "finishing"])
def test_a_kill_during_a_save_leaves_the_older_checkpoint_or_the_whole_new_one(tmp_path: Path, moment: str):
    from train.checkpoint.folders import remove_leftovers
    from train.checkpoint.verify import newest_valid

    running = Ranks(killed, 1, str(tmp_path), moment)
    with pytest.raises(pytest.fail.Exception, match="died without a word"):
        running.results()
    found, messages = newest_valid(tmp_path)
    assert found is not None
    assert messages == []
    assert found.step == 1 or moment == "finishing"
    assert all(bool((tensor == found.step).all()) for _, _, tensor in found.tensors())
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"step-00000001", "step-00000002"}


# --- damage


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two good checkpoints, of steps 1 and 2."""
    from train.checkpoint.peers import ALONE

    begun = saver(tmp_path, ALONE)
    for step in (1, 2):
        begun.save(step, mine("one process", ALONE, seed=step), {"step": step})
        assert begun.wait().problem is None
    return tmp_path


@pytest.mark.parametrize("name", ["master-00000.safetensors", "index.jsonl", "state.json"])
@pytest.mark.parametrize("damage", ["bit", "short", "long", "missing"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_offered(saved: Path, name: str, damage: str):
    from train.checkpoint.verify import newest_valid

    path = saved / "step-00000002" / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    match damage:
        case "bit":
            path.write_bytes(flipped)
        case "short":
            path.write_bytes(content[:-1])
        case "long":
            path.write_bytes(content + b"\n")
        case _:
            path.unlink()
    found, (passed,) = newest_valid(saved)
    assert found is not None
    assert found.step == 1
    assert (passed.step, passed.is_damaged) == (2, True)
    assert str(path) in passed.problem


def test_a_file_that_the_manifest_does_not_name_is_never_read(saved: Path):
    from train.checkpoint.verify import newest_valid

    strange = saved / "step-00000002" / "master-00001.safetensors"
    strange.write_bytes((saved / "step-00000001" / "master-00000.safetensors").read_bytes())
    found, messages = newest_valid(saved)
    assert found is not None
    assert (found.step, messages) == (2, [])
    assert [name for _, name, _ in found.tensors(("master",))] == list(SHAPES)
    expected = tensors(seed=2)
    assert all(same_bits(tensor, expected[kind, name]) for kind, name, tensor in found.tensors())


def test_checkpoints_that_are_all_damaged_are_an_error_and_none_at_all_is_not(saved: Path, tmp_path: Path):
    from train.checkpoint.verify import newest_valid

    for step in (1, 2):
        (saved / f"step-0000000{step}" / "exp_avg-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not started from step 0 unasked"):
        newest_valid(saved)
    assert newest_valid(tmp_path / "nothing") == (None, [])


def write_schema(path: Path, version: int) -> None:
    """Has the checkpoint be one of this schema, by a manifest without a checksum of its own."""
    manifest = path / "manifest.json"
    facts = json.loads(manifest.read_text()) | {"schema_version": version}
    del facts["sha256"]
    manifest.write_text(json.dumps(facts))


def test_a_checkpoint_of_the_schema_before_is_read(saved: Path):
    """Its manifest is the same but for the first line, the checksum of the rest."""
    from train.checkpoint.verify import verify

    write_schema(saved / "step-00000002", 2)
    assert verify(saved / "step-00000002").step == 2


def test_checkpoints_of_the_first_schema_are_refused_in_words(saved: Path):
    from train.checkpoint.verify import verify

    write_schema(saved / "step-00000002", 1)
    with pytest.raises(CheckpointError, match="written by an earlier version of this program"):
        verify(saved / "step-00000002")


@pytest.mark.parametrize("why", ["a newer schema", "an input error"])
def test_a_checkpoint_that_may_be_good_is_never_passed_over(saved: Path, why: str, monkeypatch: pytest.MonkeyPatch):
    """Else the run would go back behind it, and its next save would remove it."""
    from train.checkpoint import verify

    newest = saved / "step-00000002"
    if why == "a newer schema":
        write_schema(newest, 4)
    else:

        def unreadable(file: Path) -> str:
            raise OSError(5, "Input/output error", str(file))

        monkeypatch.setattr(verify, "sha256_file", unreadable)
    with pytest.raises(UnreadableError, match="Nothing was changed"):
        verify.newest_valid(saved)
    assert newest.is_dir()

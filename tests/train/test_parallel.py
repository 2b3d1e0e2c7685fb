"""From a launcher's environment to a place in the grid."""

import itertools
import random
import socket
from pathlib import Path

import pytest

from train.parallel import (
    EXIT_WORD,
    LaunchError,
    RankGrid,
    device_index,
    free_port,
    leave_word,
    rank_grid,
    tasks_per_node,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}

SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
}
"""of the second task on the third node"""


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch):
    for name in (*TORCHRUN, *SRUN, "SLURM_TASKS_PER_NODE", "SLURM_NTASKS", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_this_is_the_only_process():
    assert rank_grid() == RankGrid(rank=0, world_size=1, local_rank=0, local_world_size=1)


def test_torchruns_variables_are_the_grid(monkeypatch: pytest.MonkeyPatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    grid = rank_grid()
    assert (grid.dp_rank, grid.dp_size, grid.local_rank, grid.is_first) == (5, 8, 1, False)


def test_half_an_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LaunchError, match="WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        rank_grid()


def in_step(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    for name, value in (SRUN | {"MASTER_ADDR": "n1", "MASTER_PORT": "29000"} | changed).items():
        monkeypatch.setenv(name, value)


def test_sruns_variables_are_the_grid(monkeypatch: pytest.MonkeyPatch):
    in_step(monkeypatch)
    assert rank_grid() == RankGrid(rank=9, world_size=11, local_rank=1, local_world_size=3)
    in_step(monkeypatch, SLURM_PROCID="7", SLURM_LOCALID="3", SLURM_NODEID="1")
    assert rank_grid() == RankGrid(rank=7, world_size=11, local_rank=3, local_world_size=4)


def test_an_older_srun_says_it_by_other_names(monkeypatch: pytest.MonkeyPatch):
    in_step(monkeypatch, SLURM_NTASKS="11", SLURM_TASKS_PER_NODE="4(x2),3")
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name)
    assert rank_grid() == RankGrid(rank=9, world_size=11, local_rank=1, local_world_size=3)


def test_torchrun_inside_a_step_is_the_launcher(monkeypatch: pytest.MonkeyPatch):
    in_step(monkeypatch, **TORCHRUN)
    assert (rank_grid().rank, rank_grid().world_size) == (5, 8)


def test_a_step_with_one_task_is_a_single_process(monkeypatch: pytest.MonkeyPatch):
    in_step(monkeypatch, SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
    assert rank_grid() == RankGrid(0, 1, 0, 1)


def test_srun_without_a_rendezvous_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Each task would believe to be alone, and all would write into one run folder."""
    in_step(monkeypatch)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(LaunchError, match=r"11 tasks without MASTER_ADDR: .* launch submit"):
        rank_grid()


def test_ranks_dealt_out_in_turn_are_refused(monkeypatch: pytest.MonkeyPatch):
    """The neighbours of a tensor-parallel group would be on different nodes."""
    in_step(monkeypatch, SLURM_PROCID="2", SLURM_LOCALID="0")
    with pytest.raises(LaunchError, match=r"rank 2 to task 0 of node 2.*--distribution=block"):
        rank_grid()


def test_tasks_of_nodes_are_read():
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("1") == [1]
    with pytest.raises(LaunchError, match="'4x' was not expected"):
        tasks_per_node("4x")


@pytest.mark.parametrize(
    ("local_rank", "local_world_size", "visible", "is_own", "index"),
    [
        (3, 4, 4, False, 3),
        (3, 4, 8, False, 3),
        (3, 4, 1, True, 0),  # --gpus-per-task: each rank is shown its own
        (0, 1, 1, False, 0),
        (0, 1, 1, True, 0),
        (1, 2, 2, False, 1),
    ],
)
def test_a_rank_takes_its_device_among_those_it_sees(
    local_rank: int, local_world_size: int, visible: int, is_own: bool, index: int
):
    """F27"""
    assert device_index(local_rank, local_world_size, visible, is_own) == index


@pytest.mark.parametrize(("visible", "is_own"), [(1, False), (2, False), (3, False)])
def test_more_ranks_than_devices_are_refused(visible: int, is_own: bool):
    with pytest.raises(LaunchError, match=f"4 ranks were started .* shows {visible} CUDA"):
        device_index(0, 4, visible, is_own)


def test_a_port_is_free_only_if_it_is_on_every_address(monkeypatch: pytest.MonkeyPatch):
    first, second = free_port(), free_port()
    monkeypatch.setattr(random.SystemRandom, "sample", lambda self, population, k: [first, second])
    with socket.create_server(("127.0.0.2", first)):
        assert free_port() == second


def test_the_first_rank_that_ends_for_good_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    word = tmp_path / "word"
    leave_word(3)  # without a script that would read it
    monkeypatch.setenv(EXIT_WORD, str(word))
    for code in (0, 1, None, 143, "text"):
        leave_word(code)
    assert not word.exists()
    leave_word(3)
    leave_word(5)
    assert word.read_text() == "3\n"


def launched(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int, local_world_size: int | None) -> None:
    per_node = local_world_size or 1
    values = TORCHRUN | {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank % per_node}
    for name, value in (values | {"LOCAL_WORLD_SIZE": per_node}).items():
        monkeypatch.setenv(name, str(value))
    if local_world_size is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE")


def test_every_rank_has_its_own_place_with_tensor_parallelism_innermost(monkeypatch: pytest.MonkeyPatch):
    places = []
    for rank in range(24):
        launched(monkeypatch, rank, 24, 8)
        grid = rank_grid(tp_size=4, sp_size=2)
        assert (grid.dp_size, grid.sp_size, grid.tp_size) == (3, 2, 4)
        places.append((grid.dp_rank, grid.sp_rank, grid.tp_rank))
    assert places == list(itertools.product(range(3), range(2), range(4)))


def test_ranks_that_do_not_form_whole_groups_are_refused_with_numbers_that_do(monkeypatch: pytest.MonkeyPatch):
    launched(monkeypatch, 0, 6, 6)
    with pytest.raises(LaunchError, match=r"= 4 does not divide the 6 ranks .* start 4 or 8 ranks, .* 1, 2, 3, 6"):
        rank_grid(tp_size=2, sp_size=2)


def test_one_process_alone_is_no_group_of_two():
    with pytest.raises(LaunchError, match="start 2 ranks"):
        rank_grid(tp_size=2)


def test_a_tensor_parallel_group_stays_inside_a_node(monkeypatch: pytest.MonkeyPatch):
    launched(monkeypatch, 0, 16, 4)
    with pytest.raises(LaunchError, match=r"4 ranks of a node.* one of 1, 2, 4; .*parallel\.sp_size"):
        rank_grid(tp_size=8)
    assert rank_grid(tp_size=4, sp_size=2).dp_size == 2  # sequence parallelism may cross


def test_a_launcher_that_does_not_say_the_size_of_a_node_is_believed(monkeypatch: pytest.MonkeyPatch):
    launched(monkeypatch, 0, 16, None)
    assert rank_grid(tp_size=8).dp_size == 2


def test_a_thousand_ranks_are_described_in_seven_lines():
    lines = RankGrid(0, 1024, 0, 8, tp_size=4, sp_size=4).describe().splitlines()
    assert lines[0] == "1024 ranks = dp 64 x sp 4 x tp 4"
    assert [line.split() for line in lines[1:]] == [
        ["ranks", "node", "dp", "sp", "tp"],
        ["0-3", "0", "0", "0", "0-3"],
        ["4-7", "0", "0", "1", "0-3"],
        ["8-11", "1", "0", "2", "0-3"],
        ["...", "...", "...", "...", "..."],
        ["1020-1023", "127", "63", "3", "0-3"],
    ]


def test_data_parallel_ranks_are_described_by_node():
    lines = RankGrid(0, 16, 0, 8).describe().splitlines()
    assert [line.split() for line in lines[2:]] == [["0-7", "0", "0-7", "0", "0"], ["8-15", "1", "8-15", "0", "0"]]

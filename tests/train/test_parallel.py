"""From a launcher's environment to a place in the grid."""

import itertools

import pytest

from train.parallel import LaunchError, RankGrid, rank_grid

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch):
    for name in (*TORCHRUN, "SLURM_NTASKS", "SLURM_STEP_ID"):
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


def test_srun_without_a_rendezvous_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Each task would believe to be alone, and all would write into one run folder."""
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(LaunchError, match="4 tasks"):
        rank_grid()


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

"""From a launcher's environment to a place in the grid."""

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

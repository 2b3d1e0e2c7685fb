"""Cores near GPUs, on a pretended machine: two sockets of eight cores with two threads each, four GPUs on each."""

import os
from pathlib import Path

import pytest

from tests.distributed.ranks import run_ranks
from train.binding import binding, core_list, keep_to, ranges, shares

ALL = frozenset(range(32))
GPUS = [f"0000:{bus:02x}:00.0" for bus in range(8)]


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for number, gpu in enumerate(GPUS):
        folder = tmp_path / "bus/pci/devices" / gpu
        folder.mkdir(parents=True)
        (folder / "local_cpulist").write_text("0-7,16-23\n" if number < 4 else "8-15,24-31\n")
    for core in ALL:
        folder = tmp_path / f"devices/system/cpu/cpu{core}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 16},{core % 16 + 16}\n")
    return tmp_path


def test_ranks_share_out_the_cores_near_their_gpus_and_no_core_is_cut_in_two(sysfs: Path):
    found = [binding(GPUS, rank, ALL, 32, sysfs) for rank in range(8)]
    cores = [of.cores or frozenset[int]() for of in found]
    assert [ranges(of) for of in cores[:4]] == ["0-1,16-17", "2-3,18-19", "4-5,20-21", "6-7,22-23"]
    assert frozenset[int]().union(*cores[4:]) == core_list("8-15,24-31")
    assert sum(map(len, cores)) == 32
    assert found[0].words == "bound to 4 of 32 cores near its GPU (0-1,16-17)"


def test_two_ranks_of_a_node_have_a_socket_each_or_half_of_one(sysfs: Path):
    assert binding([GPUS[0], GPUS[4]], 1, ALL, 32, sysfs).cores == core_list("8-15,24-31")
    assert binding(GPUS[:2], 1, ALL, 32, sysfs).cores == core_list("4-7,20-23")


def test_what_the_launcher_has_bound_is_left_alone(sysfs: Path):
    found = binding(GPUS, 3, core_list("4-7,20-23"), 32, sysfs)
    assert (found.cores, found.words) == (None, "bound by the launcher to 8 of 32 cores (4-7,20-23)")


def test_a_machine_that_does_not_say_what_is_near_binds_nothing(sysfs: Path):
    (sysfs / "bus/pci/devices" / GPUS[2] / "local_cpulist").unlink()
    found = binding(GPUS, 2, ALL, 32, sysfs)
    assert (found.cores, found.words[:9]) == (None, "not bound")


def test_more_ranks_than_cores_are_not_bound(sysfs: Path):
    assert shares(frozenset({0, 16}), 2, sysfs) is None
    assert binding([GPUS[0]] * 9, 0, ALL, 32, sysfs).cores is None


def test_cores_that_do_not_divide_are_all_used(sysfs: Path):
    parts = shares(core_list("0-6"), 3, sysfs)
    assert parts == [core_list("0-1"), core_list("2-3"), core_list("4-6")]


@pytest.mark.parametrize("text", ["", "0", "0-3,8,10-11"])
def test_lists_of_cores_read_back(text: str):
    assert ranges(core_list(f"{text}\n")) == text


def test_a_bound_process_keeps_to_its_cores_with_all_its_threads():
    assert run_ranks(bound, 1) == [True]


def bound() -> bool:
    import threading

    wait = threading.Event()
    thread = threading.Thread(target=wait.wait, daemon=True)
    thread.start()
    core = frozenset({min(os.sched_getaffinity(0))})
    keep_to(core)
    kept = [os.sched_getaffinity(int(task.name)) == core for task in Path("/proc/self/task").iterdir()]
    wait.set()
    return all(kept) and len(kept) > 1

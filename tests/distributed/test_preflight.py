"""Preflight on pretended nodes, each of which is real processes: one is made bad in one way, and is named for it."""

import dataclasses
import functools
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.preflights import Pretended, on_nodes


def test_nodes_that_are_alike_can_be_used_and_are_shown_one_a_line(here: Path):
    found = on_nodes(here, 3, ranks=2)
    assert found.codes == [0] * 6, found.printed + found.others
    lines = found.printed.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["preflight", "node", "n1", "n2", "n3"]
    assert "all-reduce over all 6 ranks" in lines[5]
    assert lines[6:] == ["3 nodes can be used"]
    assert (found.others, found.bad) == ("", [])
    assert list((here / "runs" / "checked").iterdir()) == []  # nothing is left behind


def made_bad(node: str, rank: int) -> None:
    """Each node in another way; n1 and n2 are as they should be."""
    from train.preflight import clocks, place

    real = place.look
    match node:
        case "n3":  # as after an update that one node missed
            place.look = lambda: dataclasses.replace(real(), driver="535.54.03", torch="2.12.0")
        case "n4":
            clocks.now = lambda: time.time() + 30
        case "n5":  # where nothing is mounted
            _move_to("n5", data=False, runs=True)
        case "n6":
            place.look = lambda: dataclasses.replace(real(), available_bytes=100 << 20)
        case "n7":
            _move_to("n7", data=True, runs=False)
        case "n8":  # another version under the same name
            _move_to("n8", data=False, runs=True)
            shutil.copytree("../data/tiny", "data/tiny")
            other = Path("data/tiny/manifest.json")
            other.write_text(other.read_text() + "\n")
        case _:
            pass


def _move_to(name: str, *, data: bool, runs: bool) -> None:
    here, there = Path.cwd(), Path.cwd() / name
    there.mkdir()
    (there / "data").symlink_to(here / "data") if data else (there / "data").mkdir()
    if runs:
        (here / "runs").mkdir(exist_ok=True)
        (there / "runs").symlink_to(here / "runs")
    os.chdir(there)


def test_each_bad_node_is_named_with_what_is_wrong_there(here: Path):
    found = on_nodes(here, 8, fault=made_bad)
    assert found.codes == [7] * 8, found.printed + found.others
    said = {line.split(":")[0]: line for line in found.printed.splitlines() if line.startswith("bad node")}
    assert found.bad == ["n3", "n4", "n5", "n6", "n7", "n8"], found.printed
    assert list(said) == [f"bad node {node}" for node in found.bad]
    assert "driver 535.54.03, none on the 7 others; torch 2.12.0, " in said["bad node n3"]
    assert "clock is 30.0" in said["bad node n4"]
    assert "ahead" in said["bad node n4"]
    assert "data/tiny holds no finished dataset" in said["bad node n5"]
    assert "100.0 MiB of host memory are free, 1 ranks need about" in said["bad node n6"]
    assert "runs/checked is another folder there: what n1, n2, n3 ... wrote is not seen" in said["bad node n7"]
    assert "data/tiny is another dataset: " in said["bad node n8"]
    assert "error: 6 of 8 nodes cannot be used: n3, " in found.printed
    assert found.others == ""


def full(node: str, rank: int) -> None:
    """A disk that takes small files only."""
    import resource

    if node == "n2":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_named(here: Path):
    found = on_nodes(here, 3, fault=full)
    assert (found.codes, found.bad) == ([7] * 3, ["n2"]), found.printed + found.others
    assert "no room to write" in found.printed
    assert list((here / "runs" / "checked").iterdir()) == []


def slow(nodes: str, node: str, rank: int) -> None:
    from train.preflight import links

    reduce = links._reduce  # pyright: ignore[reportPrivateUsage]

    def slowly(n_bytes: int, device: str) -> float:
        started = time.perf_counter()
        time.sleep(0.3)
        reduce(n_bytes, device)
        return time.perf_counter() - started

    if node == nodes:
        links._reduce = slowly  # pyright: ignore[reportPrivateUsage]


def test_a_node_that_is_slow_with_all_its_neighbours_is_the_slow_one(here: Path):
    found = on_nodes(here, 4, fault=functools.partial(slow, "n3"))
    assert (found.codes, found.bad) == ([7] * 4, ["n3"]), found.printed + found.others
    assert "bad node n3: rank 2 reaches 0.00" in found.printed
    assert "is the median of the others" in found.printed


def lost(who: int, when: str, node: str, rank: int) -> None:
    """The process is gone at this stage."""
    from train.preflight import clocks, course, links

    links.LINK_SECONDS, clocks.ANSWER_SECONDS = 1.0, 5.0  # ten times as long for all rounds
    if when == "start":
        course.REPORT_SECONDS = 10.0
    if rank != who:
        return
    match when:
        case "start":
            os._exit(9)
        case "clock":
            clocks.answer = lambda *_: os._exit(9)
        case "links":
            links.pair_rates = lambda *_: os._exit(9)
        case _:
            course.Judge._same_folder = lambda self: os._exit(9)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("start", "rank 3 gave no word within 10 s"),
        ("clock", "rank 2 did not answer when it was asked for the time"),
        ("links", "rank 2 was lost while links were measured"),
    ],
)
def test_a_node_whose_rank_dies_or_never_comes_is_named_in_time(here: Path, when: str, words: str):
    who = 3 if when == "start" else 2
    found = on_nodes(here, 2, ranks=2, fault=functools.partial(lost, who, when))
    assert found.codes == [7 if rank != who else 9 for rank in range(4)], found.printed + found.others
    assert f"bad node n2: {words}" in found.printed
    assert found.bad == ["n2"]


def test_when_rank_0_is_lost_the_others_name_its_node(here: Path):
    found = on_nodes(here, 3, fault=functools.partial(lost, 0, "verdict"))
    assert found.codes == [9, 7, 7], found.printed + found.others
    assert "bad node n1: rank 0 is lost, or out of reach from n2" in found.others
    assert found.bad == ["n1"]


def test_without_names_from_the_launcher_the_missing_rank_is_named(here: Path):
    found = on_nodes(here, 2, fault=functools.partial(lost, 1, "start"), slurm=False)
    assert found.codes == [7, 9], found.printed + found.others
    assert "bad node of rank 1: rank 1 gave no word within 10 s" in found.printed
    assert found.bad == []  # nothing that a scheduler could be told


def nowhere(node: str, rank: int) -> None:
    os.chdir(Path.cwd() / "runs")


def apart(node: str, rank: int) -> None:
    _move_to(node, data=True, runs=False)


def test_what_is_wrong_everywhere_is_no_nodes_fault(here: Path):
    (here / "runs").mkdir()
    found = on_nodes(here, 2, fault=nowhere)
    assert (found.codes, found.bad) == ([3, 3], []), found.printed + found.others
    assert "error: data/tiny holds no finished dataset" in found.printed
    found = on_nodes(here, 2, fault=apart)
    assert (found.codes, found.bad) == ([2, 2], []), found.printed + found.others
    assert "Set run.folder to a file system that all nodes share" in found.printed
    found = on_nodes(here, 2, "cluster.device=cuda")
    assert (found.codes, found.bad) == ([2, 2], []), found.printed + found.others
    assert "error: cluster.device=cuda, but torch finds no CUDA device" in found.printed


def test_a_signal_ends_it_at_once(here: Path):
    pretended = Pretended(here, 2, fault=functools.partial(waits, 1))
    time.sleep(1)
    for rank in (0, 1):
        pretended.send(signal.SIGTERM if rank else signal.SIGUSR1, rank)
    assert pretended.end().codes == [143, 143]


def waits(who: int, node: str, rank: int) -> None:
    if rank == who:
        time.sleep(100)

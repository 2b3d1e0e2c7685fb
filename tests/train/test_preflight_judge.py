"""From facts of nodes to the bad ones, as tables: what takes a cluster to happen."""

from train.preflight import judge
from train.preflight.clocks import Offset
from train.preflight.links import rounds, schedule
from train.preflight.place import Report

EIGHT = [f"n{i}" for i in range(1, 9)]


def test_the_majority_is_right_and_the_message_says_how_large_it_is():
    drivers = dict.fromkeys(EIGHT, "550.90") | {"n2": "535.54"}
    assert judge.differing(drivers) == {"n2": "535.54, 550.90 on the 7 others"}
    assert judge.differing({"n1": "a", "n2": "b"}) == {"n2": "b, a on the other"}  # where rank 0 is
    assert judge.differing({"n1": "a", "n2": None, "n3": None}) == {"n1": "a, none on the 2 others"}


def test_a_first_node_whose_clock_is_wrong_is_the_bad_one():
    """All are measured against it, and all agree but for it."""
    offsets = {"n1": Offset(0.0, 0.0)} | {node: Offset(-30.0, 0.01) for node in EIGHT[1:]}
    assert list(judge.clocks(offsets)) == ["n1"]
    assert judge.clocks({node: Offset(0.5 * i, 0.0) for i, node in enumerate(EIGHT[:4])}) == {}
    assert judge.clocks({"n1": Offset(0.0, 0.0), "n2": Offset(9.0, 8.0)}) == {}  # not known well enough


def test_no_node_meets_another_twice_nor_two_at_a_time():
    for n in (2, 3, 4, 7, 8, 33):
        met = [pair for of_round in rounds(n) for pair in of_round]
        assert len(met) == len(set(met))
        assert len(rounds(n)) == min(4, n - 1 + n % 2)
        for of_round in rounds(n):
            players = [player for pair in of_round for player in pair]
            assert len(players) == len(set(players)) == n - n % 2
    assert rounds(1) == []


def rates(slow: set[int], nodes: list[list[int]], lanes: bool) -> dict[str, float | str]:
    pairs = [pair for of_round in schedule(nodes, lanes) for pair in of_round]
    return {pair.name: 1e9 if slow & {*pair.ranks} else 24e9 for pair in pairs}


def test_who_is_slow_with_all_is_slow_and_its_partners_are_not():
    nodes = {name: [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i, name in enumerate(EIGHT)}
    plan = schedule([*nodes.values()], all_lanes=True)
    _, found = judge.links(nodes, plan, rates({9}, [*nodes.values()], True))
    assert list(found.bad) == ["n3"]  # by one of its four network cards
    assert found.bad["n3"][0].startswith("rank 9 reaches 1 GB/s with n")
    assert found.bad["n3"][0].endswith("24 GB/s is the median of the others")


def test_of_two_nodes_neither_is_called_slow_and_when_none_answer_none_is_bad():
    nodes = {"n1": [0], "n2": [1]}
    plan = schedule([*nodes.values()], all_lanes=False)
    assert judge.links(nodes, plan, rates({1}, [*nodes.values()], False))[1].bad == {}
    _, found = judge.links(nodes, plan, {plan[0][0].name: "timed out"})
    assert (found.bad, found.common[0][0]) == ({}, 1)


def test_a_node_without_gpus_among_nodes_that_have_some_is_bad_and_too_few_everywhere_are_not():
    reports = [Report(rank, f"n{rank}", "cuda:0" if rank else "cpu") for rank in range(4)]
    found = judge.Findings()
    judge.reported(reports, found)
    assert found.bad == {"n0": ["torch finds no GPU, as it does on the 3 others"]}
    few = [Report(rank, f"n{rank}", problems={"device": "shows 1 CUDA device"}) for rank in range(2)]
    found = judge.Findings()
    judge.reported(few, found)
    assert (found.bad, found.common) == ({}, [(2, "shows 1 CUDA device")])


def test_a_gpu_that_computes_wrong_is_its_nodes_fault_even_if_it_is_the_only_node():
    found = judge.Findings()
    judge.reported([Report(0, "n1", "cuda:0", {"gpu": "cuda:0 does not compute: ECC"})], found)
    assert found.lines() == ["bad node n1: cuda:0 does not compute: ECC"]

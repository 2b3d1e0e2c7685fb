"""From what the ranks report to the nodes that cannot be used: each with what is wrong there, in numbers.

Pure functions. What is the same on every node is no node's fault, but the configuration's, the data's or the file
system's: it ends with their exit code. What only some nodes have is theirs, and where nodes differ the majority is
right; of two that differ nobody can say which is, and the first one, where rank 0 is, counts.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.files import DataError
from train.checkpoint.room import size_words
from train.errors import RendezvousError
from train.node import Node
from train.parallel import LaunchError
from train.preflight.clocks import Offset
from train.preflight.links import Pair
from train.preflight.place import Report

CLOCK_SECONDS = 2.0
"""nodes that keep their clocks by NTP or PTP are within milliseconds; Slurm's munge bears minutes"""
SLOW_RATIO = 0.5
"""a link with less than this part of the median is slow"""
KINDS = {
    "device": LaunchError.exit_code,
    "memory": LaunchError.exit_code,
    "data": DataError.exit_code,
    "folder": DataError.exit_code,
    "disk": DataError.exit_code,
    "gpu": None,
    "temp": None,
}
"""kinds of problems, and the exit code where every node has it; None: it is a fault of each of them even then"""


@dataclass
class Findings:
    bad: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """node to what is wrong with it"""
    common: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """(exit code, words) of what is wrong everywhere alike"""

    def add(self, found: Mapping[str, str]) -> None:
        for node, words in found.items():
            self.bad.setdefault(node, []).append(words)

    def take(self, more: "Findings") -> None:
        for node, words in more.bad.items():
            self.bad.setdefault(node, []).extend(words)
        self.common += more.common

    def sort(self, order: Iterable[str]) -> None:
        self.bad = {node: self.bad[node] for node in order if node in self.bad}

    def lines(self) -> list[str]:
        return [f"bad node {node}: {'; '.join(words)}" for node, words in self.bad.items()]


def silent(of_rank: Sequence[str | None], came: Mapping[int, str], seconds: float) -> dict[str, str]:
    """Nodes with ranks that did not report. of_rank: the node of each rank as the launcher has it, None where it does
    not say; came: the node of each rank that did."""
    found: dict[str, list[int]] = {}
    for rank in range(len(of_rank)):
        if rank not in came:
            found.setdefault(of_rank[rank] or f"of rank {rank}", []).append(rank)
    return {node: f"{rank_words(ranks)} gave no word within {seconds:.0f} s" for node, ranks in found.items()}


def reported(reports: Sequence[Report], findings: Findings) -> None:
    """What ranks found wrong at their own place."""
    nodes = {report.node for report in reports}
    for kind, exit_code in KINDS.items():
        found: dict[str, str] = {}
        for report in reports:
            if kind in report.problems:
                found.setdefault(report.node, report.problems[kind])
        if found and found.keys() == nodes and exit_code is not None:
            findings.common.append((exit_code, next(iter(found.values()))))
        else:
            findings.add(found)
    findings.add(_without_gpu(reports))


def _without_gpu(reports: Sequence[Report]) -> dict[str, str]:
    with_gpu = {report.node for report in reports if report.device not in (None, "cpu")}
    without = {report.node for report in reports if report.device == "cpu"} - with_gpu
    return {node: f"torch finds no GPU, as it does on {_others(len(with_gpu))}" for node in without if with_gpu}


def versions(facts: Mapping[str, Node]) -> dict[str, str]:
    """Nodes on which software is not what most nodes have. In the order of ranks."""
    found: dict[str, list[str]] = {}
    for name in ("driver", "cuda", "nccl", "torch", "deepspeed", "python", "code"):
        for node, words in differing({node: getattr(of, name) for node, of in facts.items()}).items():
            found.setdefault(node, []).append(f"{'code of this project' if name == 'code' else name} {words}")
    return {node: "; ".join(words) for node, words in found.items()}


def differing(values: Mapping[str, str | None]) -> dict[str, str]:
    """As {"n2": "535.54, 550.90 on the 7 others"}. Of equally frequent values the first counts."""
    counts = Counter(values.values())
    usual, n_usual = counts.most_common(1)[0]  # of equal counts, the one that came first
    found = {node: value for node, value in values.items() if value != usual}
    return {node: f"{value or 'none'}, {usual or 'none'} on {_others(n_usual)}" for node, value in found.items()}


def datasets(read: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """read: of each node that could read them, folder to the SHA-256 of its manifest."""
    found: dict[str, str] = {}
    folders = {folder for of in read.values() for folder in of}
    for folder in sorted(folders):
        digests = {node: of.get(folder, "")[:12] for node, of in read.items()}
        found |= {node: f"{folder} is another dataset: {words}" for node, words in differing(digests).items()}
    return found


def folders(unseen: Mapping[str, Sequence[str]], folder: str, findings: Findings) -> None:
    """unseen: of each node, those whose files in the run's folder it does not see."""
    n = len(unseen)
    alone = {node: others for node, others in unseen.items() if 2 * len(others) > min(n - 1, len(unseen) - 1)}
    if alone and len(alone) == n:
        findings.common.append(
            (
                LaunchError.exit_code,
                f"run.folder: {folder} is another folder on each of {', '.join(unseen)}: a run is written and "
                "continued in one. Set run.folder to a file system that all nodes share",
            )
        )
        return
    findings.add({node: f"{folder} is another folder there: {_unseen_words(others)}" for node, others in alone.items()})


def _unseen_words(others: Sequence[str]) -> str:
    return f"what {', '.join(others[:3])}{' ...' if len(others) > 3 else ''} wrote is not seen"


def clocks(offsets: Mapping[str, Offset]) -> dict[str, str]:
    """Nodes whose clock is not near the one that most agree with. In the order of ranks; the first has offset 0."""

    def near(a: Offset, b: Offset) -> bool:
        return abs(a.seconds - b.seconds) <= CLOCK_SECONDS + a.uncertain + b.uncertain

    right = max(offsets.values(), key=lambda one: sum(near(one, other) for other in offsets.values()))
    found: dict[str, str] = {}
    for node, offset in offsets.items():
        if not near(offset, right):
            ahead = offset.seconds - right.seconds
            found[node] = (
                f"clock is {abs(ahead):,.2f} s {'ahead' if ahead > 0 else 'behind'} (± {offset.uncertain:.3f} s; "
                f"{CLOCK_SECONDS:g} s are allowed): let chrony or ntpd set it"
            )
    return found


Rates = Mapping[str, float | str]
"""name of a pair to bytes per second, or to why there are none"""


def of_pairs(told: Iterable[Rates]) -> Rates:
    """From what each rank tells of its pairs: the slower of the two figures, or why one of the two has none."""
    found: dict[str, float | str] = {}
    for of_rank in told:
        for name, value in of_rank.items():
            known = found.get(name, value)
            found[name] = (
                min(known, value)
                if isinstance(known, float) and isinstance(value, float)
                else (known if isinstance(known, str) else value)
            )
    return found


def best_rates(plan: Sequence[Sequence[Pair]], rates: Rates) -> dict[int, float]:
    """Of each rank that was in a pair: bytes per second with its fastest partner; 0 if none answered."""
    best: dict[int, float] = {}
    for pair in (pair for pairs in plan for pair in pairs):
        value = rates.get(pair.name, "")
        for rank in pair.ranks:
            best[rank] = max(best.get(rank, 0.0), value if isinstance(value, float) else 0.0)
    return best


def links(
    nodes: Mapping[str, Sequence[int]], plan: Sequence[Sequence[Pair]], rates: Rates
) -> tuple[dict[int, float], Findings]:
    """The best rate of each rank; and nodes that are slow, or mute, with every partner. Of two nodes, none can be told
    from the other."""
    best, findings = best_rates(plan, rates), Findings()
    if best and not any(best.values()):
        why = next(str(value) for value in rates.values())
        findings.common.append(
            (
                RendezvousError.exit_code,
                f"no two nodes can exchange data: {why}. Ranks may listen on an interface that others do not reach: "
                "see GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
            )
        )
        return best, findings
    place = {rank: node for node, ranks in nodes.items() for rank in ranks}
    for rank, value in best.items():
        others = [best[other] for other in best if place[other] != place[rank] and _lane(nodes, place, other, rank)]
        if len(others) < 2 or value >= SLOW_RATIO * statistics.median(others):
            continue
        partners = [pair.ranks[1 - pair.ranks.index(rank)] for pairs in plan for pair in pairs if rank in pair.ranks]
        names = ", ".join(dict.fromkeys(place[partner] for partner in partners))
        usual = f"{rate_words(statistics.median(others))} is the median of the others"
        words = f"rank {rank} reaches {rate_words(value)} with {names}; {usual}"
        if value == 0.0:
            words = f"rank {rank} could exchange data with none of {names}"
        findings.add({place[rank]: words})
    return best, findings


def _lane(nodes: Mapping[str, Sequence[int]], place: Mapping[int, str], a: int, b: int) -> bool:
    """Both are at the same place in their nodes."""
    return list(nodes[place[a]]).index(a) == list(nodes[place[b]]).index(b)


def rate_words(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.3g} GB/s"


def rank_words(ranks: Sequence[int]) -> str:
    """As "rank 3", "ranks 4-7"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    whole = list(ranks) == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {ranks[0]}-{ranks[-1]}" if whole else f"ranks {', '.join(map(str, ranks))}"


def _others(n: int) -> str:
    return "the other" if n == 1 else f"the {n} others"


def table(
    nodes: Mapping[str, Sequence[int]],
    reports: Mapping[int, Report],
    offsets: Mapping[str, Offset],
    rates: Mapping[int, float],
    bad: Mapping[str, object],
) -> list[str]:
    """One line for each node: its ranks, and what was found there."""
    rows = [("node", "ranks", "device", "driver", "torch", "memory free", "clock", "1 MiB to disk", "link", "")]
    for node, ranks in nodes.items():
        first = reports.get(ranks[0])
        facts = first.facts if first else None
        offset, lane = offsets.get(node), [rates[rank] for rank in ranks if rank in rates]
        written = first.write_seconds if first else None
        rows.append(
            (
                node,
                rank_words(ranks).split()[1] if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}",
                "-" if facts is None else f"{len(facts.gpus)} x {facts.gpus[0].name}" if facts.gpus else "CPU",
                (facts.driver if facts else None) or "-",
                facts.torch if facts else "-",
                size_words(facts.available_bytes) if facts else "-",
                "-" if offset is None else f"{offset.seconds * 1000:+,.1f} ms",
                "-" if written is None else f"{written * 1000:,.0f} ms",
                rate_words(min(lane)) if lane else "-",
                "BAD" if node in bad else "ok",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

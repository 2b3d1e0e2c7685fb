"""The course of a preflight: every rank looks at its place and does what rank 0 tells it, stage by stage; rank 0
judges.

report → (rank 0) go on, or the verdict → is the run's folder the same → clocks → links in pairs → all ranks together.
Ranks speak over a board (train/preflight/board.py), so that one which is lost is missed by rank 0 and holds up nobody
longer than the limits here. If rank 0 itself is lost the others say so, each of them.
"""

import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

from data_prep.files import publish_bytes
from train.config import TrainConfig
from train.errors import BadNodeError, RendezvousError, RunFailedError
from train.parallel import (
    RankGrid,
    bad_nodes_file,
    launched_nodes,
    node_name,
    wait_for_nccl_in_python,
)
from train.preflight import clocks, judge, links
from train.preflight.board import Board, LateError
from train.preflight.judge import Findings, rank_words
from train.preflight.place import Place, Report

REPORT_SECONDS = 240.0
"""from the first rank to the last report: most of it is the time in which they start"""
STAGE_SECONDS = 60.0
"""for what takes a moment"""
END_SECONDS = 10.0
"""for a last word, before rank 0 closes the board"""
_LOOKS = 2


def preflight(config: TrainConfig, grid: RankGrid) -> int:
    """0 if all nodes can be used. Raises BadNodeError naming those that cannot; RunFailedError with the code of what is
    wrong everywhere alike; RendezvousError if the ranks cannot meet at all."""
    wait_for_nccl_in_python()
    try:
        board = Board.open(grid, REPORT_SECONDS)
        if grid.is_first:
            board.put("mark", secrets.token_hex(4))
        place = Place(config, grid, node_name(), board.get("mark", REPORT_SECONDS))
    except LateError as error:
        if grid.is_first:
            raise RendezvousError(f"rank 0 cannot wait for the others: {error}") from None
        raise _first_is_lost(grid, f"{error}") from None
    try:
        board.put_mine("report", place.look_around().to_tree())
        member = Member(board, place, grid)
        if grid.is_first:
            return Judge(config, member).verdict()
        return member.follow()
    except LateError as error:
        raise _first_is_lost(grid, f"{error}") from None
    finally:
        place.clear()


class Member:
    """A rank that does what it is told."""

    def __init__(self, board: Board, place: Place, grid: RankGrid):
        self.board, self.place, self.grid = board, place, grid

    def follow(self) -> int:
        """Until the end. A word of rank 0 may take as long as its own waits do."""
        for number in range(100):
            word = self.board.get(f"stage/{number}", REPORT_SECONDS + clocks.ROUND_SECONDS + STAGE_SECONDS)
            if word["do"] == "end":
                self.board.put_mine("end", "")
                if word["code"]:
                    raise RunFailedError(word["message"], word["code"], is_said=True)
                return 0
            self.act(word)
        raise AssertionError("a preflight has few stages")

    def act(self, word: dict[str, Any]) -> None:
        rank, device = self.grid.rank, self.place.report.device or "cpu"
        match word["do"]:
            case "folder" if rank in word["ranks"]:
                others = [other for other in word["ranks"] if other != rank]
                self.board.put_mine("unseen", self.place.unseen(others))
            case "clock" if rank in word["ranks"] and not self.grid.is_first:
                clocks.answer(self.board, rank, clocks.ROUND_SECONDS)
            case "links":
                plan = links.schedule(word["nodes"], word["all_lanes"], word["look"])
                self.board.put_mine(f"rates-{word['look']}", links.pair_rates(self.board.store, rank, plan, device))
            case "group":
                size = self.grid.world_size
                rate = links.rate(self.board.store, "all", rank, size, device, links.GROUP_SECONDS)
                self.board.put_mine("group", rate)
            case _:
                pass


class Judge:
    """Rank 0: tells all what to do, itself too, and says what came of it."""

    def __init__(self, config: TrainConfig, me: Member):
        self._config, self._me, self._board = config, me, me.board
        self._stage, self._size = 0, me.grid.world_size
        self._findings = Findings()
        self._reports: dict[int, Report] = {}
        self._offsets: dict[str, clocks.Offset] = {}
        self._rates: dict[int, float] = {}
        self._together: float | str | None = None
        self._lost = set[int]()

    def verdict(self) -> int:
        """Whatever it is, the others hear of it."""
        try:
            return self._verdict()
        except (BadNodeError, RunFailedError):
            raise
        except Exception as error:
            self._tell("end", code=RendezvousError.exit_code, message=f"rank 0 failed: {error}")
            self._board.gather("end", self._reports.keys() - {0} - self._lost, END_SECONDS)
            raise

    def _verdict(self) -> int:
        started = time.monotonic()
        for stage in (self._hear, self._same_folder, self._clocks, self._links, self._all_together):
            if stage() is False:
                break
        self._findings.sort(self._nodes)
        self._print(time.monotonic() - started)
        code, message = self._judgement()
        self._tell("end", code=code, message=message)
        self._board.gather("end", self._reports.keys() - {0} - self._lost, END_SECONDS)
        if code == BadNodeError.exit_code:
            raise BadNodeError(message)
        if code:
            raise RunFailedError(message, code, is_said=False)
        return 0

    @property
    def _firsts(self) -> dict[int, str]:
        """The first rank of each node, and its name."""
        return {ranks[0]: node for node, ranks in self._nodes.items()}

    def _tell(self, do: str, **facts: Any) -> dict[str, Any]:
        word = {"do": do, **facts}
        self._board.put(f"stage/{self._stage}", word)
        self._stage += 1
        return word

    def _all_do(self, do: str, **facts: Any) -> None:
        self._me.act(self._tell(do, **facts))

    # --- the stages: False ends the preflight there ------------------------------------------------------------------

    def _hear(self) -> bool:
        came = self._board.gather("report", range(self._size), REPORT_SECONDS)
        self._reports = {rank: Report.from_tree(tree) for rank, tree in came.items()}
        of_rank = self._nodes_of_ranks()
        self._nodes: dict[str, list[int]] = {}
        for rank, node in enumerate(of_rank):
            self._nodes.setdefault(node or f"of rank {rank}", []).append(rank)
        nodes = {rank: report.node for rank, report in self._reports.items()}
        self._findings.add(judge.silent(of_rank, nodes, REPORT_SECONDS))
        reports = list(self._reports.values())
        judge.reported(reports, self._findings)
        self._findings.add(judge.versions({r.node: r.facts for r in reports if r.facts is not None}))
        read = {r.node: r.data for r in reports if r.facts is not None and "data" not in r.problems}
        if read:
            self._findings.add(judge.datasets(read))
        return len(self._reports) == self._size and all(report.device for report in reports)

    def _nodes_of_ranks(self) -> list[str | None]:
        """As the launcher says, and as those that came say."""
        launched: list[str | None] = [*(launched_nodes() or [])]
        if len(launched) != self._size:
            launched = [None] * self._size
        for rank, report in self._reports.items():
            launched[rank] = report.node
        return launched

    def _same_folder(self) -> bool:
        firsts = [rank for rank in self._firsts if "folder" not in self._reports[rank].problems]
        if len(firsts) < 2:
            return True
        self._all_do("folder", ranks=firsts)
        unseen = self._board.gather("unseen", firsts, STAGE_SECONDS)
        all_there = self._all_there(firsts, unseen, "was lost while it looked for the others' files")
        names = {self._firsts[rank]: [self._firsts[other] for other in others] for rank, others in unseen.items()}
        folder = Path(self._config.run.folder).absolute() / self._config.run.name
        judge.folders(names, str(folder), self._findings)
        return all_there

    def _clocks(self) -> bool:
        firsts = [rank for rank in self._firsts if rank != 0]
        self._all_do("clock", ranks=firsts)
        found = clocks.ask(self._board, firsts)
        all_there = self._all_there(firsts, found, "did not answer when it was asked for the time")
        self._offsets = {self._firsts[rank]: offset for rank, offset in {0: clocks.Offset(0.0, 0.0), **found}.items()}
        self._findings.add(judge.clocks(self._offsets))
        return all_there

    def _links(self) -> bool:
        if len({report.device == "cpu" for report in self._reports.values()}) > 1:
            return False
        nodes, on_gpu = list(self._nodes.values()), self._reports[0].device != "cpu"
        plan: list[list[links.Pair]] = []
        told: list[dict[str, float | str]] = []
        findings = Findings()
        for look in range(_LOOKS):  # a node that is slow once may have been busy
            plan += links.schedule(nodes, on_gpu, look)
            self._all_do("links", nodes=nodes, all_lanes=on_gpu, look=look)
            found = self._board.gather(f"rates-{look}", range(self._size), links.longest_seconds())
            if not self._all_there(range(self._size), found, "was lost while links were measured"):
                return False
            told += found.values()
            self._rates, findings = judge.links(self._nodes, plan, judge.of_pairs(told))
            if not findings.bad and not findings.common:
                break
        self._findings.take(findings)
        return all(self._rates.values())

    def _all_together(self) -> None:
        if self._size == 1:
            return
        self._all_do("group")
        found = self._board.gather("group", range(self._size), links.GROUP_SECONDS + STAGE_SECONDS)
        self._all_there(range(self._size), found, "was lost in the all-reduce over all ranks")
        failed = [value for value in found.values() if isinstance(value, str)]
        self._together = failed[0] if failed else min(found.values())
        if failed and len(found) == self._size:
            self._findings.common.append(
                (RendezvousError.exit_code, f"an all-reduce over all {self._size} ranks did not work: {failed[0]}")
            )

    def _all_there(self, asked: Iterable[int], answered: Container[int], what: str) -> bool:
        of_rank = {rank: node for node, ranks in self._nodes.items() for rank in ranks}
        missing = [rank for rank in asked if rank not in answered]
        self._lost |= {*missing}
        for rank in missing:
            self._findings.add({of_rank[rank]: f"rank {rank} {what}"})
        return not missing

    # --- the end -----------------------------------------------------------------------------------------------------

    def _print(self, seconds: float) -> None:
        rows = judge.table(self._nodes, self._reports, self._offsets, self._rates, self._findings.bad)
        print(
            "\n".join(
                [
                    f"preflight of {_count(self._size, 'rank')} on {_count(len(self._nodes), 'node')}, {seconds:.1f} s",
                    *rows,
                ]
            )
        )
        if isinstance(self._together, float):
            print(f"all-reduce over all {self._size} ranks: {judge.rate_words(self._together)} each (bus bandwidth)")
        for line in self._findings.lines():
            print(line)
        if not self._findings.bad and not self._findings.common:
            print(f"{_count(len(self._nodes), 'node')} can be used")
        sys.stdout.flush()

    def _judgement(self) -> tuple[int, str]:
        """(exit code, words)."""
        bad, common = list(self._findings.bad), self._findings.common
        if common:  # which other nodes would not mend
            return common[0][0], "\n".join(words for _, words in common)
        if not bad:
            return 0, ""
        name_nodes(bad)
        return (
            BadNodeError.exit_code,
            f"{len(bad)} of {_count(len(self._nodes), 'node')} cannot be used: {', '.join(bad)}",
        )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def name_nodes(nodes: list[str]) -> None:
    """For the batch script, if there is one."""
    file = bad_nodes_file()
    named = [node for node in nodes if not node.startswith("of rank ")]
    if file is not None and named:
        publish_bytes(file, "".join(f"{node}\n" for node in named).encode())


def _first_is_lost(grid: RankGrid, words: str) -> BadNodeError | RendezvousError:
    """What a rank can say that does not hear of rank 0: unless that has named nodes, this one among them perhaps, its
    node is the one."""
    node = (launched_nodes() or [None])[0]
    file = bad_nodes_file()
    if file is not None and file.exists() and file.read_text().split() != [node]:
        return RendezvousError(f"rank 0 has left without a word to {rank_words([grid.rank])}: {words}")
    if node is None:
        return RendezvousError(f"rank 0 is lost, or out of reach from {node_name()}: {words}")
    with contextlib.suppress(Exception):
        name_nodes([node])
    print(f"bad node {node}: rank 0 is lost, or out of reach from {node_name()}: {words}", flush=True)
    return BadNodeError(f"{node}, where rank 0 is, cannot be used")


def leave_after(seconds: float, say: Callable[[], str]) -> None:
    """Whatever else waits: by then this process is over."""

    def leave() -> None:
        print(f"error: {say()}", file=sys.stderr, flush=True)
        os._exit(RendezvousError.exit_code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()

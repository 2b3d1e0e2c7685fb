"""What one rank finds at its place: a device that computes, the dataset, the run's folder, room for what it will write.

Out: a `Report` of plain values, which travels to rank 0. Nothing is judged here, and nothing raises: what is wrong is a
problem in words, under the name of its kind. The first rank of a node looks at what all of its ranks share.
"""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import DataError, write_error
from train.checkpoint.folders import steps_found
from train.checkpoint.room import checkpoint_bytes, size_words
from train.config import TrainConfig
from train.corpus import load_corpora
from train.node import SHARED_MEMORY, Node, free_bytes, look
from train.parallel import LaunchError, RankGrid, choose_device
from train.run_folder import RunFolder

TEMP_BYTES = 64 * 2**20
SHARED_BYTES = 32 * 2**20
"""of each rank, for NCCL"""
GPU_FREE_RATIO = 0.9
_SEEN_SECONDS = 5.0
"""a file made on one node may show on another a moment later (NFS)"""
_MANY = 16


@dataclass
class Report:
    rank: int
    node: str
    device: str | None = None
    problems: dict[str, str] = field(default_factory=dict[str, str])
    """kind of problem to its words; see train/preflight/judge.py for the kinds"""
    facts: Node | None = None
    """of the node; from its first rank, like what follows"""
    data: dict[str, str] = field(default_factory=dict[str, str])
    """folder of a dataset to the SHA-256 of its manifest"""
    write_seconds: float | None = None
    """for a small file in the run's folder, until it is on the disk"""

    def to_tree(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_tree(tree: dict[str, Any]) -> "Report":
        return Report(**{**tree, "facts": tree["facts"] and Node.from_tree(tree["facts"])})


class Place:
    def __init__(self, config: TrainConfig, grid: RankGrid, node: str, mark: str):
        """mark: equal on all ranks, and of no other preflight."""
        self._config, self._grid, self._mark = config, grid, mark
        self._folder = RunFolder(config).path
        self.report = Report(grid.rank, node)

    def look_around(self) -> Report:
        self._try_device()
        if self._grid.local_rank == 0:
            self.report.facts = look()
            for kind, action in (
                ("temp", self._try_temp_folder),
                ("memory", self._ask_memory),
                ("data", self._read_data),
                ("folder", self._write_token),
                ("disk", self._ask_disk),
            ):
                with self._noting(kind):
                    action()
        return self.report

    def unseen(self, others: list[int]) -> list[int]:
        """Those of these ranks whose file in the run's folder is not seen from here."""
        chosen = others if len(others) <= _MANY else others[:: math.ceil(len(others) / _MANY)]
        until = time.monotonic() + _SEEN_SECONDS
        while (unseen := [rank for rank in chosen if not self._token(rank).exists()]) and time.monotonic() < until:
            time.sleep(0.1)
        return unseen

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            self._token(self._grid.rank).unlink(missing_ok=True)

    def _token(self, rank: int) -> Path:
        """Its name is that of a leftover, which the next start removes if nobody else does."""
        return self._folder / f".preflight-{self._mark}-{rank:05d}.tmp"

    @contextlib.contextmanager
    def _noting(self, kind: str) -> Iterator[None]:
        try:
            yield
        except (LaunchError, DataError, ShortError) as error:
            self.report.problems[kind] = str(error)
        except OSError as error:
            self.report.problems[kind] = f"{error.filename or kind}: {error.strerror or error}"

    def _try_device(self) -> None:
        with self._noting("device"):
            self.report.device = choose_device(self._config.cluster.device, self._grid)
        if self.report.device not in (None, "cpu"):
            with self._noting("gpu"):
                compute(self.report.device)

    def _try_temp_folder(self) -> None:
        place = Path(tempfile.gettempdir())
        with tempfile.NamedTemporaryFile(dir=place) as stream:
            stream.write(bytes(1 << 20))
            stream.flush()
            os.fsync(stream.fileno())
        _require(place, TEMP_BYTES, "temporary files (TMPDIR)")

    def _ask_memory(self) -> None:
        """Host memory and shared memory for all ranks of this node."""
        facts, ranks = self.report.facts, self._grid.local_world_size
        assert facts is not None
        needed = ranks * host_bytes(self._config, self._grid.world_size, self.report.device)
        if facts.available_bytes < needed:
            raise ShortError(
                f"{size_words(facts.available_bytes)} of host memory are free, {ranks} ranks need about "
                f"{size_words(needed)}"
            )
        if self.report.device not in (None, "cpu"):
            _require(SHARED_MEMORY, ranks * SHARED_BYTES, "NCCL (--shm-size of a container)")

    def _read_data(self) -> None:
        """Every manifest, the sizes of all files, and the last tokens of each source with their checksums: a part of
        them that another node does not read."""
        for corpus in load_corpora(self._config.data):
            stream = corpus.stream("train")
            if stream.n_tokens:
                count = min(stream.n_tokens, 4096)
                share = self._grid.rank / self._grid.world_size
                stream.read(min(int(share * stream.n_tokens), stream.n_tokens - count), count)
            self.report.data[str(corpus.folder)] = corpus.manifest.sha256

    def _write_token(self) -> None:
        started, token = time.perf_counter(), self._token(self._grid.rank)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with token.open("xb") as stream:
                stream.write(bytes(1 << 20))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                token.unlink(missing_ok=True)
            raise write_error(error, token) from error
        self.report.write_seconds = time.perf_counter() - started

    def _ask_disk(self) -> None:
        checkpoints = self._folder / "checkpoints"
        n_kept, n_there = kept_checkpoints(self._config), len(steps_found(checkpoints))
        missing = max(1, n_kept + 1 - n_there)  # a new one is complete before an old one goes
        each = checkpoint_bytes(self._config)
        free = free_bytes(checkpoints)
        if free is not None and free < missing * each:
            raise ShortError(
                f"{size_words(free)} are free for {checkpoints}, and {missing} more checkpoints of {size_words(each)} "
                f"go there: {n_kept} are kept (checkpoint.keep_last, keep_every_steps), and one more while it is "
                "written. Free some space, keep fewer, or set run.folder to another disk"
            )


class ShortError(Exception):
    """There is less than is needed."""


def kept_checkpoints(config: TrainConfig) -> int:
    """That lie in the folder at the end of the run."""
    keep, batch = config.checkpoint, config.batch
    steps = math.ceil(config.total_tokens / (batch.global_batch_size * config.data.seq_len))
    forever = 0 if keep.keep_every_steps is None else steps // keep.keep_every_steps
    return min(keep.keep_last + forever + keep.keep_best, math.ceil(steps / keep.every_steps))


def host_bytes(config: TrainConfig, world_size: int, device: str | None) -> int:
    """Of host memory for one rank, at least: the copy of its share of a checkpoint, what is in host memory anyway
    (weights, gradients and optimizer states on a CPU, states that are offloaded), and Python with its libraries."""
    state = checkpoint_bytes(config)
    on_host = 2 * state if device == "cpu" else state if config.parallel.offload_optimizer else 0
    return (state + on_host) // world_size + 512 * 2**20


def compute(device: Any) -> None:
    """Raises ShortError if the GPU does not do as it should, or somebody else uses it."""
    import torch

    try:
        ones = torch.ones(1024, 1024, device=device)
        total = float((ones @ ones).sum())
        free, memory = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        raise ShortError(f"{device} does not compute: {str(error).splitlines()[0]}") from None
    if total != 1024.0**3:
        raise ShortError(f"{device} computes wrong: a product of ones adds up to {total}, not {1024.0**3}")
    if free < GPU_FREE_RATIO * memory:
        raise ShortError(
            f"{size_words(free)} of {size_words(memory)} are free on {device}: another process uses it (nvidia-smi)"
        )


def _require(folder: Path, n_bytes: int, what: str) -> None:
    free = free_bytes(folder)
    if free is not None and free < n_bytes:
        raise ShortError(f"{size_words(free)} are free in {folder}, {size_words(n_bytes)} are needed for {what}")

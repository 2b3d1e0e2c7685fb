"""What it costs that a run cannot be hurt: seconds of each part in a step, and of a save, on this machine.

    python -m tests.benchmarks.safety                # a model of 1.5 M parameters, on one rank and on two
    python -m tests.benchmarks.safety large          # the same of 50 M: minutes, and 1 GB of memory a rank
    python -m tests.benchmarks.safety ranks          # what the first rank of many computes from all ranks' reports
    python -m tests.benchmarks.safety save           # a checkpoint against torch.save of the same tensors

With GPUs there is a rank on each of up to two of them, and the device's synchronisations in a step are counted. A step
is that of a whole run, logs included. Rounds in which every part is timed alternate with rounds in which all parts do
nothing; figures are medians, of the first rank. What is in a part's wall time and not in its CPU time is mostly the
wait for the other rank, which would come at the next collective without it.
"""

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.corpus import write_corpus
from tests.runs import finish, start
from train.verify.ranks import PRELOAD, Ranks, preload

ROUNDS = 5
MODELS = {
    "tiny": (
        20,
        "data={folder: data/tiny, seq_len: 128}",
        "batch={global_batch_size: 4, micro_batch_size: 2}",
        "model={vocab_size: 1024, n_layers: 4, d_model: 160, n_heads: 4, n_kv_heads: 4, d_ff: 448}",
    ),
    "large": (
        1,
        "data={folder: data/tiny, seq_len: 64}",
        "batch={global_batch_size: 4, micro_batch_size: 2}",
        "model={vocab_size: 16384, n_layers: 8, d_model: 640, n_heads: 10, n_kv_heads: 10, d_ff: 1728}",
    ),
}
"""name → steps a round, and what to override"""
SAVED_BYTES = 200_000_000


def main() -> None:
    preload([*([] if _n_gpus() else ["tests.distributed.quiet"]), *PRELOAD, "torch.utils.tensorboard"])
    match sys.argv[1:]:
        case ["ranks"]:
            print_many_ranks()
        case ["save"]:
            print_save()
        case [("tiny" | "large") as model]:
            print_steps(model)
        case []:
            print_steps("tiny")
            print_many_ranks()
        case _:
            sys.exit(__doc__)


# --- a step ----------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    name: str
    owner: Any
    attribute: str
    without: Callable[..., Any]
    """what stands for it where there is none"""
    calls_others: bool = False
    """its first argument is a function whose time is not its own"""
    wall: float = 0.0
    cpu: float = 0.0
    per_step: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    @contextmanager
    def timed(self) -> Iterator[None]:
        with self._put(self._timing(getattr(self.owner, self.attribute))):
            yield

    @contextmanager
    def left_out(self) -> Iterator[None]:
        with self._put(self.without):
            yield

    def end_step(self) -> None:
        self.per_step.append((self.wall, self.cpu))
        self.wall = self.cpu = 0.0

    def _timing(self, action: Callable[..., Any], sign: int = 1) -> Callable[..., Any]:
        def timing(*arguments: Any, **named: Any) -> Any:
            if self.calls_others and sign > 0:
                arguments = (self._timing(arguments[0], -1), *arguments[1:])
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return action(*arguments, **named)
            finally:
                self.wall += sign * (time.perf_counter() - wall)
                self.cpu += sign * (time.thread_time() - cpu)

        return timing

    @contextmanager
    def _put(self, substitute: Callable[..., Any]) -> Iterator[None]:
        right = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, substitute)
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, right)


class _Fits:
    """Stands for checksums: no others are unequal to it."""

    def __ne__(self, other: object) -> bool:
        return False


def parts_of(session: Any) -> list[Part]:
    from data_prep import blocks
    from train.engine import core
    from train.engine.clock import CLOCK

    engine, guard = session.engine, session._guard
    return [
        Part("exchange of reports", core, "exchange", lambda mine, world_size, device: [mine] * world_size),
        Part("verdict", guard, "_passes", lambda result: True),
        Part("bit sums of replicas", engine._replicas, "bit_sums", lambda: None),
        Part("signs to the watchdog", session._watchdog, "working", lambda phase, step: None),
        Part("clock of collectives", CLOCK, "_timed", lambda call, given, named: call(*given, **named), True),
        Part("checksums of what is read", blocks, "sums_of", lambda content: _Fits()),
        Part("hash of the batch", core, "fingerprint", lambda batches, first_row: 0),
        Part("logs", session._reports, "step", lambda *arguments: None),
    ]


@dataclass(frozen=True)
class Measured:
    n_params: int
    step: tuple[float, float]
    """wall and CPU seconds of a step with everything"""
    parts: dict[str, tuple[float, float]]
    ratios: tuple[float, float]
    """with everything : with nothing, of wall and of CPU time; medians of the rounds' """
    watcher: float
    """CPU seconds of the process that watches, in one second"""
    syncs: tuple[int, int] | None
    """of the device in a step, with everything and with nothing"""


def measure(folder: str, words: list[str], steps: int, device: str) -> Measured:
    """On each rank."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        return _measured(_session(words), steps, device != "cpu")


def _measured(session: Any, steps: int, counts_syncs: bool) -> Measured:
    parts = parts_of(session)
    spent: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(3):
        session.train_step()
    began, watcher = time.perf_counter(), _cpu_seconds(session._watchdog._process.pid)
    for number in range(ROUNDS):
        for is_whole in (True, False) if number % 2 else (False, True):
            with ExitStack() as stack:
                for part in parts:
                    stack.enter_context(part.timed() if is_whole else part.left_out())
                spent[is_whole].append(_step_seconds(session, steps, parts if is_whole else []))
    watcher = (_cpu_seconds(session._watchdog._process.pid) - watcher) / (time.perf_counter() - began)
    syncs = _synchronisations(session, parts) if counts_syncs else None
    session._watchdog.close()
    ratios = [[a / b for a, b in zip(whole, bare, strict=True)] for whole, bare in zip(*spent.values(), strict=True)]
    return Measured(
        n_params=sum(parameter.numel() for _, parameter in session.engine._named),
        step=_medians(spent[True]),
        parts={part.name: _medians(part.per_step) for part in parts},
        ratios=_medians(ratios),
        watcher=watcher,
        syncs=syncs,
    )


def _session(words: list[str]) -> Any:
    from conf.compose import compose
    from train.__main__ import APP
    from train.parallel import choose_device, prepare_environment, rank_grid, share_cores
    from train.session import Session
    from train.setup import check
    from train.stop import install

    install()
    share_cores()
    setup = check(compose(APP, words), rank_grid())
    place = choose_device(setup.config.cluster.device, setup.grid)
    prepare_environment(place, setup.grid)
    return Session(setup, place, time.perf_counter())


def _step_seconds(session: Any, steps: int, parts: list[Part]) -> tuple[float, float]:
    """Wall and CPU, all threads' of this process, of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        session.train_step()
        for part in parts:
            part.end_step()
    session.engine.barrier()
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def _synchronisations(session: Any, parts: list[Part]) -> tuple[int, int]:
    """For which the host waited for the device in one step, as far as torch tells."""
    import torch

    found: list[int] = []
    for is_whole in (True, False):
        with ExitStack() as stack:
            for part in parts if not is_whole else []:
                stack.enter_context(part.left_out())
            seen = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            session.train_step()
            torch.cuda.set_sync_debug_mode("default")
            found.append(sum("synchronizing" in str(warning.message) for warning in seen))
    return found[0], found[1]


def _medians(pairs: list[Any]) -> tuple[float, float]:
    walls, cpus = zip(*pairs, strict=True)
    return statistics.median(walls), statistics.median(cpus)


def _cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def print_steps(model: str) -> None:
    n_gpus = _n_gpus()
    device = "gpu" if n_gpus else "cpu"
    steps, *words = MODELS[model]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "texts")
        command = ("source=text", "source.paths=[texts]", "out=data/tiny", "tokenizer.vocab_size=400")
        code, printed = finish(start(folder, *command, "val_fraction=0.1", module="data_prep"))
        assert code == 0, printed
        for n_ranks in sorted({1, min(n_gpus or 2, 2)}):
            run = [
                *words,
                f"run.name={model}-{n_ranks}",
                "total_tokens=100_000_000",
                "health.stuck_seconds=1000",
                f"cluster={{device: {'auto' if n_gpus else 'cpu'}, peak_flops_per_second: 1.0e+11}}",
            ]
            ranks = Ranks(measure, n_ranks, name, run, steps, device, device=device)
            print_table(model, n_ranks, device, ranks.results(3600)[0])


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def print_table(model: str, n_ranks: int, device: str, found: Measured) -> None:
    wall, cpu = found.step
    print(
        f"\n{model}: {found.n_params / 1e6:.1f} M parameters, {n_ranks} x {device}, a step of {wall * 1e3:,.1f} ms "
        f"({cpu * 1e3:,.1f} ms of CPU)\n{'part':<28}{'CPU us':>10}{'of the step':>12}{'wall us':>12}{'of the step':>12}"
    )
    for name, (part_wall, part_cpu) in found.parts.items():
        figures = f"{part_cpu * 1e6:>10,.0f}{part_cpu / cpu:>12.2%}{part_wall * 1e6:>12,.0f}{part_wall / wall:>12.2%}"
        print(f"{name:<28}{figures}")
    print(f"with all : without any         CPU {found.ratios[1]:.3f}, wall {found.ratios[0]:.3f}")
    print(f"the watching process           {found.watcher:.2%} of a core")
    if found.syncs is not None:
        print(f"synchronisations of the device {found.syncs[0]} in a step, {found.syncs[1]} without", flush=True)


# --- many ranks ------------------------------------------------------------------------------------------------------


def print_many_ranks() -> None:
    """What the host computes from the reports of all ranks, between gradients and update or after it."""
    print(f"\n{'CPU us a step':<40}{'8 ranks':>10}{'128':>10}{'1024':>10}")
    times = [many_ranks(n_ranks) for n_ranks in (8, 128, 1024)]
    for name in times[0]:
        print(f"{name:<40}" + "".join(f"{of[name] * 1e6:>10,.0f}" for of in times), flush=True)


def many_ranks(n_ranks: int) -> dict[str, float]:
    from types import SimpleNamespace

    import torch

    from train.engine import exchange
    from train.engine.replicas import Replicas
    from train.metrics import spread
    from train.parallel import RankGrid
    from train.stragglers import Stragglers

    mine = exchange.Report(1.5, 2.5, 0, 0.001, 0.1, 0.5, (12345, 67890))
    optimizer = type("DeepSpeedZeroOptimizer", (), {"bit16_groups_flat": [torch.zeros(8), torch.zeros(8)]})()
    replicas = Replicas(optimizer, SimpleNamespace(pieces=[]), [], RankGrid(0, n_ranks, 0, 8))  # type: ignore[arg-type]
    stragglers = Stragglers(1.5)
    numbers = torch.tensor([exchange._packed(mine)] * n_ranks)
    reports = [mine] * n_ranks
    actions = {
        "all: reading the reports": lambda: exchange._unpacked(numbers.numpy()),
        "all: comparing bit sums": lambda: replicas.odd_ranks([report.bit_sums for report in reports]),
        "first: spread of the ranks' times": lambda: spread(reports),
        "first: looking for a slow rank": lambda: stragglers.slow_rank([report.work_seconds for report in reports]),
    }
    return {name: _cpu_of(action) for name, action in actions.items()}


def _cpu_of(action: Callable[[], Any]) -> float:
    seconds: list[float] = []
    for _ in range(60):
        began = time.thread_time()
        action()
        seconds.append(time.thread_time() - began)
    return statistics.median(seconds[30:])


# --- a save ----------------------------------------------------------------------------------------------------------


def print_save() -> None:
    import torch

    torch.set_num_threads(1)  # as in a rank
    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = {f"layer.{i}": torch.randn(SAVED_BYTES // 40, device=device) for i in range(10)}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rounds = [_save_round(Path(folder), number, state) for number in range(ROUNDS)]
    print(f"\n{'seconds for a GB':<44}{'wall':>8}{'CPU':>8}   rounds (wall)")
    for name in rounds[0]:
        walls = ", ".join(f"{of[name][0]:.2f}" for of in rounds)
        wall, cpu = _medians([of[name] for of in rounds])
        print(f"{name:<44}{wall:>8.2f}{cpu:>8.2f}   {walls}", flush=True)


def _save_round(folder: Path, step: int, state: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """The saver of this project in its own order, part by part."""
    import hashlib

    import torch

    from train.checkpoint.host import HostCopy
    from train.checkpoint.peers import ALONE
    from train.checkpoint.saver import Saver
    from train.checkpoint.tensor_hash import TensorHash
    from train.config import CheckpointConfig
    from train.fragment import Fragment

    global _saver
    _saver = _saver or Saver(folder, CheckpointConfig(), ALONE)
    saver, found = _saver, dict[str, tuple[float, float]]()
    fragments = [
        (Fragment(name, tuple(tensor.shape), None, 0, 0, 0, tensor.numel()), tensor) for name, tensor in state.items()
    ]

    def timed(name: str, action: Callable[[], Any]) -> Any:
        os.sync()
        wall, cpu = time.perf_counter(), time.process_time()
        result = action()
        per_gb = 1e9 / SAVED_BYTES
        found[name] = (time.perf_counter() - wall) * per_gb, (time.process_time() - cpu) * per_gb
        return result

    def torch_save() -> None:
        with (folder / "plain.pt").open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())

    timed("torch.save", lambda: torch.save(state, folder / "plain.pt"))
    timed("torch.save and fsync", torch_save)
    timed("a save: the run stands still", lambda: saver.save(step, (("master", *pair) for pair in fragments), {}))
    timed("a save: in the background", saver.wait)
    copy, hasher = HostCopy(), TensorHash()
    parts = [copy.take("master", *pair) for pair in fragments]
    pieces = [piece for part in parts for piece in part.pieces]
    timed("  of that, SHA-256", lambda: [hashlib.sha256(numbers.data) for _, numbers in pieces])
    timed("  of that, hashes of tensors", lambda: [hasher(*piece) for piece in pieces])
    return found


_saver: Any = None


if __name__ == "__main__":
    main()

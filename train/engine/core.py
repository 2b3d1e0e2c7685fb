"""The only door to DeepSpeed: a model and our settings become an engine of three verbs.

`start` joins the ranks, builds the model and initialises; `train_step` runs one optimizer step, which a judge may
refuse before the update; `logits` runs the model without gradients; `fragments` and `load` move the training state out
and in, each rank its own part of it. Beside this file: settings.py (our settings → DeepSpeed's dictionary), build.py
(the model's first weights), state.py (fragments), in_force.py (asked and in force), gate.py and exchange.py (what comes
between gradients and update), replicas.py, look.py and clock.py (which rank, which row, which layer), tally.py (what a
step's rows hold), norms.py and memory.py (what it tells now and then).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from train.account import NOTHING, Account
from train.batch import BatchPlan
from train.config import LossConfig
from train.engine.build import Initial, logical_name, materialise, on_meta, zero_3
from train.engine.clock import StepClock
from train.engine.exchange import Report, exchange, largest, on_host
from train.engine.gate import Gate
from train.engine.in_force import Row, effective_rows, refuse_differences
from train.engine.library import join_ranks, quiet
from train.engine.look import Look
from train.engine.memory import memory_in_use
from train.engine.norms import LayerNorms, Norms
from train.engine.replicas import Replicas
from train.engine.settings import deepspeed_settings
from train.engine.state import TrainingState
from train.engine.tally import BySource, Counts, count, means
from train.errors import EngineError
from train.fragment import Fragment
from train.mesh import Mesh
from train.muon import MuonAdamW
from train.optim import adamw, muon, set_learning_rate
from train.optimizer_config import OptimizerConfig, OptimizerKind
from train.parallel import RankGrid
from train.parallel_config import ParallelConfig, Precision
from train.sequence_parallel import whole_logits, whole_rows


@dataclass(frozen=True)
class StepResult:
    loss: float
    """nats per target, over all ranks and micro-batches of the step"""
    grad_norm: float
    """global norm before clipping; infinite if it is no number"""
    n_targets: int
    """predictions in the step, over all ranks: less than its tokens where rows are padded or documents masked"""
    batch_hash: str
    """of all ids and targets of the step: see `train/fingerprint.py`"""
    applied: bool
    """False if the judge has refused it, or its norm is no number: weights, moments and their counts are as before"""
    odd_ranks: tuple[int, ...]
    """that hold weights which are not those of the others"""
    odd_parameters: tuple[str, ...]
    """whose copies these are"""
    reports: tuple[Report, ...] = field(compare=False)
    """of all ranks"""
    account: Account = field(default=NOTHING, compare=False)
    """of the rows of all ranks, as far as it was given"""
    source_losses: tuple[float | None, ...] = field(default=(), compare=False)
    """nats per target of each source's rows; None for a source without any in this step"""
    norms: Norms | None = field(default=None, compare=False)
    """by layer, where they were asked for and the step was applied"""

    @property
    def stop(self) -> int:
        """What has told a rank to stop; 0 if nothing has."""
        return max(report.stop for report in self.reports)


Judge = Callable[[StepResult], bool]
"""Whether a step is to be applied; called on all ranks, with what is equal on all of them"""


def start(
    build: Callable[[], nn.Module],
    initial: Initial,
    *,
    plan: BatchPlan,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    loss: LossConfig,
    grid: RankGrid,
    device: str,
    mesh: Mesh,
    width_ratio: float = 1.0,
    ready: Callable[[nn.Module], None] = lambda module: None,
) -> "Engine":
    """Joins the ranks, builds the model, and hands it to DeepSpeed. Raises EngineError if what is in force is not what
    was asked.

    build: makes the module that DeepSpeed runs (`train/objective.py`). It is called with the meta device as default,
    and is the place where parallel layers are put into the model: a parameter that they cut carries tp_dim, tp_start,
    tp_stop and tp_whole_shape.
    initial: gives the whole first value of each parameter.
    mesh: needs process groups, so `join_ranks` comes first.
    width_ratio: m of muP, which scales learning rates (`train/optim.py`).
    ready: is called with the module when its parameters have their numbers, before DeepSpeed gets it.
    """
    _refuse(parallel, mesh)
    deepspeed = join_ranks(device)
    settings = deepspeed_settings(plan, optimizer, parallel)
    module = on_meta(build)
    with quiet():
        materialise(
            module,
            initial,
            device=device,
            dtype=torch.float32 if parallel.precision == Precision.fp32 else torch.bfloat16,
            share_out=zero_3(deepspeed, settings, mesh) if parallel.zero_stage == 3 else None,
        )
        ready(module)
        inner = _updating(module, optimizer, parallel, width_ratio, device)
        initialised, *_ = deepspeed.initialize(model=module, optimizer=inner, config=settings, mpu=mesh)
    engine = Engine(initialised, plan, optimizer, parallel, loss, grid, mesh, width_ratio, device)
    if parallel.precision == Precision.bf16:
        engine.set_masters(initial)
    refuse_differences(engine.effective_run())
    return engine


def _updating(
    module: nn.Module, optimizer: OptimizerConfig, parallel: ParallelConfig, width_ratio: float, device: str
) -> torch.optim.Optimizer:
    named = [(logical_name(name), parameter) for name, parameter in module.named_parameters()]
    match optimizer.kind:
        case OptimizerKind.adamw:
            return adamw(named, optimizer, width_ratio=width_ratio, device=device)
        case OptimizerKind.muon:
            return muon(named, optimizer, precision=parallel.precision, device=device)


def _refuse(parallel: ParallelConfig, mesh: Mesh) -> None:
    """What depends on the number of ranks. DeepSpeed takes a smaller hpZ for one that does not fit, and counts its
    groups from rank 0 of the world on, across tensor-parallel ranks."""
    problems = parallel.problems_on(mesh.get_data_parallel_world_size())
    if parallel.hpz_size is not None and mesh.get_tensor_model_parallel_world_size() > 1:
        problems.append("parallel.hpz_size does not go with tensor parallelism: DeepSpeed would mix slices; set null")
    if problems:
        raise EngineError("\n".join(problems))


class Engine:
    """One rank's share of the training state. Build it with `start`."""

    def __init__(
        self,
        deepspeed_engine: Any,
        plan: BatchPlan,
        optimizer: OptimizerConfig,
        parallel: ParallelConfig,
        loss: LossConfig,
        grid: RankGrid,
        mesh: Mesh,
        width_ratio: float,
        device: str,
    ):
        self._deepspeed = deepspeed_engine
        self._plan, self._optimizer, self._parallel, self._loss = plan, optimizer, parallel, loss
        self._grid, self._mesh = grid, mesh
        self.device = device
        self._width_ratio = width_ratio
        self._data_ranks = mesh.get_data_parallel_world_size()
        named = [(logical_name(name), parameter) for name, parameter in deepspeed_engine.module.named_parameters()]
        self._named = named
        self._state = TrainingState(deepspeed_engine.optimizer, named, tp_rank=mesh.tp_rank)
        self._replicas = Replicas(deepspeed_engine.optimizer, self._state, named, grid)
        if isinstance(inner := deepspeed_engine.optimizer.optimizer, MuonAdamW):
            inner.use_layout(self._state.flats, [(p.fragment, p.flat, p.offset) for p in self._state.pieces])
        self._gate = Gate(deepspeed_engine.optimizer.optimizer)
        self._norms = LayerNorms(self._state, [name for name, _ in named], grid.world_size, device)
        self._is_checked = False
        self.clock = StepClock()
        self.saw_segments = False
        self.progress: Callable[[], None] = lambda: None
        """called before each micro-batch and after its backward, so that who waits for others in an update has given a
        sign more than who is stuck before it; and before each batch without gradients"""

    def train_step(
        self,
        micro_batches: Iterable[tuple[Tensor, ...]],
        lr: float,
        judge: Judge = lambda result: True,
        *,
        stop: int = 0,
        compares_replicas: bool = False,
        look: Look | None = None,
        account: Account = NOTHING,
        measures: bool = False,
    ) -> StepResult:
        """Forward and backward over this rank's micro-batches, then one update with learning rate `lr`, if `judge`
        lets it.

        A micro-batch is (tokens, targets), or (tokens, targets, segments) where attention stays inside documents. The
        gradient is that of the mean over *all* targets of the step: each micro-batch contributes its sum of nats
        divided by the global count. DeepSpeed averages over its data-parallel ranks, which is undone here.

        stop: what has told this rank to stop, which all ranks learn from the result. compares_replicas: see
        `StepResult.odd_ranks`. account: of this rank's rows; the loss is told apart by their sources. measures: the
        step tells its norms by layer, and the memory in use.
        """
        set_learning_rate(self._deepspeed.optimizer.param_groups, lr)
        started = time.perf_counter()
        batches = list(micro_batches)
        data_seconds = time.perf_counter() - started
        self.saw_segments = any(len(batch) > 2 for batch in batches)
        counts = count(batches, account, self._grid, self._plan.sequences_per_rank, self.device)
        scale = self._data_ranks / counts.n_targets
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        by_source = BySource(account, self.device)
        result: list[StepResult] = []

        def decide() -> bool:
            mine = self._report(torch.cat([nats.view(1), by_source.nats]), stop, data_seconds, compares_replicas)
            if measures:
                mine = mine._replace(**memory_in_use(self.device))
            result.append(self._result(mine, counts, judge))
            return result[0].applied

        if measures:
            self._norms.begin()
        self._gate.ask(decide, self._norms.take_gradients if measures else None)
        for batch in batches:
            self.progress()
            losses, log_z = self._deepspeed(*(part.to(self.device, non_blocking=True) for part in batch))
            loss = losses.sum()
            nats += loss.detach()
            by_source.take(losses)
            if look is not None:
                look.take(losses, batch[1].to(self.device))
            if self._loss.z_loss:
                loss = loss + self._loss.z_loss * log_z.square().sum()
            self._deepspeed.backward(loss * scale, scale_wrt_gas=False)
            self.progress()
            self._deepspeed.step()  # updates on the last micro-batch only, through the gate
        if not result:  # DeepSpeed found the norm to be no number, and has not come to the update
            decide()
        if not self._is_checked and result[0].applied:
            refuse_differences(self.effective_run())  # what the first step has made of it
            self._is_checked = True
        if measures and result[0].applied:
            return replace(result[0], norms=self._norms.norms(result[0].grad_norm))
        return result[0]

    def _report(self, nats: Tensor, stop: int, data_seconds: float, compares_replicas: bool) -> Report:
        """nats: (1 + sources,) of all rows, and of each source's."""
        norm = self._deepspeed.optimizer._global_grad_norm
        norm = torch.as_tensor(math.inf if norm is None else norm, dtype=torch.float64, device=self.device)
        (norm, own_nats, *by_source), bit_sums = on_host(
            torch.cat([norm.reshape(1), nats]), self._replicas.bit_sums() if compares_replicas else None
        )
        norm = norm if math.isfinite(norm) else math.inf
        if self._grid.tp_rank:  # the first of a tensor-parallel group answers for what all of them have computed
            own_nats, by_source = 0.0, [0.0] * len(by_source)
        communication_seconds, seconds = self.clock.read()
        return Report(
            own_nats, norm, stop, data_seconds, communication_seconds, seconds, tuple(bit_sums), tuple(by_source)
        )

    def _result(self, mine: Report, counts: Counts, judge: Judge) -> StepResult:
        """What all ranks report together, with the verdict. A collective."""
        reports = exchange(mine, self._grid.world_size, self.device)
        loss = math.fsum(report.nats for report in reports) / counts.n_targets if _finite(reports) else math.nan
        norm = max(report.grad_norm for report in reports)
        odd = tuple(self._replicas.odd_ranks([report.bit_sums for report in reports]))
        parameters = tuple(self._replicas.odd_parameters()) if odd else ()  # now: an update would make the copies anew
        result = StepResult(
            loss,
            norm,
            counts.n_targets,
            counts.batch_hash,
            True,
            odd,
            parameters,
            tuple(reports),
            counts.account,
            means([report.source_nats for report in reports], counts.source_targets),
        )
        applied = math.isfinite(norm) and judge(result)
        return result if applied else replace(result, applied=False)

    def look(self) -> Look:
        """To be entered around a `train_step`, and given to it."""
        return Look(self._named, self._grid, self._plan.global_batch_size, self.device)

    def refresh(self) -> None:
        """Sets the weights of forward, on all ranks, to the rounded masters: what they should be already. A
        collective."""
        self._state.refresh()

    def losses(self, tokens: Tensor, targets: Tensor, *segments: Tensor) -> Tensor:
        """(B, T) int64 each, and segments if there are any, to the nats of each target (B, T) fp32, without gradients.

        Every rank must call it equally often.
        """
        with self._looking():
            losses, _ = self._deepspeed(*(part.to(self.device) for part in (tokens, targets, *segments)))
            return whole_rows(losses, self._mesh)

    def logits(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) int64 to (B, T, V), without gradients. Every rank must call it equally often, with the same rows."""

        def forward(tokens: Tensor, segments: Tensor | None) -> Tensor:
            return self._deepspeed(tokens, None, segments)

        with self._looking():
            segments = None if segments is None else segments.to(self.device)
            return whole_logits(forward, self._mesh, tokens.to(self.device), segments)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        self.progress()
        self._deepspeed.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._deepspeed.train()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        if self._grid.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def sum_over_rows(self, values: Tensor) -> Tensor:
        """Over one rank of those that are given the same rows."""
        is_one = self._grid.tp_rank == self._grid.sp_rank == 0
        return self.sum_over_ranks(values if is_one else torch.zeros_like(values))

    def from_all_ranks(self, word: str) -> list[str]:
        """The words of all ranks, in their order. A collective."""
        words: list[Any] = [word]
        if self._grid.world_size > 1:
            words = [None] * self._grid.world_size
            torch.distributed.all_gather_object(words, word)
        return words

    @property
    def module(self) -> Any:
        """The module that `build` made."""
        return self._deepspeed.module

    def barrier(self) -> None:
        if self._grid.world_size > 1:
            torch.distributed.barrier()

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers, on every rank. A collective."""
        return largest(number, self.device) if self._grid.world_size > 1 else number

    def effective_run(self) -> list[Row]:
        """What was asked and what is in force, row by row. A collective."""
        return effective_rows(
            self._deepspeed,
            self._state,
            self._plan,
            self._optimizer,
            self._parallel,
            data_ranks=self._data_ranks,
            width_ratio=self._width_ratio,
            device=self.device,
        )

    # --- the training state ------------------------------------------------------------------------------------------

    def fragments(self) -> Iterator[tuple[str, Fragment, Tensor]]:
        """(kind, where, flat view on the device) of what this rank answers for. Over all ranks each number comes once.

        Views: copy them before the next step. Moments are zeros before the first.
        """
        return self._state.fragments()

    def set_masters(self, initial: Initial) -> None:
        """Gives fp32 masters the first values that forward has rounded."""
        self._state.set_masters(initial)

    def expected(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(kind, name, whole shape) of everything that all ranks together hold, the same on each."""
        return self._state.expected()

    def load(self, read: Callable[[str, Fragment], Tensor], step: int) -> None:
        """Asks `read` for everything that this rank holds, and sets the weights of forward. A collective.

        read: the numbers of a fragment, flat, of any float type and device. step: optimizer updates done so far.
        """
        self._state.load(read, step)


def _finite(reports: Sequence[Report]) -> bool:
    return all(math.isfinite(report.nats) for report in reports)

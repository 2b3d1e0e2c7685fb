"""The only door to DeepSpeed: our settings become its dictionary, and its engine becomes four verbs of ours.

`start` initialises processes and engine; `train_step` runs one optimizer step; `logits` runs the model without
gradients;
`read_state` and `write_state` move the optimizer's fp32 tensors in and out by parameter name, whole, whatever the ZeRO
stage and the number of ranks. Everything private of DeepSpeed that the project touches is in this file, which therefore
insists on the version it was measured with.
"""

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.loss import IGNORED_TARGET, cross_entropy
from model.transformer import Transformer
from train.batch import BatchPlan
from train.config import OptimizerConfig, ParallelConfig, Precision
from train.fingerprint import fingerprint, from_pieces, pieces_of
from train.optim import adamw, set_learning_rate
from train.parallel import RankGrid

DEEPSPEED_VERSION = "0.19.8"
STATE_KINDS = ("master", "exp_avg", "exp_avg_sq")
"""the three fp32 tensors that a checkpoint holds for each parameter: its value and the two Adam moments"""


class EngineError(RuntimeError):
    """What was asked for and what DeepSpeed does are not the same thing."""

    exit_code = 2


class NumericsError(Exception):
    """Loss, gradients or weights are no longer numbers. Nothing after the last checkpoint was kept."""

    exit_code = 5


class StateError(Exception):
    """A checkpoint's tensors are not those of this model."""

    exit_code = 4


@dataclass(frozen=True)
class StepResult:
    loss: float
    """nats per target, over all ranks and micro-batches of the step"""
    grad_norm: float
    """global norm before clipping; infinite or NaN if the step was not applied"""
    n_targets: int
    """predictions in the step, over all ranks: less than its tokens where rows are padded or documents masked"""
    batch_hash: str
    """of all ids and targets of the step: see `train/fingerprint.py`"""


class Engine:
    """One rank's share of the training state. Build it with `start`."""

    def __init__(self, deepspeed_engine: Any, model: Transformer, plan: BatchPlan, grid: RankGrid, device: str):
        self._deepspeed = deepspeed_engine
        self._model = model
        self._plan = plan
        self._grid = grid
        self.device = device

    def train_step(self, micro_batches: Iterable[tuple[Tensor, ...]], lr: float) -> StepResult:
        """Forward and backward over this rank's micro-batches, then one update with learning rate `lr`.

        A micro-batch is (tokens, targets), or (tokens, targets, segments) where attention stays inside documents. The
        gradient is that of the mean over *all* targets of the step: each micro-batch contributes its sum of nats
        divided by the global count. DeepSpeed averages over ranks, which is undone here.
        """
        set_learning_rate(self._deepspeed.optimizer.param_groups, lr)
        batches = list(micro_batches)
        n_targets, batch_hash = self._count(batches)
        scale = self._grid.dp_size / n_targets
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            tokens, targets, *segments = (part.to(self.device, non_blocking=True) for part in batch)
            loss, _ = cross_entropy(self._deepspeed(tokens, *segments), targets)
            self._deepspeed.backward(loss * scale, scale_wrt_gas=False)
            nats += loss.detach()
            self._deepspeed.step()  # updates on the last micro-batch only
        norm = self._deepspeed.get_global_grad_norm()
        total = float(self.sum_over_ranks(nats))
        return StepResult(total / n_targets, math.nan if norm is None else float(norm), n_targets, batch_hash)

    def _count(self, batches: list[tuple[Tensor, ...]]) -> tuple[int, str]:
        """(targets, hash) of the whole step. A collective, in integers, so it is exact."""
        targets = sum(int((batch[1] != IGNORED_TARGET).sum()) for batch in batches)
        mine = fingerprint(batches, self._grid.dp_rank * self._plan.sequences_per_rank)
        sums = self.sum_over_ranks(torch.tensor([targets, *pieces_of(mine)], device=self.device)).tolist()
        if sums[0] == 0:
            raise NumericsError("a step holds no prediction at all: every document in it is a single token")
        return sums[0], from_pieces(sums[1:])

    def logits(self, tokens: Tensor, *segments: Tensor) -> Tensor:
        """(B, T) int64, and segments if there are any, to (B, T, V), without gradients.

        Every rank must call it equally often (ZeRO-3 gathers weights).
        """
        self._deepspeed.eval()
        try:
            with torch.no_grad():
                return self._deepspeed(*(part.to(self.device) for part in (tokens, *segments)))
        finally:
            self._deepspeed.train()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        if self._grid.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self._grid.world_size > 1:
            torch.distributed.barrier()

    def any_rank(self, condition: bool) -> bool:
        """True on every rank if it is true on one."""
        flag = torch.tensor(float(condition), device=self.device)
        return bool(self.sum_over_ranks(flag) > 0)

    # --- the training state, by parameter name ---------------------------------------------------------------------

    def read_state(self) -> Iterator[tuple[str, str, Tensor]]:
        """(kind, name, whole fp32 tensor on the CPU) for each state kind and parameter. A collective: all ranks
        iterate.

        Only valid after a first step: before it there are no moments.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link_states()
        for kind in STATE_KINDS:
            for name, parameter in self._model.named_parameters():
                if kind == "master":
                    tensor = safe_get_full_fp32_param(parameter)
                else:
                    tensor = safe_get_full_optimizer_state(parameter, kind)
                yield kind, name, _required(tensor, name).reshape(_true_shape(parameter)).cpu()

    def write_state(self, states: Iterable[tuple[str, str, Tensor]], step: int) -> None:
        """Puts whole fp32 tensors back, the weights included: the inverse of `read_state`. A collective.

        step: optimizer updates done so far (Adam's bias correction depends on it).
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._create_states(step)
        parameters = dict(self._model.named_parameters())
        missing = {(kind, name) for kind in STATE_KINDS for name in parameters}
        for kind, name, tensor in states:
            if (kind, name) not in missing or tensor.shape != _true_shape(parameters[name]):
                raise StateError(
                    f"the checkpoint's {kind} of {name}, {tuple(tensor.shape)}, has no place in this model"
                )
            missing.remove((kind, name))
            parameter, tensor = parameters[name], tensor.to(self.device)
            if kind == "master":
                self._set_weight(parameter, tensor)
                safe_set_full_fp32_param(parameter, tensor)
            else:
                safe_set_full_optimizer_state(parameter, tensor, kind)
        if missing:
            kind, name = min(missing)
            raise StateError(
                f"the checkpoint lacks {len(missing)} tensors of this model, the {kind} of {name} among them"
            )

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """The weight that forward uses: the rounded master."""
        if not hasattr(parameter, "ds_id"):
            parameter.data.copy_(value)
            return
        from deepspeed import zero

        with zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)

    def _flat_parameters(self) -> list[Tensor]:
        """The flat fp32 tensors that the inner AdamW really updates on this rank."""
        optimizer = self._deepspeed.optimizer
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
            return list(optimizer.fp32_partitioned_groups_flat)
        if hasattr(optimizer, "single_partition_of_fp32_groups"):  # stages 1 and 2
            return list(optimizer.single_partition_of_fp32_groups)
        return list(optimizer.fp32_groups_flat_partition)  # BF16_Optimizer: stage 1 in bf16 with fp32 gradient sums

    def _create_states(self, step: int) -> None:
        inner = self._deepspeed.optimizer.optimizer
        on_device = inner.defaults.get("fused") or inner.defaults.get("capturable")
        for flat in self._flat_parameters():
            inner.state[flat] = {
                "step": torch.tensor(float(step), device=flat.device if on_device else "cpu"),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        self._link_states()

    def _link_states(self) -> None:
        """DeepSpeed links moments to parameters after the first *group's* first step, so later groups miss theirs."""
        optimizer = self._deepspeed.optimizer
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()


def start(
    model: Transformer,
    *,
    plan: BatchPlan,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    grid: RankGrid,
    device: str,
) -> Engine:
    """Joins the ranks and hands the model to DeepSpeed. Raises EngineError if what is in force is not what was
    asked.
    """
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed"
    )  # DeepSpeed's calls, not ours
    deepspeed = _import_deepspeed(device)
    settings = deepspeed_settings(plan, optimizer, parallel)
    with _quiet():
        deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)
        model = model.to(device)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=adamw(model, optimizer, fused=device != "cpu"), config=settings
        )
    _check_in_force(engine, plan, optimizer, parallel)
    return Engine(engine, model, plan, grid, device)


def deepspeed_settings(plan: BatchPlan, optimizer: OptimizerConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """The dictionary for DeepSpeed, every key of it chosen here: it ignores misspelled ones and clips at 1.0
    unasked.
    """
    bf16 = parallel.precision == Precision.bf16
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_clipping": optimizer.max_grad_norm,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": parallel.zero_stage,
            "reduce_bucket_size": parallel.bucket_elements,
            "allgather_bucket_size": parallel.bucket_elements,
        },
        "bf16": {"enabled": bf16},
    }
    if bf16:
        # Gradients summed in fp32: more exact and half the host time of DeepSpeed's default path.
        settings["bf16"]["check_grad_overflow"] = False
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _check_in_force(engine: Any, plan: BatchPlan, optimizer: OptimizerConfig, parallel: ParallelConfig) -> None:
    dtype = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}[parallel.precision]
    pairs = {
        "parallel.zero_stage": (parallel.zero_stage, engine.zero_optimization_stage()),
        "batch.micro_batch_size": (plan.micro_batch_size, engine.train_micro_batch_size_per_gpu()),
        "gradient_accumulation_steps": (plan.gradient_accumulation_steps, engine.gradient_accumulation_steps()),
        "batch.global_batch_size": (plan.global_batch_size, engine.train_batch_size()),
        "optimizer.max_grad_norm": (optimizer.max_grad_norm, engine.gradient_clipping()),
        "clipping inside the optimizer": (optimizer.max_grad_norm, engine.optimizer.clip_grad),
        "parallel.precision": ({dtype}, {parameter.dtype for parameter in engine.module.parameters()}),
        "optimizer": ("AdamW", type(engine.optimizer.optimizer).__name__),
        "parameter groups that decay": (
            sorted({0.0, optimizer.weight_decay}),
            sorted({group["weight_decay"] for group in engine.optimizer.optimizer.param_groups}),
        ),
    }
    different = [f"{key}: asked {asked}, in force {used}" for key, (asked, used) in pairs.items() if asked != used]
    if different:
        raise EngineError("DeepSpeed does not do what the configuration asks:\n  " + "\n  ".join(different))


def _import_deepspeed(device: str) -> Any:
    with _quiet():
        import deepspeed
        import deepspeed.ops
    if deepspeed.__version__ != DEEPSPEED_VERSION:
        raise EngineError(
            f"deepspeed {deepspeed.__version__} is installed; this project is made for {DEEPSPEED_VERSION}"
        )
    if device == "cpu":
        # Only inference uses this op; compiling it takes minutes, needs a compiler, and a killed build leaves a lock on
        # which every later start hangs. Marked incompatible, DeepSpeed falls back to gloo.
        table = getattr(deepspeed.ops, "__compatible_ops__", None)
        if table is None or "deepspeed_shm_comm" not in table:
            raise EngineError("deepspeed no longer lists its shared-memory op where this version did")
        table["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints memory figures and warns about torch names it uses; neither tells our users anything.

    What it printed is shown after all if it fails.
    """
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except BaseException:
        sys.stderr.write(printed.getvalue())
        raise


def _true_shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _required(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise EngineError(f"DeepSpeed holds no fp32 state for parameter {name}")
    return tensor

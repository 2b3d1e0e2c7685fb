"""What a run will need and cost, worked out before it starts: pure arithmetic on the configuration. No torch.

`make_plan` is used by `launch plan` and printed (and saved as plan.json) by every run at its start.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from model.arithmetic import activation_bytes, count_parameters, flops_per_token, logit_bytes, state_bytes
from model.config import ModelConfig
from train.batch import BatchPlan
from train.config import ClusterConfig, TrainConfig
from train.optimizer_config import OptimizerKind
from train.parallel_config import AttentionKernel, ParallelConfig, Precision

GIB = 2**30

PEAK_FLOPS_PER_SECOND = {
    # dense bf16 on tensor cores, and fp32 outside them; from the vendor's data sheets
    "H200": (989.4e12, 66.9e12),
    "H100 PCIe": (756.0e12, 51.2e12),
    "H100": (989.4e12, 66.9e12),
    "A100": (312.0e12, 19.5e12),
}


def published_peak(device_name: str, precision: Precision) -> tuple[float, str] | None:
    """(dense FLOP/s in this precision, where the figure comes from) for a GPU whose name is known; else None."""
    for key, (bf16, fp32) in PEAK_FLOPS_PER_SECOND.items():
        if key in device_name:
            return (fp32 if precision == Precision.fp32 else bf16), f"data sheet of {key}, dense {precision}"
    return None


@dataclass(frozen=True)
class Machine:
    """The devices at hand, as found or as configured."""

    device: str
    """cpu, or the name of the GPU"""
    n_devices: int
    peak_flops_per_second: float
    """dense, one device, in the run's precision"""
    peak_source: str
    memory_bytes: int | None
    """of one device"""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device, by part."""

    weights: int
    second_copy: int
    """of the weights, which hpZ keeps inside a node"""
    gathered: int
    """weights of others that ZeRO 3 holds at the time, at the most"""
    gradients: int
    """sums of them; and those of one backward besides, where DeepSpeed keeps them from one forward to the next"""
    optimizer: int
    activations: int
    logits: int
    buckets: int
    """buffers of collectives: of gradients, and of the residual stream gathered by tensor parallelism"""
    update: int
    """copies of gradients while they are reduced and applied, when activations are gone"""
    reserve: int
    """what no allocator counts, on a GPU: the CUDA context, NCCL, fragments"""

    @property
    def total(self) -> int:
        """In the fuller of two moments: the last forward before its backward, or the update."""
        lasting = self.weights + self.second_copy + self.gradients + self.optimizer + self.reserve
        return lasting + max(self.gathered + self.activations + self.logits + self.buckets, self.update)


@dataclass(frozen=True)
class Plan:
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int
    flops_full_per_token: int
    flops_causal_per_token: int
    total_steps: int
    tokens_asked: int
    tokens_planned: int
    tokens_per_step: int
    train_tokens: int | None
    """tokens of the train split that the run may see; None before the data is prepared"""
    memory: MemoryPlan
    cluster: str
    machine: Machine
    expected_mfu: float
    mfu_is: str
    """assumed, as cluster.expected_mfu; or predicted, from the time of a step"""
    seconds: float
    device_hours: float
    energy_kwh: float | None
    """of the devices at the power that they may draw; nothing else of the machine"""
    cost_usd: float | None
    price: dict[str, Any]

    @property
    def flops_full(self) -> int:
        return self.flops_full_per_token * self.tokens_planned

    @property
    def flops_causal(self) -> int:
        return self.flops_causal_per_token * self.tokens_planned

    @property
    def epochs(self) -> float | None:
        return self.tokens_planned / self.train_tokens if self.train_tokens else None

    @property
    def fits(self) -> bool | None:
        return None if self.machine.memory_bytes is None else self.memory.total <= self.machine.memory_bytes

    def to_tree(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in ("flops_full", "flops_causal", "epochs", "fits")}
        return {"schema_version": 1, **asdict(self), **derived}


def make_plan(
    config: TrainConfig,
    batch: BatchPlan,
    machine: Machine,
    train_tokens: int | None,
    step_seconds: float | None = None,
) -> Plan:
    """step_seconds: of a step, if it was predicted; None means that cluster.expected_mfu decides."""
    counts = count_parameters(config.model)
    full, causal = flops_per_token(config.model, config.data.seq_len)
    peak = machine.peak_flops_per_second * machine.n_devices
    seconds = causal * batch.total_tokens / (peak * config.cluster.expected_mfu)
    if step_seconds is not None:
        seconds = batch.total_steps * step_seconds
    watts = config.cluster.watts
    device_hours = seconds * machine.n_devices / 3600
    usd = config.cluster.usd_per_device_hour
    return Plan(
        n_params=counts.n_params,
        n_params_matmul=counts.n_params_matmul,
        n_params_non_embedding=counts.n_params_non_embedding,
        flops_full_per_token=full,
        flops_causal_per_token=causal,
        total_steps=batch.total_steps,
        tokens_asked=config.total_tokens,
        tokens_planned=batch.total_tokens,
        tokens_per_step=batch.tokens_per_step,
        train_tokens=train_tokens,
        memory=_memory(config, batch, machine),
        cluster=config.cluster.name,
        machine=machine,
        expected_mfu=causal * batch.total_tokens / (peak * seconds) if seconds else config.cluster.expected_mfu,
        mfu_is="assumed" if step_seconds is None else "predicted",
        seconds=seconds,
        device_hours=device_hours,
        energy_kwh=None if watts is None else device_hours * watts / 1000,
        cost_usd=None if usd is None else usd * device_hours,
        price={"usd_per_device_hour": usd, "rule": _rule(config.cluster), "date": config.cluster.price_date},
    )


def _rule(cluster: ClusterConfig) -> str:
    """Of a price without a rule, that it has none: the default speaks of the price."""
    is_silent = cluster.usd_per_device_hour is not None and cluster.price_rule == ClusterConfig.price_rule
    return "cluster.price_rule is not given" if is_silent else cluster.price_rule


RESERVE_BYTES = 2 * 2**30
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters, which we leave at its default: so many gathered weights may be kept"""
REDUCED_AT_ONCE = 500_000_000
"""numbers that DeepSpeed joins into one fp32 tensor, and that into one of bf16, where it reduces fp32 sums at ZeRO 1"""
UPDATED_AT_ONCE = 1_000_000_000
"""DeepSpeed's sub_group_size, which we leave at its default: so many numbers are updated at a time at ZeRO 3"""


def _memory(config: TrainConfig, batch: BatchPlan, machine: Machine) -> MemoryPlan:
    """Of one rank. Gradients count as there when activations are at their most, though the last ones come as these
    go; offloaded ones too, though they leave bucket by bucket."""
    parallel, whole = config.parallel, config.model
    tp, n_shards = parallel.tp_size, batch.dp_size * parallel.sp_size
    element = 4 if parallel.precision == Precision.fp32 else 2
    counts = count_parameters(whole)
    n_params = counts.of_rank(tp)
    hidden = counts.n_params_hidden // tp if config.optimizer.kind == OptimizerKind.muon else 0
    state = state_bytes(n_params, parallel.precision, parallel.zero_stage, n_shards, one_moment=hidden)
    n_positions = batch.micro_batch_size * batch.seq_len // parallel.sp_size
    own = own_network(whole, tp)
    activations = activation_bytes(
        own,
        batch.micro_batch_size,
        batch.seq_len,
        element,
        masked=config.data.mask_documents,
        recompute=parallel.activation_checkpointing,
        by_hand=parallel.attention_kernel == AttentionKernel.math,
        norm_shards=tp if parallel.sequence_parallel_norms else 1,
        sp_size=parallel.sp_size,
    )
    largest = max(whole.vocab_size, whole.d_ff) * whole.d_model // tp
    arriving, update = _gradients_in_the_way(parallel, n_params, n_shards)
    return MemoryPlan(
        weights=state.weights,
        second_copy=element * n_params // parallel.hpz_size if parallel.hpz_size else 0,
        gathered=element * min(n_params, max(LIVE_PARAMETERS, largest))
        if parallel.zero_stage == 3 and n_shards > 1
        else 0,
        gradients=state.gradients + (arriving if batch.gradient_accumulation_steps > 1 else 0),
        optimizer=0 if parallel.offload_optimizer else state.optimizer,
        activations=activations,
        logits=logit_bytes(own, min(n_positions, config.loss.chunk_tokens or n_positions), element),
        buckets=element * _waiting(parallel, n_params, largest)
        + (element * n_positions * whole.d_model if tp > 1 else 0),
        update=update + (arriving if batch.gradient_accumulation_steps == 1 else 0),
        reserve=0 if machine.device.startswith("CPU") else RESERVE_BYTES,
    )


def own_network(whole: ModelConfig, tp: int) -> ModelConfig:
    """The network as one tensor-parallel rank has it."""
    return replace(
        whole,
        vocab_size=-(-whole.vocab_size // tp),
        n_heads=-(-whole.n_heads // tp),
        n_kv_heads=-(-whole.n_kv_heads // tp),
        head_dim=whole.head_width,
        d_ff=-(-whole.d_ff // tp),
    )


def _gradients_in_the_way(parallel: ParallelConfig, n_params: int, n_shards: int) -> tuple[int, int]:
    """(bytes of gradients beside their sums from the first backward of a step to its update; what reducing and applying
    them needs besides), as DeepSpeed 0.19.8 was measured to hold.

    ZeRO 1 with fp32 sums keeps the bf16 gradients too, and reduces the sums in bf16: a joined copy in each dtype, on
    one rank as well. Elsewhere the update copies the rank's share once, but at ZeRO 2 with fp32 sums.
    """
    shard = -(-n_params // n_shards)
    match parallel.precision, parallel.zero_stage:
        case Precision.bf16, 1 if not parallel.offload_optimizer:
            return 2 * n_params, (4 + 2) * min(n_params, REDUCED_AT_ONCE)
        case Precision.bf16, 1 | 2:
            return 0, 0
        case precision, stage:
            width = 2 if precision == Precision.bf16_states else 4
            return 0, width * (min(shard, UPDATED_AT_ONCE) if stage == 3 else shard)


def _waiting(parallel: ParallelConfig, n_params: int, largest: int) -> int:
    """Numbers in a bucket of gradients, and in those that wait for it; one that is larger than a bucket goes alone.
    ZeRO 1 with fp32 sums has none."""
    if parallel.precision == Precision.bf16 and parallel.zero_stage == 1:
        return 0
    return min(parallel.bucket_elements, n_params) + min(max(parallel.bucket_elements, largest), n_params)


def render(plan: Plan) -> str:
    """The plan as the table that a person reads when a run starts."""
    return "\n".join(f"  {name:<11} {text}" for name, text in summary_rows(plan).items())


def summary_rows(plan: Plan) -> dict[str, str]:
    """One line for each question."""
    memory, machine = plan.memory, plan.machine
    used = (
        f"{plan.tokens_planned:,}"
        if plan.tokens_planned == plan.tokens_asked
        else f"{plan.tokens_asked:,} asked, {plan.tokens_planned:,} used (whole steps)"
    )
    steps = f"{plan.total_steps:,} step{'s' if plan.total_steps > 1 else ''} of {plan.tokens_per_step:,}"
    epochs = "data not prepared yet" if plan.epochs is None else f"{plan.epochs:.3g} epochs of {plan.train_tokens:,}"
    parts = ", ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in asdict(memory).items() if value)
    room = "" if machine.memory_bytes is None else f" of {size(machine.memory_bytes)}"
    verdict = {True: ": fits", False: ": DOES NOT FIT", None: ""}[plan.fits]
    cost = (
        plan.price["rule"]
        if plan.cost_usd is None
        else f"{plan.cost_usd:,.2f} USD ({plan.price['rule']}, {plan.price['date']})"
    )
    rows = {
        "parameters": f"{plan.n_params:,} stored, {plan.n_params_matmul:,} in matmuls, "
                      f"{plan.n_params_non_embedding:,} without embedding",
        "tokens": f"{used}; {steps}; {epochs}",
        "compute": f"{plan.flops_causal:.3g} FLOPs causal, {plan.flops_full:.3g} full",
        "memory": f"{size(memory.total)} per device{room}{verdict} ({parts})",
        "machine": f"{plan.cluster}: {machine.n_devices} x {machine.device}, "
                   f"{machine.peak_flops_per_second / 1e12:.3g} TFLOP/s ({machine.peak_source})",
        "time": f"{duration(plan.seconds)} at an MFU of {plan.expected_mfu:.0%} ({plan.mfu_is}), "
                f"{counted(plan.device_hours)} device-hours",
        "cost": cost,
    }  # fmt: skip
    if plan.energy_kwh is not None:
        rows["energy"] = f"{counted(plan.energy_kwh)} kWh at most, of the GPUs alone"
    return rows


def counted(value: float) -> str:
    """Three digits at the least, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"

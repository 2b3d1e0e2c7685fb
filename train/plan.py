"""What a run will need and cost, worked out before it starts: pure arithmetic on the configuration. No torch.

`make_plan` is used by `launch plan` and printed (and saved as plan.json) by every run at its start.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from model.arithmetic import activation_bytes, count_parameters, flops_per_token, logit_bytes, state_bytes
from train.batch import BatchPlan
from train.config import TrainConfig
from train.parallel_config import Precision

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
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buckets: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


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
    """tokens of the train split; None before the data is prepared"""
    memory: MemoryPlan
    cluster: str
    machine: Machine
    expected_mfu: float
    seconds: float
    device_hours: float
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


def make_plan(config: TrainConfig, batch: BatchPlan, machine: Machine, train_tokens: int | None) -> Plan:
    counts = count_parameters(config.model)
    full, causal = flops_per_token(config.model, config.data.seq_len)
    rate = machine.peak_flops_per_second * machine.n_devices * config.cluster.expected_mfu
    seconds = causal * batch.total_tokens / rate
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
        memory=_memory(config, batch),
        cluster=config.cluster.name,
        machine=machine,
        expected_mfu=config.cluster.expected_mfu,
        seconds=seconds,
        device_hours=device_hours,
        cost_usd=None if usd is None else usd * device_hours,
        price={"usd_per_device_hour": usd, "rule": config.cluster.price_rule, "date": config.cluster.price_date},
    )


def _memory(config: TrainConfig, batch: BatchPlan) -> MemoryPlan:
    """Of one rank. Counted whole, though sequence-parallel norms share it out: what norms keep. Not counted: the
    buffers of collectives, the second copy of weights of hpZ, and that Muon has one moment, not two."""
    parallel, whole = config.parallel, config.model
    tp, n_shards = parallel.tp_size, batch.dp_size * parallel.sp_size
    element = 4 if parallel.precision == Precision.fp32 else 2
    n_params = count_parameters(whole).of_rank(tp)
    state = state_bytes(n_params, parallel.precision, parallel.zero_stage, n_shards)
    own = replace(  # the network as one tensor-parallel rank has it
        whole,
        vocab_size=-(-whole.vocab_size // tp),
        n_heads=-(-whole.n_heads // tp),
        n_kv_heads=-(-whole.n_kv_heads // tp),
        head_dim=whole.head_width,
        d_ff=-(-whole.d_ff // tp),
    )
    activations = activation_bytes(
        own,
        batch.micro_batch_size,
        batch.seq_len,
        element,
        masked=config.data.mask_documents,
        recompute=parallel.activation_checkpointing,
    )
    n_positions = batch.micro_batch_size * batch.seq_len // parallel.sp_size
    buckets = 0 if n_shards == 1 else 2 * 4 * min(parallel.bucket_elements, n_params)
    return MemoryPlan(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=0 if parallel.offload_optimizer else state.optimizer,
        activations=activations // parallel.sp_size,
        logits=logit_bytes(own, min(n_positions, config.loss.chunk_tokens or n_positions), element),
        buckets=buckets,
    )


def render(plan: Plan) -> str:
    """The plan as the table that a person reads."""
    memory, machine = plan.memory, plan.machine
    used = (
        f"{plan.tokens_planned:,}"
        if plan.tokens_planned == plan.tokens_asked
        else f"{plan.tokens_asked:,} asked, {plan.tokens_planned:,} used (whole steps)"
    )
    epochs = "data not prepared yet" if plan.epochs is None else f"{plan.epochs:.3g} epochs of {plan.train_tokens:,}"
    parts = ", ".join(f"{name} {_size(value)}" for name, value in asdict(memory).items() if value)
    room = "" if machine.memory_bytes is None else f" of {_size(machine.memory_bytes)}"
    verdict = {True: ": fits", False: ": DOES NOT FIT", None: ""}[plan.fits]
    cost = (
        plan.price["rule"]
        if plan.cost_usd is None
        else f"{plan.cost_usd:,.2f} USD ({plan.price['rule']}, {plan.price['date']})"
    )
    rows = [
        ("parameters", f"{plan.n_params:,} stored, {plan.n_params_matmul:,} in matmuls, "
                       f"{plan.n_params_non_embedding:,} without embedding"),
        ("tokens", f"{used}; {plan.total_steps:,} steps of {plan.tokens_per_step:,}; {epochs}"),
        ("compute", f"{plan.flops_causal:.3g} FLOPs causal, {plan.flops_full:.3g} full"),
        ("memory", f"{_size(memory.total)} per device{room}{verdict} ({parts})"),
        ("machine", f"{plan.cluster}: {machine.n_devices} x {machine.device}, "
                    f"{machine.peak_flops_per_second / 1e12:.3g} TFLOP/s ({machine.peak_source})"),
        ("time", f"{_duration(plan.seconds)} at an MFU of {plan.expected_mfu:.0%} (assumed), "
                 f"{plan.device_hours:.3g} device-hours"),
        ("cost", cost),
    ]  # fmt: skip
    return "\n".join(f"  {name:<11} {text}" for name, text in rows)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"

"""Every setting of a training run: type, default, unit, and the rules that a value must keep. Imports no torch.

YAML under conf/ holds choices and differences only; each default lives here, once.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from model.config import Init, ModelConfig
from train.data_config import DataConfig
from train.health_config import HealthConfig, Policy
from train.optimizer_config import OptimizerConfig, OptimizerKind, Schedule, WsdSchedule
from train.parallel_config import ParallelConfig


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class RunConfig:
    name: str
    """the run's folder below `folder`; the same name and configuration again continues the run"""
    folder: str = "runs"
    seed: int = 0
    """decides the initial weights and the order of the data"""
    stop_at_step: int | None = None
    """stop after this many steps, with a checkpoint, as if the time were up; null means go on to the end"""
    start_from: str | None = None
    """a folder of weights (`python -m train.convert`) that the first step starts from; null means they are drawn"""
    branch_from: str | None = None
    """the folder of a run that was the same so far, but for its length and the end of its schedule: goes on from its
    newest checkpoint with equal learning rates until there, and ends as it would have alone; see train/branch.py"""
    time_limit_seconds: float | None = None
    """save and stop in time for this, counted from the start of the process; null means the limit of the Slurm job, if
    it is one"""
    lease_seconds: float = 20.0
    """a run folder whose holder, on another machine, has given no sign of life for so long may be taken over"""
    max_idle_starts: int = 5
    """starts in a row that reached no new step, after which the next one ends at once with exit code 6"""
    labels: dict[str, str] = field(default_factory=dict[str, str])
    """words of your own for tables of many runs, such as {family: transformer}; kept in summary.json"""

    def problems(self) -> list[str]:
        found: list[str] = []
        plain = all(c.isascii() and (c.isalnum() or c in "._-") for c in self.name)
        if not plain or not 1 <= len(self.name) <= 64 or self.name.startswith("."):
            found.append(
                f"run.name={self.name!r} names a folder: 1 to 64 of letters, digits, '.', '_', '-', not '.' first"
            )
        if not self.folder:
            found.append("run.folder is empty: name the folder that is to hold the runs; runs is the default")
        if self.seed < 0:
            found.append(f"run.seed={self.seed} must be 0 or more")
        if self.stop_at_step is not None and self.stop_at_step < 1:
            found.append(f"run.stop_at_step={self.stop_at_step} must be at least 1, or null")
        if self.time_limit_seconds is not None and self.time_limit_seconds <= 0:
            found.append(f"run.time_limit_seconds={self.time_limit_seconds} must be above 0, or null")
        if self.lease_seconds < 5:
            found.append(f"run.lease_seconds={self.lease_seconds} must be at least 5: signs of life come every 2 s")
        if self.max_idle_starts < 1:
            found.append(f"run.max_idle_starts={self.max_idle_starts} must be at least 1")
        if self.start_from == "":
            found.append("run.start_from is empty: name a folder of weights, or null to draw them")
        if self.branch_from == "":
            found.append("run.branch_from is empty: name the folder of a run, or null to begin at step 0")
        for name, value in self.labels.items():
            if not name or len(value) > 64 or not f"{name}{value}".isprintable():
                found.append(f"run.labels: {name!r}={value!r} must be a name and at most 64 printable letters")
        return found


@dataclass
class BatchConfig:
    global_batch_size: int = 32
    """sequences per optimizer step, over all ranks"""
    micro_batch_size: int = 8
    """sequences per device per forward"""

    def problems(self) -> list[str]:
        return [
            f"batch.{name}={getattr(self, name)} must be at least 1"
            for name in ("global_batch_size", "micro_batch_size")
            if getattr(self, name) < 1
        ]


@dataclass
class LossConfig:
    z_loss: float = 0.0
    """weight of log(z)² in what is minimised, z being the sum that softmax divides by (PaLM uses 1e-4)"""
    chunk_tokens: int | None = None
    """positions whose logits exist at a time; null means all of a micro-batch. Saves their memory, costs the head's
    forward once more"""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.z_loss < 0:
            found.append(f"loss.z_loss={self.z_loss} must be 0 or more")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            found.append(f"loss.chunk_tokens={self.chunk_tokens} must be at least 1, or null")
        return found


@dataclass
class EvaluationConfig:
    every_steps: int = 100
    """validation after every so many steps, and always after the last"""
    max_sequences: int = 64
    """validation rows used each time: always the first ones of the val split, all of them if there are fewer"""

    def problems(self) -> list[str]:
        return [
            f"evaluation.{name}={getattr(self, name)} must be at least 1"
            for name in ("every_steps", "max_sequences")
            if getattr(self, name) < 1
        ]


@dataclass
class CheckpointConfig:
    every_steps: int = 100
    """a checkpoint after every so many steps, and always after the last"""
    keep_last: int = 2
    """older checkpoints are removed after a new one is complete"""
    keep_every_steps: int | None = None
    """those of every multiple of this step are never removed"""
    keep_steps: list[int] = field(default_factory=list[int])
    """a checkpoint after each of these steps too, never removed: for runs that branch from there"""
    keep_best: bool = False
    """never removes the one with the lowest validation loss, among those made at a step with an evaluation"""

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.every_steps < 1:
            found.append(f"checkpoint.every_steps={self.every_steps} must be at least 1")
        if self.keep_last < 2:
            found.append(
                f"checkpoint.keep_last={self.keep_last} must be at least 2: with a single one, a fault while it is "
                "replaced would leave none"
            )
        if any(step < 1 for step in self.keep_steps) or len(set(self.keep_steps)) < len(self.keep_steps):
            found.append(f"checkpoint.keep_steps={self.keep_steps} must be different steps, counted from 1")
        if self.keep_every_steps is not None and self.every_steps >= 1:
            found += self._spacing_problems(self.keep_every_steps)
        return found

    def _spacing_problems(self, keep_every_steps: int) -> list[str]:
        multiple = max(1, round(keep_every_steps / self.every_steps)) * self.every_steps
        if keep_every_steps >= 1 and keep_every_steps % self.every_steps == 0:
            return []
        return [
            f"checkpoint.keep_every_steps={keep_every_steps} must be a multiple of "
            f"checkpoint.every_steps={self.every_steps}, or there is no checkpoint to keep: {multiple} would do"
        ]


@dataclass
class LogConfig:
    every_steps: int = 10
    """console lines (away from a terminal), TensorBoard points, norms by layer and memory in use; metrics.jsonl has
    every step"""

    def problems(self) -> list[str]:
        return [f"log.every_steps={self.every_steps} must be at least 1"] if self.every_steps < 1 else []


@dataclass
class SampleConfig:
    """The text written on the way (samples/step-….txt) and at the end of a run (samples.txt)."""

    every_steps: int | None = None
    """after every so many steps; null means only at the end"""
    prompts: list[str] = field(default_factory=lambda: ["The "])
    n_tokens: int = 100
    temperature: float = 0.8

    def problems(self) -> list[str]:
        found: list[str] = []
        if not all(self.prompts):
            found.append("sample.prompts holds an empty prompt: there is nothing to continue")
        if self.every_steps is not None and self.every_steps < 1:
            found.append(f"sample.every_steps={self.every_steps} must be at least 1, or null")
        if self.n_tokens < 1:
            found.append(f"sample.n_tokens={self.n_tokens} must be at least 1")
        if self.temperature < 0:
            found.append(f"sample.temperature={self.temperature} must be 0 or more")
        return found


GENERATIONS = ("ampere", "hopper", "blackwell")
_ABOVE_ZERO = (
    *("peak_flops_per_second", "bf16_flops_per_second", "fp8_flops_per_second", "fp32_flops_per_second"),
    *("memory_gib", "memory_bytes_per_second", "gpus_per_node", "link_bytes_per_second", "network_bytes_per_second"),
    *("watts", "rated_watts"),
)


@dataclass
class ClusterConfig:
    """The machine: what it can do, and what it costs. null means: look, or measure, when the run starts."""

    name: str = "this machine"
    device: Device = Device.auto
    n_devices: int | None = None
    """devices the run is meant for; null means as many as were started (a plan then assumes one)"""
    peak_flops_per_second: float | None = None
    """dense peak of one device in the run's precision, whatever that is; null means the one of its dtype below, else
    known by the device's name, else measured by a matmul"""
    bf16_flops_per_second: float | None = None
    """dense peak of one device; so are the next two"""
    fp8_flops_per_second: float | None = None
    fp32_flops_per_second: float | None = None
    memory_gib: float | None = None
    """memory of one device; null means as found"""
    memory_bytes_per_second: float | None = None
    """to and from that memory. Where this, the links or the generation is null, a plan goes by expected_mfu"""
    generation: str | None = None
    """ampere, hopper or blackwell: what matmuls and attention reach of the peak differs between them"""
    gpus_per_node: int | None = None
    link_bytes_per_second: float | None = None
    """of one device to the others of its node, in one direction"""
    network_bytes_per_second: float | None = None
    """of one device to those of other nodes, in one direction"""
    watts: float | None = None
    """one device may draw so much"""
    rated_watts: float | None = None
    """the same chip may draw so much where nobody limits it; null means watts"""
    expected_mfu: float = 0.4
    """share of the peak that a plan reckons with where the time of a step is not predicted"""
    usd_per_device_hour: float | None = None
    price_rule: str = "no price given"
    """what the price covers, and where it comes from"""
    price_date: str | None = None

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.n_devices is not None and self.n_devices < 1:
            found.append(f"cluster.n_devices={self.n_devices} must be at least 1, or null")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"cluster.{name}={value} must be above 0, or null")
        if self.generation not in (None, *GENERATIONS):
            found.append(f"cluster.generation={self.generation} must be one of {', '.join(GENERATIONS)}, or null")
        if not 0 < self.expected_mfu <= 1:
            found.append(f"cluster.expected_mfu={self.expected_mfu} must lie in (0, 1]")
        if self.usd_per_device_hour is not None and self.usd_per_device_hour < 0:
            found.append(f"cluster.usd_per_device_hour={self.usd_per_device_hour} must be 0 or more, or null")
        if self.usd_per_device_hour is not None and self.price_date is None:
            found.append("cluster.usd_per_device_hour needs cluster.price_date: a price without a date says little")
        return found

    def peak(self, dtype: str) -> float | None:
        """Dense FLOP/s of one device, if configured; bf16_states computes as bf16 does."""
        if self.peak_flops_per_second is not None:
            return self.peak_flops_per_second
        return self.fp32_flops_per_second if dtype == "fp32" else self.bf16_flops_per_second


@dataclass
class TrainConfig:
    run: RunConfig
    data: DataConfig
    schedule: Schedule
    total_tokens: int = 2_000_000
    """length of the run, and of its schedule; rounded up to whole steps, which the plan shows"""
    model: ModelConfig = field(default_factory=ModelConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.total_tokens < 1:
            return [f"total_tokens={self.total_tokens} must be at least 1"]
        if self.optimizer.kind == OptimizerKind.muon and self.model.init == Init.mup:
            found.append(
                "optimizer.kind=muon does not go with model.init=mup: muP's learning rates are made for Adam, the "
                "spectral norm of whose updates grows with the width, and Muon's with its square root (arXiv "
                "2310.17813); use optimizer.kind=adamw, or model.init=gpt2 or scaled"
            )
        if self.schedule.warmup_tokens > self.total_tokens:
            found.append(
                f"schedule.warmup_tokens={self.schedule.warmup_tokens:_} is longer than "
                f"total_tokens={self.total_tokens:_}"
            )
        elif isinstance(self.schedule, WsdSchedule):
            decay = round(self.schedule.decay_fraction * self.total_tokens)
            if self.schedule.warmup_tokens + decay > self.total_tokens:
                found.append(
                    f"schedule.warmup_tokens={self.schedule.warmup_tokens:_} and a decay over {decay:_} tokens "
                    f"(schedule.decay_fraction={self.schedule.decay_fraction}) overlap: "
                    f"total_tokens={self.total_tokens:_}"
                )
        return found + self._best_problems() + self._rollback_problems()

    def _rollback_problems(self) -> list[str]:
        health, checkpoint = self.health, self.checkpoint
        margin, every = health.rollback_margin_steps, checkpoint.every_steps
        policies = (health.on_nonfinite, health.on_loss_spike, health.on_norm_spike)
        if Policy.rollback not in policies or every < 1 or (checkpoint.keep_last - 1) * every >= margin:
            return []
        return [
            f"health.rollback_margin_steps={margin}: a rollback goes to a checkpoint so many steps before the flagged "
            f"one, but checkpoint.keep_last={checkpoint.keep_last} with checkpoint.every_steps={every} may reach back "
            f"only {(checkpoint.keep_last - 1) * every}: set checkpoint.keep_last={-(-margin // every) + 1} or more, "
            "or a smaller margin"
        ]

    def _best_problems(self) -> list[str]:
        saved, measured = self.checkpoint.every_steps, self.evaluation.every_steps
        if (
            not self.checkpoint.keep_best
            or min(saved, measured) < 1
            or max(saved, measured) % min(saved, measured) == 0
        ):
            return []
        return [
            "checkpoint.keep_best chooses among checkpoints with a validation loss, but "
            f"checkpoint.every_steps={saved} and evaluation.every_steps={measured} seldom meet: let one be a multiple "
            "of the other"
        ]


FREE_TO_CHANGE = (
    "run.folder",
    "run.stop_at_step",
    "run.time_limit_seconds",
    "run.lease_seconds",
    "run.max_idle_starts",
    "run.labels.*",
    "run.branch_from",  # what a run ends with does not depend on it
    "data.folder",  # the data itself is recognised by the digest of its shards
    "data.sources.*.folder",
    "data.pack_folder",
    "data.rebase",
    "batch.micro_batch_size",  # this one and the parallel ones change the order of sums, nothing else
    "parallel.zero_stage",
    "parallel.bucket_elements",
    "parallel.hpz_size",
    "parallel.offload_optimizer",
    "parallel.tp_size",
    "parallel.sp_size",
    "parallel.sequence_parallel_norms",
    "parallel.activation_checkpointing",
    "parallel.compile",
    "parallel.attention_kernel",
    "loss.chunk_tokens",
    "checkpoint.",
    "health.",
    "log.",
    "sample.",
    "cluster.",
)
"""keys (and sections, with a dot) that may change when a run is continued, so that it can move to other machines; any
other one makes it another run"""

REBASED = ("data.", "batch.global_batch_size")
"""what data.rebase lets change besides: the run goes on with it in a new phase"""

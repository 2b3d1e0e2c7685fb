"""One layout of a run on a machine → its plan, its batch, and the predicted time of a step where that can be said."""

from dataclasses import asdict, dataclass
from typing import Any

from conf.errors import ConfigError
from launch.performance.constants import Constants
from launch.performance.hardware import Hardware, hardware_of, hardware_of_device
from launch.performance.product import job_of
from launch.performance.step import StepTime, step_time
from train.batch import BatchPlan, solve_batch
from train.config import Device, TrainConfig
from train.layout_problems import layout_problems
from train.parallel_config import Precision
from train.plan import Machine, Plan, make_plan


@dataclass(frozen=True)
class Prediction:
    config: TrainConfig
    batch: BatchPlan
    plan: Plan
    step: StepTime | None
    """None where the cluster's description leaves out what it is predicted from"""
    hardware: Hardware | None
    """what it was predicted for"""

    def to_tree(self) -> dict[str, Any]:
        """To be kept beside a run, so that what was predicted can be compared with what was measured."""
        step, speed = None, None
        if self.step is not None:
            step = {**asdict(self.step), "total": self.step.total}
            speed = self.plan.tokens_per_step / self.step.total
        return {
            "schema_version": 1,
            "hardware": self.hardware and self.hardware.name,
            "n_devices": self.plan.machine.n_devices,
            "step_seconds": step,
            "tokens_per_second": speed,
            "mfu": None if step is None else self.plan.expected_mfu,
            "memory_bytes": {**asdict(self.plan.memory), "total": self.plan.memory.total},
        }


def predict(config: TrainConfig, machine: Machine, train_tokens: int | None = None) -> Prediction:
    """Raises ConfigError or BatchError for a layout that cannot be on so many devices."""
    parallel = config.parallel
    ranks_a_row = parallel.tp_size * parallel.sp_size
    problems = layout_problems(config)
    if machine.n_devices % ranks_a_row:
        problems.append(
            f"cluster.n_devices={machine.n_devices} does not divide by parallel.tp_size={parallel.tp_size} x "
            f"parallel.sp_size={parallel.sp_size} = {ranks_a_row}"
        )
    else:
        problems += parallel.problems_on(machine.n_devices // parallel.tp_size)
    if problems:
        raise ConfigError(problems)
    batch = solve_batch(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_size=machine.n_devices // ranks_a_row,
        seq_len=config.data.seq_len,
        total_tokens=config.total_tokens,
    )
    hardware = hardware_for(config, machine)
    step = None if hardware is None else step_time(job_of(config, batch), hardware, Constants())
    made = make_plan(config, batch, machine, train_tokens, None if step is None else step.total)
    return Prediction(config, batch, made, step, hardware)


def hardware_for(config: TrainConfig, machine: Machine) -> Hardware | None:
    """As configured, or as we describe a GPU that was found. None on a CPU, and where neither is complete."""
    if config.cluster.device == Device.cpu:
        return None
    found = hardware_of(config.cluster) or hardware_of_device(machine.device)
    exact = config.parallel.precision == Precision.fp32
    return None if exact and found and "fp32" not in found.flops_per_second else found

"""What was expected of a run, from the files that say so. No torch.

In: plan.json, which the run worked out at its start, often from an assumed MFU; and prediction.json, which `launch
submit` leaves beside it where it could predict the time of a step. Out: one set of figures, the prediction's where
there is one. Both files may be missing, damaged, or of an earlier version.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.rows import figure
from train.plan import MemoryPlan


@dataclass(frozen=True)
class Expected:
    how: str = "assumed"
    """how its MFU came about: predicted or assumed"""
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    tensor_bytes: float | None = None
    """memory of a device, but for what no allocator counts: what the rows' memory_gib is to be compared with"""
    device_hours: float | None = None
    """of the whole run; so is the next"""
    cost_usd: float | None = None
    step_parts: dict[str, float] = field(default_factory=dict[str, float])
    """seconds of a step, by part"""
    remark: str | None = None
    """why a prediction does not count"""


def expected(plan: Mapping[str, Any], prediction: Mapping[str, Any]) -> Expected:
    planned = _planned(plan)
    devices, predicted_for = figure(_section(plan, "machine"), "n_devices"), figure(dict(prediction), "n_devices")
    step = _section(prediction, "step_seconds")
    seconds = _above_zero(step, "total")
    if seconds is None:
        return planned
    if devices is not None and predicted_for != devices:
        return dataclasses.replace(
            planned, remark=f"prediction.json is for {predicted_for or 0:.0f} devices, the run has {devices:.0f}"
        )
    longer = seconds / planned.step_seconds if planned.step_seconds else None
    parts = {name: value for name in step if name != "total" and (value := _above_zero(step, name))}
    return dataclasses.replace(
        planned,
        how="predicted",
        step_seconds=seconds,
        tokens_per_second=_above_zero(dict(prediction), "tokens_per_second"),
        mfu=_above_zero(dict(prediction), "mfu"),
        tensor_bytes=_tensor_bytes(_section(prediction, "memory_bytes")) or planned.tensor_bytes,
        device_hours=_times(planned.device_hours, longer),
        cost_usd=_times(planned.cost_usd, longer),
        step_parts=parts,
    )


def _planned(plan: Mapping[str, Any]) -> Expected:
    facts = dict(plan)
    total, seconds = _above_zero(facts, "total_steps"), _above_zero(facts, "seconds")
    step_seconds = seconds / total if seconds and total else None
    tokens = _above_zero(facts, "tokens_per_step")
    return Expected(
        how="predicted" if plan.get("mfu_is") == "predicted" else "assumed",
        step_seconds=step_seconds,
        tokens_per_second=tokens / step_seconds if tokens and step_seconds else None,
        mfu=_above_zero(facts, "expected_mfu"),
        tensor_bytes=_tensor_bytes(_section(plan, "memory")),
        device_hours=_above_zero(facts, "device_hours"),
        cost_usd=figure(facts, "cost_usd"),
    )


def _tensor_bytes(parts: dict[str, Any]) -> float | None:
    """In the fuller of the two moments that a plan tells apart; parts that an earlier version did not know are 0."""
    names = [item.name for item in dataclasses.fields(MemoryPlan)]
    if not any(name in parts for name in names):
        return None
    known = {name: int(_above_zero(parts, name) or 0) for name in names}
    return float(MemoryPlan(**known | {"reserve": 0}).total)


def _section(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = facts.get(key)
    return found if isinstance(found, dict) else {}


def _above_zero(facts: dict[str, Any], key: str) -> float | None:
    value = figure(facts, key)
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor

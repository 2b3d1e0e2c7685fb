"""Attention of one block: by fused kernels, at what they reach of the peak; or with all scores written to memory."""

from launch.performance import matmul
from launch.performance.constants import Constants
from launch.performance.hardware import Hardware
from launch.performance.layout import Job
from model.arithmetic import attended_pairs

FUSED_BACKWARD = 2.5
"""a fused kernel computes the scores again: five matrix products for the two of the forward"""


def seconds(job: Job, hardware: Hardware, constants: Constants) -> tuple[float, float]:
    """(forward, backward) of one block for one micro-batch on one GPU."""
    layout = job.layout
    model, heads = layout.model, layout.model.n_heads / layout.tp / layout.cp
    rows = layout.micro_batch * heads
    if job.stack.attention == "unfused":
        forward = _unfused(rows * layout.seq_len**2, model.head_width, hardware, constants)
        return forward, 2 * forward
    pairs = attended_pairs([layout.seq_len], model.sliding_window)
    pairs = layout.seq_len**2 if job.stack.attention == "masked" else pairs
    speed = hardware.peak("bf16") * _ratio(job.stack.attention, model.head_width, hardware, constants)
    forward = rows * pairs * 4 * model.head_width / speed
    return forward + constants.kernel_seconds, FUSED_BACKWARD * forward + constants.kernel_seconds


def _unfused(n_scores: float, head_width: int, hardware: Hardware, constants: Constants) -> float:
    """Two batched products over the full square, and softmax and dropout between them."""
    speed = hardware.peak("bf16") * matmul.ratio(hardware, constants, "bf16")
    traffic = n_scores * constants.attention_unfused
    bandwidth = hardware.memory_bytes_per_second * constants.memory_ratio
    return 4 * n_scores * head_width / speed + traffic / bandwidth + 4 * constants.kernel_seconds


def _ratio(kernel: str, head_width: int, hardware: Hardware, constants: Constants) -> float:
    match kernel, hardware.generation:
        case "triton" | "masked", "ampere":
            wide = constants.attention_triton_ampere
        case "triton" | "masked", _:
            wide = constants.attention_triton_hopper
        case _, "ampere":
            wide = constants.attention_flash2_ampere
        case "flash2", _:
            wide = constants.attention_flash2_hopper
        case _:
            wide = constants.attention_flash3_hopper
    return matmul.limited(hardware, constants) * wide * (constants.narrow_heads if head_width < 96 else 1.0)

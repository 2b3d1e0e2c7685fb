"""Work that moves bytes and hardly computes: norms, rotations, activations, residuals, the loss, the optimizer."""

from launch.performance.constants import Constants
from launch.performance.hardware import Hardware
from launch.performance.layout import Job
from model.config import Mlp

FORWARD_SHARE = 1 / 3
"""of a block's elementwise traffic, backward has twice that of the forward"""


def block_seconds(job: Job, hardware: Hardware, constants: Constants) -> float:
    """Of one block for one micro-batch, forward and backward together."""
    passes, kernels = (constants.passes_fused, 6) if job.stack.fused else (constants.passes_eager, 20)
    moved = passes * _least_bytes(job)
    return moved / (hardware.memory_bytes_per_second * constants.memory_ratio) + 3 * kernels * constants.kernel_seconds


def _least_bytes(job: Job) -> float:
    """Per forward and backward of a block, each operand read once and each result written once, 2 bytes each: two
    norms and two residuals (8 passes over the width, in the dtype of the residual stream), rotation (4 over q and k),
    activation (3 over each of the MLP's inner widths); backward twice that."""
    layout = job.layout
    model, tp = layout.model, layout.tp
    inner = (2 if model.mlp == Mlp.swiglu else 1) * model.d_ff / tp
    heads = (model.q_width + model.kv_width) / tp
    stream = model.d_model / (tp if layout.sequence_parallel else 1)
    return layout.tokens * 3 * (job.stack.stream_bytes * 8 * stream + 2 * (4 * heads + 3 * inner))


def loss_seconds(job: Job, hardware: Hardware, constants: Constants) -> float:
    """The logits' traffic, forward and backward."""
    per_logit = constants.logit_bytes_fused if job.stack.fused else constants.logit_bytes_eager
    moved = per_logit * job.layout.tokens * job.layout.model.vocab_size / job.layout.tp
    return moved / (hardware.memory_bytes_per_second * constants.memory_ratio)


def summing_seconds(n_bytes: float, hardware: Hardware, constants: Constants) -> float:
    return n_bytes / (hardware.memory_bytes_per_second * constants.memory_ratio)


def optimizer_seconds(n_params: float, hardware: Hardware, constants: Constants) -> float:
    """n_params: those that one GPU updates."""
    return n_params * constants.optimizer_bytes / (hardware.memory_bytes_per_second * constants.memory_ratio)

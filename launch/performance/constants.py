"""The constants of the step time that no data sheet gives: few, each with a meaning, fitted together once.

How they were fitted, and on which rows: `tests/benchmarks/calibrate_plan.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    matmul_ampere: float = 0.829
    """ratio of the dense peak that large matmuls reach within a training step: on an A100"""
    matmul_hopper: float = 0.6806
    """on a GPU of 700 W"""
    power_exponent: float = 0.974
    """a GPU held to less than its usual watts multiplies slower by their ratio to this power"""
    matmul_fp8: float = 0.6107
    """of the fp8 peak, casts included"""
    attention_unfused: float = 12.89
    """bytes of memory traffic per score, forward; backward has twice as much"""
    attention_triton_ampere: float = 0.3485
    attention_triton_hopper: float = 0.2026
    attention_flash2_ampere: float = 0.5469
    """attention kernels: FLOPs done (half of the square) per second, as ratio of the dense peak, heads of 128"""
    attention_flash2_hopper: float = 0.318
    attention_flash3_hopper: float = 0.4928
    narrow_heads: float = 0.8868
    """speed of attention with heads of 64, those of 128 being 1"""
    passes_fused: float = 1.007
    """elementwise work: memory traffic in units of the least, where each operand is read once and each result written
    once"""
    passes_eager: float = 1.578
    logit_bytes_fused: float = 14.0
    """memory traffic per logit in head and loss, forward and backward"""
    logit_bytes_eager: float = 30.0
    memory_ratio: float = 0.85
    """of the data sheet's memory bandwidth, for streaming kernels"""
    kernel_seconds: float = 4.097e-06
    """lost at each kernel: its start, its last wave"""
    link_ratio: float = 0.5586
    """of the data sheet's bandwidth inside a node, for all-reduces in the way of computation"""
    tensor_parallel_exposed: float = 0.5012
    """of tensor-parallel communication, where pieces of it run beside matmuls"""
    network_ratio: float = 0.6963
    """of the data sheet's bandwidth between nodes"""
    hop_seconds: float = 8e-6
    """one hop of a ring between nodes"""
    hideable: float = 0.85
    """share of computation behind which communication can hide"""
    interference: float = 0.4976
    """of the time that a node's links are busy with hidden communication, computation loses so much: it takes
    processors and memory bandwidth"""
    optimizer_bytes: float = 40.0
    """memory traffic per parameter of an update"""
    step_seconds: float = 0.004
    """of a step that is none of the above: the loss read, the norm clipped, the host"""
    straggling: float = 0.01382
    """more time for each doubling of the number of nodes that wait for each other"""

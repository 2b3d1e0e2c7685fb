"""What the step time depends on and no data sheet gives: few numbers, each with a meaning.

Those marked (fitted) were fitted together to two thirds of the published rows by `tests/benchmarks/calibrate_plan.py`,
which names the prior of each and its source; the others were counted, or estimated as they say. GPUs newer than Hopper
go by its figures: no published row of theirs was compared.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    matmul_ampere: float = 0.829
    """(fitted) ratio of the dense peak that large matmuls reach within a training step on an A100"""
    matmul_hopper: float = 0.6806
    """(fitted) on a GPU of 700 W"""
    power_exponent: float = 0.974
    """(fitted) a GPU held to less than its usual watts computes slower by their ratio to this power"""
    matmul_fp8: float = 0.6107
    """(fitted) of the fp8 peak, casts included"""
    attention_unfused: float = 12.89
    """(fitted) bytes of memory traffic per score, forward; backward has twice as much"""
    attention_triton_ampere: float = 0.3485
    """(fitted, as all of attention) FLOPs done, of half of the square, as ratio of the dense peak, heads of 128"""
    attention_triton_hopper: float = 0.2026
    attention_flash2_ampere: float = 0.5469
    attention_flash2_hopper: float = 0.318
    attention_flash3_hopper: float = 0.4928
    narrow_heads: float = 0.8868
    """(fitted) speed of attention with heads of 64, those of 128 being 1"""
    passes_fused: float = 1.007
    """(fitted) elementwise work: memory traffic in units of the least, where each operand is read once and each result
    written once"""
    passes_eager: float = 1.578
    """(fitted)"""
    logit_bytes_fused: float = 14.0
    """memory traffic per logit in head and loss, forward and backward; counted: bf16 written and read thrice, its
    gradient written and read twice"""
    logit_bytes_eager: float = 30.0
    """counted: with the copy to fp32, softmax and its gradient in passes of their own"""
    memory_ratio: float = 0.85
    """of the data sheet's memory bandwidth, for streaming kernels: what copies reach on A100 and H100"""
    kernel_seconds: float = 4.097e-06
    """(fitted) lost at each kernel: its start, its last wave"""
    link_ratio: float = 0.5586
    """(fitted) of the data sheet's bandwidth inside a node, for collectives in the way of computation"""
    tensor_parallel_exposed: float = 0.5012
    """(fitted) of tensor-parallel communication, where pieces of it run beside matmuls"""
    network_ratio: float = 0.6963
    """(fitted) of the data sheet's bandwidth between nodes"""
    hop_seconds: float = 8e-6
    """estimated: one hop of a ring between nodes, latency of the network and of NCCL's protocol"""
    hideable: float = 0.85
    """estimated: share of computation behind which communication can hide: the outermost blocks have nothing before or
    after them"""
    interference: float = 0.4976
    """(fitted) of the time that a node's links are busy with hidden communication, computation loses so much: it takes
    processors and memory bandwidth"""
    optimizer_bytes: float = 40.0
    """memory traffic per parameter of an update; counted, about: gradient, master and moments read, the last three and
    the weight written, the gradient read once more for its norm and scaled"""
    step_seconds: float = 0.004
    """estimated: of a step, what is none of the above: the loss read, the norm clipped, the host"""
    straggling: float = 0.01382
    """(fitted) more time for each doubling of the number of nodes that wait for each other"""

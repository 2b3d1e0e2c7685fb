"""Software that training speeds are published for, described by what its kernels are, not by how fast it was.

Each field changes a term of the time or of the memory; constants that are common to all are in `constants.py`.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stack:
    name: str
    attention: str = "flash2"
    """unfused: scores are written to memory; triton: the first FlashAttention kernels in Triton (the memory-efficient
    ones of torch are taken to be as fast); masked: the same over the full square, as a mask given as numbers skips
    nothing; flash2; flash3: kernels that use what Hopper brought (cuDNN, FlashAttention-3; flash2's speed elsewhere)"""
    fused: bool = False
    """norms, rotations, activations and residuals are compiled or hand-written into few kernels"""
    overlaps_reduction: bool = True
    """gradients are reduced while backward still runs; without ZeRO (stage 0) everybody does, as torch's DDP"""
    overlaps_tensor_parallel: bool = False
    """tensor-parallel collectives are cut in pieces that run beside the matmuls they feed"""
    stream_bytes: int = 2
    """of a number of the residual stream; 4 under autocast with fp32 weights"""
    selective: str = "attention"
    """what selective recomputation runs again of the forward: attention; matmuls (half of them, and all that is not a
    matmul or attention); elementwise (all that is neither)"""
    balanced_stages: bool = False
    """pipeline stages are cut by cost, the head counted, not by the number of layers"""
    gradient_bytes: int = 4
    """of a gradient that is kept and reduced"""
    weight_bytes: int = 2
    """of a weight as it is stored; 4 where that is the master itself"""
    optimizer_bytes: int = 12
    """of a parameter: the master, if it is a copy, and two moments"""
    accumulator_bytes: int = 0
    """of a gradient, besides, where several micro-batches are summed"""
    logit_bytes: int = 12
    """of memory, for each logit: itself in bf16, in fp32, its gradient, what is not yet freed; 4 where a fused loss
    overwrites logits with their gradients"""
    interleaves: bool = False
    """can give a pipeline rank several chunks of the model"""
    sequence_parallel: bool = True
    """its tensor parallelism shares out norms and the residual stream too, unless a source says otherwise"""
    messages_per_layer: int = 1
    """collectives a layer's gradients are reduced in: 1 where they are put into buckets"""
    summing_bytes: int = 0
    """memory traffic per parameter and micro-batch of adding gradients to their sums; 0 where matmuls do it"""
    orthogonalises: bool = False
    """Muon: five rounds of Newton and Schulz on every matrix of a block, shared out over all ranks"""


MEGATRON_2021 = Stack(
    "Megatron-LM, 2021", attention="unfused", fused=True, overlaps_reduction=False, interleaves=True,
    sequence_parallel=False,
)  # fmt: skip
MT_NLG = replace(MEGATRON_2021, name="Megatron-DeepSpeed, 2021", interleaves=False)
MEGATRON = Stack("Megatron core", attention="flash3", fused=True, overlaps_tensor_parallel=True, interleaves=True)
NANOTRON = Stack(
    "nanotron",
    overlaps_reduction=False,
    balanced_stages=True,
    messages_per_layer=7,
    gradient_bytes=2,
    accumulator_bytes=8,
)
LLM_FOUNDRY = Stack("llm-foundry, 2023, bf16", attention="triton", gradient_bytes=2, logit_bytes=4)
LLM_FOUNDRY_AUTOCAST = Stack(
    "llm-foundry, 2023, autocast",
    attention="triton",
    gradient_bytes=4,
    weight_bytes=4,
    optimizer_bytes=8,
    stream_bytes=4,
    logit_bytes=4,
)
FSDP_COMPILED = Stack("FSDP, compiled", fused=True, selective="matmuls", weight_bytes=4, optimizer_bytes=8)
FSDP_EAGER = Stack("FSDP, eager", selective="matmuls", weight_bytes=4, optimizer_bytes=8)
COMPILED = Stack("one node, compiled", attention="flash3", fused=True, logit_bytes=8)
DEEPSPEED_2022 = Stack(
    "Megatron-DeepSpeed, 2022", attention="unfused", fused=True, gradient_bytes=2, sequence_parallel=False
)

_BY_SOURCE = (
    (("2104.04473", "2205.05198"), MEGATRON_2021),
    # before FlashAttention, with DeepSpeed's pipeline or none
    (("mt-nlg", "turing", "2201.11990", "bloom", "2211.05100", "neox", "2204.06745"), MT_NLG),
    (("deepspeed",), DEEPSPEED_2022),
    (("megatron", "nemo", "megascale", "2402.15627", "llama 3", "2407.21783"), MEGATRON),
    (("nanotron",), NANOTRON),
    (("llm-foundry", "mosaicml"), LLM_FOUNDRY),
    (("fms-fsdp", "torchtitan", "torchao", "olmo", "lingua"), FSDP_COMPILED),
)
"""words of a source, the first that are found count; of the same makers, older software stands first"""


def stack_of(source: str, note: str, precision: str) -> Stack:
    """The software behind a published row; what is not known is taken for compiled code of one node."""
    text = source.lower()
    for words, stack in _BY_SOURCE:
        if not any(word in text for word in words):
            continue
        if stack is FSDP_COMPILED and "eager" in note.lower():
            return FSDP_EAGER
        return LLM_FOUNDRY_AUTOCAST if stack is LLM_FOUNDRY and "amp" in precision else stack
    return COMPILED

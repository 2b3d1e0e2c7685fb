"""Jobs and machines for the tests of predictions."""

import dataclasses
from typing import Any

from launch.performance.hardware import hardware_named
from launch.performance.layout import Job, Layout
from launch.performance.stacks import MEGATRON, Stack
from model.config import Mlp, ModelConfig, Norm, Positions

H100 = hardware_named("H100-80")
A100 = hardware_named("A100-80")

LLAMA_8B = ModelConfig(
    vocab_size=128_256, n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_ff=14_336, tie_embeddings=False
)
GPT_22B = ModelConfig(
    vocab_size=51_200, n_layers=48, d_model=6144, n_heads=64, n_kv_heads=64, d_ff=24_576, mlp=Mlp.gelu,
    norm=Norm.layernorm, positions=Positions.none,
)  # fmt: skip


def job(stack: Stack = MEGATRON, model: ModelConfig = LLAMA_8B, **layout: Any) -> Job:
    return Job(Layout(**({"model": model, "seq_len": 4096, "micro_batch": 1, "accumulation": 4} | layout)), stack)


def changed(job: Job, **layout: Any) -> Job:
    return dataclasses.replace(job, layout=dataclasses.replace(job.layout, **layout))

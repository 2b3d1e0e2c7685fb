"""The predicted memory of one GPU, by part, for any software that rows are published of; the product's own, counted
exactly for its own modules, is in `train/plan.py`.

States are shared out by ZeRO (arXiv 1910.02054, section 3). Activations are what backward needs of each block (arXiv
2205.05198, sections 4 and 5), for as many micro-batches as a pipeline stage has under way. The fullest stage counts.
"""

from dataclasses import asdict, dataclass

from launch.performance.hardware import Hardware
from launch.performance.layout import Job
from launch.performance.step import SELECTIVE_MATMULS, own_params, slowest_stage_blocks
from model.arithmetic import count_parameters
from model.config import Mlp

RESERVE_BYTES = 2 * 2**30
"""what no allocator counts: the CUDA context, the buffers of NCCL, and the room that fragments of memory take"""


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU, by part."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """What an allocator would report; see also RESERVE_BYTES."""
        return sum(asdict(self).values())

    def fits(self, hardware: Hardware) -> bool:
        return self.total + RESERVE_BYTES <= hardware.memory_bytes


def memory(job: Job) -> Memory:
    first, last = _stage_activations(job)
    activations, logits = max(first, last, key=sum)
    return Memory(**_states(job), activations=activations, logits=logits)


def _states(job: Job) -> dict[str, float]:
    layout, stack = job.layout, job.stack
    params, shards = own_params(job), layout.n_shards
    of_gradient = stack.gradient_bytes + (stack.accumulator_bytes if layout.accumulation > 1 else 0)
    at = {stage: shards if layout.zero >= stage else 1 for stage in (1, 2, 3)}
    return {
        "weights": stack.weight_bytes * params / at[3] + (2 * params / layout.hpz if layout.hpz > 1 else 0),
        "gradients": of_gradient * params / at[2],
        "optimizer": stack.optimizer_bytes * params / at[1],
        "gathered": 2 * _gathered_params(job) if layout.zero == 3 and shards > 1 else 0.0,
    }


def _gathered_params(job: Job) -> float:
    """At ZeRO 3: two blocks' weights, one in use and the next, their gradients, and what lies outside of blocks."""
    counts, layout = count_parameters(job.layout.model), job.layout
    block = counts.n_params_non_embedding / layout.model.n_layers / layout.tp
    return 3 * block + (counts.n_params - counts.n_params_non_embedding) / layout.tp


def _stage_activations(job: Job) -> tuple[tuple[float, float], tuple[float, float]]:
    """(activations, logits) of the first and of the last pipeline stage; the same where there is but one."""
    layout = job.layout
    kept, working = _block_bytes(job)
    logits = job.stack.logit_bytes * layout.tokens * layout.model.vocab_size / layout.tp
    last_blocks, first_blocks = slowest_stage_blocks(job)
    if layout.pp == 1:
        both = (last_blocks * kept + working, logits)
        return both, both
    under_way = layout.pp + ((layout.pp - 1) / layout.virtual_stages if layout.virtual_stages > 1 else 0)
    under_way = min(layout.accumulation, under_way)
    first = (under_way * first_blocks * kept + working, 0.0)
    return first, (last_blocks * kept + working, logits)


def _block_bytes(job: Job) -> tuple[float, float]:
    """(kept from forward to backward for each block and micro-batch, of the one block that runs again at a time)."""
    layout, stack = job.layout, job.stack
    model, tp, rows = layout.model, layout.tp, layout.tokens
    shared = tp if layout.sequence_parallel else 1
    scores = 5 * model.n_heads * layout.seq_len / tp if stack.attention == "unfused" else 0.0
    inner = (2 if model.mlp == Mlp.swiglu else 1) * model.d_ff
    dropout = 2 * model.d_model if stack.attention == "unfused" else 0
    heads = 2 * (2 * model.q_width + 2 * model.kv_width)  # q, k, v and the output
    heads += 0 if stack.fused else 2 * (model.q_width + model.kv_width)  # before the rotation
    of_mlp = 2 * (inner + model.d_ff) + (0 if stack.fused or inner == model.d_ff else 2 * model.d_ff)
    whole = (8 * model.d_model + dropout) / shared + (heads + of_mlp) / tp
    match layout.recompute:
        case "full":
            return rows * 2 * model.d_model / shared, rows * (whole + scores)
        case "selective" if stack.selective == "attention":
            return rows * whole, rows * scores
        case "selective":
            products = 2 * (2 * model.q_width + 2 * model.kv_width + 2 * model.d_model + inner) / tp
            products *= SELECTIVE_MATMULS if stack.selective == "matmuls" else 1.0
            return rows * (2 * model.d_model / shared + 2 * model.q_width / tp + products), rows * whole
        case _:
            return rows * (whole + scores), 0.0

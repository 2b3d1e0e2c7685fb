"""The predicted time of one training step, by part: a roofline of what computes, and what communication leaves exposed.

    step = micro-batches x (matmul + attention + elementwise + loss + tensor parallel + exposed gathering)
           x (1 + bubble) + exposed reduction of gradients + optimizer + the rest,
           all of it longer where more nodes wait for each other

Terms and their sources: each file's own; the form is that of Megatron-LM (arXiv 2104.04473, section 2) and of the study
of recomputation (arXiv 2205.05198, section 4).
"""

from dataclasses import asdict, dataclass
from math import ceil, log2

from launch.performance import attention, collectives, matmul, traffic
from launch.performance.constants import Constants
from launch.performance.hardware import Hardware
from launch.performance.layout import Job
from model.arithmetic import count_parameters

SELECTIVE_MATMULS = 0.5
"""share of a block's matmuls that torchtitan's selective recomputation runs again: every other one"""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on the slowest GPU, by part."""

    matmul: float
    attention: float
    elementwise: float
    loss: float
    recomputation: float
    tensor_parallel: float
    weights_gathered: float
    pipeline: float
    gradients_reduced: float
    optimizer: float
    waiting: float
    rest: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def step_time(job: Job, hardware: Hardware, constants: Constants) -> StepTime:
    layout, stack = job.layout, job.stack
    m = layout.accumulation
    block, head = _block(job, hardware, constants), _head(job, hardware, constants)
    last, first = slowest_stage_blocks(job)
    layers, heads = max((last, 1), (first, 0), key=lambda stage: stage[0] * block.total + stage[1] * sum(head))
    compute = layers * block.total + heads * sum(head)
    tensor_parallel = layers * _tensor_parallel(job, hardware, constants)
    gathered = _gathered(job, compute + tensor_parallel, hardware, constants)
    micro = compute + tensor_parallel + gathered
    bubble = (layout.pp - 1) / (layout.virtual_stages * m) * m * micro + m * _handed_on(job, hardware, constants)
    reduced = _reduced(job, compute, hardware, constants)
    optimizer = traffic.optimizer_seconds(own_params(job) / _sharers(job), hardware, constants)
    optimizer += m * traffic.summing_seconds(own_params(job) * stack.summing_bytes, hardware, constants)
    optimizer += matmul.orthogonalisation_seconds(layout, hardware, constants) if stack.orthogonalises else 0.0
    busy = m * micro + bubble + reduced + optimizer + constants.step_seconds
    nodes = max(1.0, layout.n_gpus / hardware.gpus_per_node)
    return StepTime(
        matmul=m * (layers * block.matmul + heads * head[0]),
        attention=m * layers * block.attention,
        elementwise=m * layers * block.elementwise,
        loss=m * heads * head[1],
        recomputation=m * layers * block.recomputed,
        tensor_parallel=m * tensor_parallel,
        weights_gathered=m * gathered,
        pipeline=bubble,
        gradients_reduced=reduced,
        optimizer=optimizer,
        waiting=busy * constants.straggling * log2(nodes),
        rest=constants.step_seconds,
    )


@dataclass(frozen=True)
class Block:
    """Seconds of one block for one micro-batch, forward and backward."""

    matmul: float
    attention: float
    elementwise: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.matmul + self.attention + self.elementwise + self.recomputed


def _block(job: Job, hardware: Hardware, constants: Constants) -> Block:
    once = sum(matmul.seconds(p, hardware, constants, job.layout.precision) for p in matmul.block_products(job.layout))
    forward, backward = attention.seconds(job, hardware, constants)
    elementwise = traffic.block_seconds(job, hardware, constants)
    match job.layout.recompute:
        case "full":
            again = once + forward + traffic.FORWARD_SHARE * elementwise
        case "selective":
            again = {
                "attention": forward,
                "matmuls": SELECTIVE_MATMULS * once + traffic.FORWARD_SHARE * elementwise,
                "elementwise": traffic.FORWARD_SHARE * elementwise,
            }[job.stack.selective]
        case _:
            again = 0.0
    return Block(3 * once, forward + backward, elementwise, again)


def _head(job: Job, hardware: Hardware, constants: Constants) -> tuple[float, float]:
    """(matmul, traffic of the logits); the head is never recomputed, and stays in bf16 where blocks are in fp8."""
    dtype = "bf16" if job.layout.precision == "fp8" else job.layout.precision
    product = 3 * matmul.seconds(matmul.head_product(job.layout), hardware, constants, dtype)
    return product, traffic.loss_seconds(job, hardware, constants)


def slowest_stage_blocks(job: Job) -> tuple[float, float]:
    """Blocks of the last pipeline stage, which computes the head too, and of the first. Cut by cost, a head counts as
    many blocks as it has parameters for."""
    layout = job.layout
    if layout.pp == 1 or not job.stack.balanced_stages:
        return ceil(layout.layers_of_stage), ceil(layout.layers_of_stage)
    counts = count_parameters(layout.model)
    block = counts.n_params_non_embedding / layout.model.n_layers
    head = layout.model.vocab_size * layout.model.d_model / block
    last = max(0, round((layout.model.n_layers + head) / layout.pp - head))
    return last, ceil((layout.model.n_layers - last) / (layout.pp - 1))


def _tensor_parallel(job: Job, hardware: Hardware, constants: Constants) -> float:
    """Of one block and micro-batch: two all-reduces forward, two backward, two more where the forward runs again. With
    sequence-parallel norms each is a gather and a scatter of the same bytes."""
    layout, stack = job.layout, job.stack
    n_bytes = 2 * layout.tokens * layout.model.d_model
    n_gathers = 2 * (6 if layout.recompute == "full" else 4)
    of_tp = collectives.gather(n_bytes, collectives.group(layout.tp, 1, hardware), hardware, constants)
    exposed = constants.tensor_parallel_exposed if stack.overlaps_tensor_parallel else 1.0
    return n_gathers * of_tp.seconds * exposed + _context_parallel(job, hardware, constants)


def _context_parallel(job: Job, hardware: Hardware, constants: Constants) -> float:
    """Of one block and micro-batch. Keys and values are gathered forward and backward, and their gradients scattered;
    or queries, keys, values and outputs change hands, forward and backward, each rank sending all of its own but one
    part: as many bytes as a gather of them."""
    layout, model = job.layout, job.layout.model
    ranks = collectives.group(layout.cp, layout.tp, hardware)
    if layout.all_to_all:
        n_bytes, times = 2 * layout.tokens * 2 * (model.q_width + model.kv_width) / layout.tp, 2
    else:
        n_bytes, times = 2 * layout.tokens * layout.cp * 2 * model.kv_width / layout.tp, 3
    return times * collectives.gather(n_bytes, ranks, hardware, constants).seconds


def _gathered(job: Job, compute: float, hardware: Hardware, constants: Constants) -> float:
    """What ZeRO 3 leaves exposed for each micro-batch: weights gathered for forward and for backward, gradients
    scattered. A second copy inside the node (hpZ) makes the gathering for backward go over its links alone."""
    layout = job.layout
    if layout.zero < 3 or layout.n_shards == 1:
        return 0.0
    among = collectives.group(layout.n_shards, layout.tp, hardware)
    near = collectives.Group(layout.hpz, layout.hpz) if layout.hpz > 1 else among
    of_layer = 2 * own_params(job) / layout.layers_of_stage
    far = collectives.gather(of_layer, among, hardware, constants)
    again = collectives.gather(of_layer, near, hardware, constants)
    return (far.times(2) + again).times(layout.layers_of_stage).exposed(compute, constants)


def _reduced(job: Job, compute: float, hardware: Hardware, constants: Constants) -> float:
    """What the reduction of gradients over data-parallel ranks leaves exposed, once a step, and the gathering of the
    new weights at ZeRO 1 and 2. ZeRO 2 keeps no whole gradients, so it reduces them after every forward."""
    layout, stack = job.layout, job.stack
    if layout.zero == 3 or layout.n_shards == 1:
        return 0.0
    among = collectives.group(layout.n_shards, layout.tp, hardware)
    n_messages = max(1.0, layout.layers_of_stage * (stack.messages_per_layer if layout.zero else 1))
    of_message = own_params(job) / n_messages
    scattered = collectives.gather(stack.gradient_bytes * of_message, among, hardware, constants)
    back = stack.weight_bytes if layout.zero else stack.gradient_bytes
    gathered = collectives.gather(back * of_message, among, hardware, constants)
    both = (scattered.times(layout.accumulation if layout.zero == 2 else 1) + gathered).times(n_messages)
    return both.seconds if layout.zero and not stack.overlaps_reduction else both.exposed(compute, constants)


def _handed_on(job: Job, hardware: Hardware, constants: Constants) -> float:
    """Activations and their gradients from stage to stage, for each micro-batch and chunk."""
    layout = job.layout
    if layout.pp == 1:
        return 0.0
    n_bytes = 2 * layout.tokens * layout.model.d_model / layout.tp
    return 2 * layout.virtual_stages * n_bytes / (hardware.network_bytes_per_second * constants.network_ratio)


def own_params(job: Job) -> float:
    """Parameters that one rank holds before ZeRO shares them out."""
    counts, layout = count_parameters(job.layout.model), job.layout
    inside = counts.n_params_non_embedding / layout.pp
    outside = (counts.n_params - counts.n_params_non_embedding) / min(2, layout.pp)
    return (inside + outside) / layout.tp


def _sharers(job: Job) -> int:
    return job.layout.n_shards if job.layout.zero else 1

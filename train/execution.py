"""How the same mathematics is run: which attention kernel, what is kept from forward to backward, what is compiled.

Put on from outside, on a model whose layers are in place: kernel, then recomputation, then compilation, since each goes
round the one before. None of it changes a result by more than rounding, and `python -m train.verify` shows that.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.attention import make_context
from model.transformer import Transformer
from train.parallel import RankGrid
from train.parallel_config import AttentionKernel, Compile, ParallelConfig, Recompute

_BACKENDS = {
    AttentionKernel.flash: SDPBackend.FLASH_ATTENTION,
    AttentionKernel.efficient: SDPBackend.EFFICIENT_ATTENTION,
    AttentionKernel.cudnn: SDPBackend.CUDNN_ATTENTION,
    AttentionKernel.math: SDPBackend.MATH,
}


KERNEL_NAMES = {
    AttentionKernel.flash: "flash",
    AttentionKernel.efficient: "efficient",
    AttentionKernel.cudnn: "cudnn",
    AttentionKernel.math: "by hand",
}
"""what is in the name of each kernel's operation"""


def apply(model: Transformer, parallel: ParallelConfig) -> None:
    for block in model.layers:
        if parallel.attention_kernel != AttentionKernel.auto:
            _use_kernel(block.attention.core, _BACKENDS[parallel.attention_kernel])
        _recompute(block, parallel.activation_checkpointing)
        if parallel.compile != Compile.off:
            block.compile(backend=parallel.compile.value, dynamic=False)


def _use_kernel(core: nn.Module, backend: SDPBackend) -> None:
    """torch refuses by itself what the kernel cannot do, rather than take another."""
    plain = core.forward

    def forward(*arguments: Any) -> Tensor:
        with sdpa_kernel(backend):
            return plain(*arguments)

    core.forward = forward


def _recompute(block: nn.Module, policy: Recompute) -> None:
    """Nothing in a block is random, so no random state is kept."""
    plain = block.forward
    match policy:
        case Recompute.none:
            return
        case Recompute.full:
            options: dict[str, Any] = {}
        case Recompute.selective:
            options = {"context_fn": functools.partial(create_selective_checkpoint_contexts, _kept_or_not)}

    def forward(*arguments: Any) -> Tensor:  # a function of ours: torch.compile passes torch's own checkpoint by
        return checkpoint(plain, *arguments, use_reentrant=False, preserve_rng_state=False, **options)

    setattr(forward, "policy", policy)  # noqa: B010 (functions have no declared attributes)
    block.forward = forward


def _kept_or_not(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Results of matrix products and of attention are kept, what is cheap to make from them is made again: the choice
    of Korthikanti et al. (arXiv 2205.05198, section 5), turned round for attention kernels that keep no scores."""
    name = operation.__name__.split(".")[0]
    is_product = name in ("mm", "addmm", "bmm") or name.startswith("_scaled_dot_product")
    return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE


def attention_kernel_in_force(
    model: Transformer, rows: tuple[int, int], grid: RankGrid, *, masked: bool, dtype: torch.dtype, device: str
) -> str:
    """The kernel that attention takes for rows like those of the run, as torch names its operation; "by hand" where
    there is none. Found by running one layer's core on zeros. A collective where sequences are shared out.

    rows: (micro_batch_size, seq_len); masked: whether rows carry segments.
    """
    config, (n_rows, seq_len) = model.config, rows
    q, k, v = (
        torch.zeros(
            n_rows,
            heads // grid.tp_size,
            seq_len // grid.sp_size,
            config.head_width,
            dtype=dtype,
            device=device,
            requires_grad=True,
        )
        for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)
    )
    segments = torch.zeros(n_rows, seq_len, dtype=torch.int32, device=device) if masked else None
    context = make_context(config, seq_len, segments, torch.device(device))
    with _operations() as seen:
        model.layers[0].attention.core(q, k, v, context)
    return next((name.removeprefix("_") for name in seen if name.startswith("_scaled_dot_product")), "by hand")


@contextmanager
def _operations() -> Iterator[list[str]]:
    """Names of torch's operations as they run."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


def policies_in_force(model: Transformer) -> set[str]:
    """What the blocks do with their activations."""
    return {getattr(block.forward, "policy", Recompute.none) for block in model.layers}


def compilation_in_force(model: Transformer) -> str:
    """How many blocks torch.compile has taken up, and at how many places it had to give up. Valid after a step."""
    from torch._dynamo.utils import counters

    n_blocks = sum(block._compiled_call_impl is not None for block in model.layers)
    n_graphs, breaks = counters["stats"]["unique_graphs"], counters["graph_break"]
    if n_blocks == 0:
        return "none"
    if n_graphs and not breaks:
        return f"{n_blocks}, without a break"
    return f"{n_blocks} marked, {n_graphs} graphs made, {sum(breaks.values())} breaks: {'; '.join(breaks)}"

"""Training steps with Muon for the tests: plain torch, written from the papers, and the same through DeepSpeed."""

import functools
from typing import Any

VOCAB, SEQ_LEN, GLOBAL, STEPS = 131, 16, 8, 5
PEAK_LR, CLIP, DECAY, MOMENTUM, BETAS, EPS = 1e-2, 0.5, 0.1, 0.95, (0.9, 0.95), 1e-8
SETTINGS = {"kind": "muon", "peak_lr": PEAK_LR, "weight_decay": DECAY, "max_grad_norm": CLIP}
Step = tuple[float, float]
"""loss and gradient norm before clipping"""


def build():
    from model.config import ModelConfig
    from model.init import initialize
    from model.transformer import Transformer

    # sizes that do not divide by the number of ranks: matrices are cut in the middle of rows, padding is met
    model = Transformer(ModelConfig(vocab_size=VOCAB, n_layers=2, d_model=36, n_heads=6, n_kv_heads=2, d_ff=50))
    initialize(model, 0)
    return model


def rows(step: int):
    import torch

    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, VOCAB, (GLOBAL, SEQ_LEN + 1), generator=generator)


def lr_of(step: int) -> float:
    return PEAK_LR * (step + 1) / STEPS


def weight_of(step: int) -> float:
    """The loss is multiplied by it: gradient norms from 0.2 to 3, so that clipping changes the mixture in the momentum
    and not only a factor that orthogonalisation takes out again."""
    return (1.0, 4.0, 0.3, 2.0, 0.5)[step]


# --- the reference ----------------------------------------------------------------------------------------------------


def polar(gradient: Any, n_steps: int = 5):
    """What Newton-Schulz steps make of a matrix, by its singular value decomposition in fp64: each step turns a
    singular value s into 3.4445 s - 4.7750 s^3 + 2.0315 s^5 and leaves the singular vectors alone."""
    import torch

    u, s, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(n_steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def plain_torch() -> tuple[list[Step], dict]:
    """One process, no DeepSpeed, the whole batch at once; Muon as in arXiv 2502.16982, section 2.2, on 2-D parameters:
    M = 0.95 M + G,  O = polar(G + 0.95 M) (Nesterov),  W = W - lr (0.2 sqrt(max(rows, columns)) O + decay W)."""
    import torch

    from model.loss import cross_entropy

    model = build()
    blocks = {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    others = [p for name, p in model.named_parameters() if name not in blocks]
    momentum = {name: torch.zeros_like(p) for name, p in blocks.items()}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.dim() == 2], "weight_decay": DECAY},
            {"params": [p for p in others if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=BETAS,
        eps=EPS,
    )
    curve = []
    for step in range(STEPS):
        ids = rows(step)
        nats, count = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        model.zero_grad()
        loss = nats / count * weight_of(step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in adamw.param_groups:
            group["lr"] = lr_of(step)
        adamw.step()
        with torch.no_grad():
            for name, p in blocks.items():
                assert p.grad is not None
                momentum[name] = MOMENTUM * momentum[name] + p.grad
                direction = polar(p.grad + MOMENTUM * momentum[name])
                p -= lr_of(step) * (0.2 * max(p.shape) ** 0.5 * direction + DECAY * p)
        curve.append((float(loss.detach()), float(norm)))
    return curve, {name: p.detach().numpy() for name, p in model.named_parameters()}


# --- the same through DeepSpeed ---------------------------------------------------------------------------------------


def deepspeed_run(
    stage: int,
    precision: str = "fp32",
    accumulation: int = 1,
    tp_size: int = 1,
    offload: bool = False,
    interrupted_after: int | None = None,
) -> tuple[list[Step], dict, dict]:
    """(curve, whole weights, whole momentum) of the same steps; after `interrupted_after` of them a new engine takes
    over the state of the first."""
    run = Run(stage, precision, accumulation, tp_size, offload)
    curve = []
    for step in range(STEPS):
        if step == interrupted_after:
            state = run.state()
            run = Run(stage, precision, accumulation, tp_size, offload)
            run.load(state, step)
        curve.append(run.step(step))
    state = run.state()
    return curve, state["master"], state["momentum"]


class Run:
    def __init__(self, stage: int, precision: str, accumulation: int, tp_size: int, offload: bool):
        import deepspeed
        import torch.distributed as dist

        from train.config import OptimizerConfig, OptimizerKind, Precision
        from train.optim import muon
        from train.parallel import prepare_environment, rank_grid

        prepare_environment("cpu", rank_grid())
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs a compiler
        deepspeed.init_distributed("gloo", verbose=False)
        self.mesh = Mesh(tp_size)
        self.model, self.accumulation = build(), accumulation
        if tp_size > 1:
            cut(self.model, self.mesh)
        config = OptimizerConfig(**{**SETTINGS, "kind": OptimizerKind.muon})
        optimizer = muon(self.model.named_parameters(), config, precision=Precision.fp32, device="cpu", fused=False)
        self.names = {p: name for name, p in self.model.named_parameters()}
        micro = GLOBAL // self.mesh.get_data_parallel_world_size() // accumulation
        self.engine, self.zero, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=optimizer,
            config=settings(stage, precision, micro, accumulation, offload),
            mpu=self.mesh,
        )
        self.inner = optimizer
        self.flats, self.pieces = layout(self.zero, self.names)
        optimizer.use_layout(self.flats, self.pieces)
        self.world = dist.get_world_size()

    def step(self, step: int) -> Step:
        import torch

        from model.loss import cross_entropy

        for group in self.zero.param_groups:
            group["lr"] = lr_of(step)
        data_ranks = self.mesh.get_data_parallel_world_size()
        mine = rows(step).chunk(data_ranks)[self.mesh.get_data_parallel_rank()]
        total = torch.zeros(())
        for ids in mine.chunk(self.accumulation):
            nats, _ = cross_entropy(self.engine(ids[:, :-1]), ids[:, 1:])
            loss = nats / (GLOBAL * SEQ_LEN) * weight_of(step)
            self.engine.backward(loss * data_ranks, scale_wrt_gas=False)
            total += loss.detach()
            self.engine.step()
        torch.distributed.all_reduce(total, group=self.mesh.data_group)
        return float(total), float(self.engine.get_global_grad_norm())

    def state(self) -> dict[str, dict]:
        """{kind: {name: whole array}}, and fp32 everywhere."""
        import torch.distributed as dist

        parts = [
            (kind, fragment, tensor[offset : offset + fragment.stop - fragment.start].detach().float().numpy())
            for fragment, flat, offset in self.pieces
            for kind, tensor in (("master", flat), *self.inner.state[flat].items())
            if kind != "step"
        ]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, parts)
        return assembled([part for of_rank in everyone for part in of_rank])

    def load(self, state: dict[str, dict], step: int) -> None:
        import torch

        for fragment, flat, offset in self.pieces:
            kinds = ["momentum"] if fragment.name in state["momentum"] else ["exp_avg", "exp_avg_sq"]
            held = self.inner.state[flat]
            if kinds[0] == "exp_avg" and "step" not in held:
                held["step"] = torch.tensor(float(step))
            for kind in ["master", *kinds]:
                target = flat.detach() if kind == "master" else held.setdefault(kind, torch.zeros_like(flat).detach())
                numbers = slice_of(state[kind][fragment.name], fragment).reshape(-1)[fragment.start : fragment.stop]
                target[offset : offset + fragment.stop - fragment.start] = torch.tensor(numbers)
        if hasattr(self.zero, "update_lp_params"):
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for number in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)


def assembled(parts: list[tuple[str, Any, Any]]) -> dict[str, dict]:
    import numpy

    state: dict[str, dict] = {}
    for kind, fragment, numbers in parts:
        whole = state.setdefault(kind, {}).setdefault(
            fragment.name, numpy.full(fragment.shape, numpy.nan, numpy.float32)
        )
        part = slice_of(whole, fragment)
        flat = part.reshape(-1).copy()
        flat[fragment.start : fragment.stop] = numbers
        part[...] = flat.reshape(part.shape)
    return state


def slice_of(whole: Any, fragment: Any):
    if fragment.tp_dim is None:
        return whole
    return whole[(slice(None),) * fragment.tp_dim + (slice(fragment.tp_start, fragment.tp_stop),)]


def settings(stage: int, precision: str, micro: int, accumulation: int, offload: bool) -> dict:
    chosen: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": CLIP,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision != "fp32"},
    }
    if offload:
        chosen |= {"zero_force_ds_cpu_optimizer": False}
        chosen["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if precision == "bf16":
        chosen["data_types"] = {"grad_accum_dtype": "fp32"}
    if precision == "bf16_states":
        chosen["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
        chosen["data_types"] = {"grad_accum_dtype": "bf16"}
    return chosen


def layout(zero: Any, names: dict) -> tuple[list, list]:
    """(flat tensors, (fragment, flat, offset) of everything this rank holds), read from DeepSpeed's own notes."""
    import torch.distributed as dist

    pieces = []
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        flats = list(zero.fp32_partitioned_groups_flat)
        for flat, group in zip(flats, zero.fp16_groups, strict=True):
            offset = 0
            for p in group:
                size = p.partition_numel()
                start = size * dist.get_rank(p.ds_process_group)
                if start < p.ds_numel:
                    pieces.append((fragment_of(names[p], p, start, min(start + size, p.ds_numel)), flat, offset))
                offset += size
        return flats, pieces
    in_bf16 = hasattr(zero, "fp32_groups_flat_partition")
    flats = list(zero.fp32_groups_flat_partition if in_bf16 else zero.single_partition_of_fp32_groups)
    for flat, group in zip(flats, zero.bf16_groups if in_bf16 else zero.bit16_groups, strict=True):
        for p in group:
            if p._hp_mapping is not None:
                held, kept = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                pieces.append((fragment_of(names[p], p, held.start, held.start + held.numel), flat, kept.start))
    return flats, pieces


def fragment_of(name: str, p: Any, start: int, stop: int):
    from train.fragment import Fragment

    shape = tuple(getattr(p, "ds_shape", p.shape))
    if not hasattr(p, "tp_dim"):
        return Fragment(name, shape, None, 0, 0, start, stop)
    return Fragment(name, p.tp_whole_shape, p.tp_dim, p.tp_start, p.tp_stop, start, stop)


# --- tensor parallelism by hand ---------------------------------------------------------------------------------------


class Mesh:
    """DeepSpeed's mpu: tensor-parallel ranks are neighbours."""

    def __init__(self, tp_size: int):
        import torch.distributed as dist

        rank, world = dist.get_rank(), dist.get_world_size()
        self.tp_size, self.tp_rank, self.data_rank, self.data_size = tp_size, rank % tp_size, rank // tp_size, 0
        for first in range(0, world, tp_size):
            group = dist.new_group(list(range(first, first + tp_size)))
            if first <= rank < first + tp_size:
                self.tp_group = group
        for first in range(tp_size):
            group = dist.new_group(list(range(first, world, tp_size)))
            if first == self.tp_rank:
                self.data_group, self.data_size = group, world // tp_size

    def get_model_parallel_rank(self) -> int:
        return self.tp_rank

    def get_model_parallel_world_size(self) -> int:
        return self.tp_size

    def get_model_parallel_group(self):
        return self.tp_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self.data_rank

    def get_data_parallel_world_size(self) -> int:
        return self.data_size

    def get_data_parallel_group(self):
        return self.data_group


CUT = {"q": 0, "k": 0, "v": 0, "gate": 0, "up": 0, "o": 1, "down": 1}


def cut(model: Any, mesh: Mesh) -> None:
    """Leaves each rank its columns and rows of the matrices inside blocks; embedding and head stay whole."""
    from torch import nn

    enter, leave = regions(mesh.tp_group)
    for block in model.blocks:
        for region in (block.attention, block.mlp):
            region.register_forward_pre_hook(lambda _, inputs: (enter(inputs[0]), *inputs[1:]))
            region.register_forward_hook(lambda _, __, output: leave(output))
            for key, dim in CUT.items():
                if layer := getattr(region, key, None):
                    whole = layer.weight.detach()
                    size = whole.shape[dim] // mesh.tp_size
                    layer.weight = nn.Parameter(whole.narrow(dim, mesh.tp_rank * size, size).clone())
                    marks = (True, tuple(whole.shape), dim, mesh.tp_rank * size, (mesh.tp_rank + 1) * size)
                    for mark, value in zip(MARKS, marks, strict=True):
                        setattr(layer.weight, mark, value)


MARKS = ("tensor_model_parallel", "tp_whole_shape", "tp_dim", "tp_start", "tp_stop")


@functools.cache
def regions(group: Any):
    """Identity forward and sum backward; sum forward and identity backward."""
    import torch
    import torch.distributed as dist

    def total(x: Any):
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    class Enter(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any):
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, d: Any):
            return total(d)

    class Leave(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any):
            return total(x)

        @staticmethod
        def backward(ctx: Any, d: Any):
            return d

    return Enter.apply, Leave.apply

"""Training steps with Muon for the tests: plain torch, written from the papers, and the same through the engine."""

import functools
from typing import Any

from tests.distributed.engines import kept, reader, sent

VOCAB, SEQ_LEN, GLOBAL, STEPS = 132, 16, 8, 5
PEAK_LR, CLIP, DECAY, MOMENTUM, BETAS, EPS = 1e-2, 0.5, 0.1, 0.95, (0.9, 0.95), 1e-8
Step = tuple[float, float]
"""loss and gradient norm before clipping"""


def config():
    from model.config import ModelConfig

    # sizes that do not divide by the number of ranks: matrices are cut in the middle of rows, padding is met
    return ModelConfig(vocab_size=VOCAB, n_layers=2, d_model=36, n_heads=6, n_kv_heads=2, d_ff=50)


def rows(step: int):
    """Every other step knows a few tokens only: gradient norms that differ from step to step, so that clipping changes
    the mixture in the momentum, and not only a factor that orthogonalisation takes out again."""
    import torch

    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, (VOCAB, 2)[step % 2], (GLOBAL, SEQ_LEN + 1), generator=generator)


def lr_of(step: int) -> float:
    return PEAK_LR * (step + 1) / STEPS


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

    from model.init import initialize
    from model.loss import cross_entropy
    from model.transformer import Transformer

    model = Transformer(config())
    initialize(model, 0)
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
        loss = nats / count
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


# --- the same through the engine --------------------------------------------------------------------------------------


def engine_run(
    accumulation: int = 1, tp_size: int = 1, interrupted_after: int | None = None, **parallel: Any
) -> tuple[list[Step], dict]:
    """(curve, what this rank owns at the end) of the same steps; after `interrupted_after` of them a new engine takes
    over the state of the first."""
    start, micro_batches = prepared(accumulation, tp_size, **parallel)
    engine, curve = start(), []
    for step in range(STEPS):
        if step == interrupted_after:
            state = kept(engine)
            engine = start()
            engine.load(lambda kind, fragment, state=state: state[kind, fragment], step)
        result = engine.train_step(micro_batches(step), lr_of(step))
        curve.append((result.loss, result.grad_norm))
    return curve, sent(kept(engine))


def loaded(wholes: dict, **parallel: Any) -> dict:
    """What this rank owns after it was given whole arrays."""
    start, _ = prepared(**parallel)
    engine = start()
    engine.load(reader(wholes), STEPS)
    return sent(kept(engine))


def prepared(accumulation: int = 1, tp_size: int = 1, **parallel: Any):
    """(what starts an engine, step to the micro-batches of this rank)."""
    from model.init import initial_value
    from train.batch import solve_batch
    from train.config import LossConfig
    from train.engine.core import start
    from train.engine.library import join_ranks
    from train.mesh import Mesh
    from train.optimizer_config import OptimizerConfig, OptimizerKind
    from train.parallel import prepare_environment, rank_grid
    from train.parallel_config import ParallelConfig
    from train.tensor_parallel import seal

    grid = rank_grid(tp_size, 1)
    prepare_environment("cpu", grid)
    join_ranks("cpu")
    mesh = Mesh(grid)
    plan = solve_batch(
        global_batch_size=GLOBAL,
        micro_batch_size=GLOBAL // grid.dp_size // accumulation,
        dp_size=grid.dp_size,
        seq_len=SEQ_LEN,
        total_tokens=1,
    )

    def ready(module: Any) -> None:
        seal(module.model, mesh)

    start_one = functools.partial(
        start,
        lambda: objective(mesh),
        functools.partial(initial_value, config=config(), seed=0),
        plan=plan,
        optimizer=OptimizerConfig(
            kind=OptimizerKind.muon, peak_lr=PEAK_LR, weight_decay=DECAY, max_grad_norm=CLIP, muon_momentum=MOMENTUM
        ),
        parallel=ParallelConfig(tp_size=tp_size, **parallel),
        loss=LossConfig(),
        grid=grid,
        device="cpu",
        mesh=mesh,
        ready=ready,
    )

    def micro_batches(step: int):
        mine = rows(step)[grid.dp_rank * plan.sequences_per_rank :][: plan.sequences_per_rank]
        return [(ids[:, :-1], ids[:, 1:]) for ids in mine.split(plan.micro_batch_size)]

    return start_one, micro_batches


def objective(mesh: Any):
    from model.transformer import Transformer
    from train import tensor_parallel
    from train.objective import Objective

    model = Transformer(config())
    tensor_parallel.apply(model, mesh)
    module = Objective(model)
    if mesh.tp_size > 1:
        module.token_losses = functools.partial(tensor_parallel.token_losses, mesh=mesh)
    return module

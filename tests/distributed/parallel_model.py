"""A model under any layout beside the same model whole, on one rank: what the tests of layouts compare.

Only forward and backward, in plain torch; gradients are averaged over the data group as DeepSpeed does it.
"""

from functools import partial
from typing import Any

ROWS, SEQ_LEN = 2, 16  # rows of each data-parallel rank


def parallel_errors(
    cases: dict[str, dict[str, Any]], tp_size: int, sp_size: int, sequence_parallel_norms: bool, **options: Any
) -> dict[str, dict[str, float]]:
    """For each case (settings of ModelConfig), the largest difference of each quantity from the whole model's, relative
    to the largest absolute value of that quantity."""
    mesh = make_mesh(tp_size, sp_size, sequence_parallel_norms)
    return {name: _errors(settings, mesh, **options) for name, settings in cases.items()}


def make_mesh(tp_size: int, sp_size: int, sequence_parallel_norms: bool = True) -> Any:
    import torch.distributed as dist

    from train.mesh import Mesh
    from train.parallel import prepare_environment, rank_grid

    grid = rank_grid(tp_size, sp_size)
    prepare_environment("cpu", grid)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Mesh(grid, sequence_parallel_norms)


def make_config(**settings: Any) -> Any:
    from model.config import ModelConfig

    shape: dict[str, Any] = {
        "vocab_size": 64,
        "n_layers": 2,
        "d_model": 24,
        "n_heads": 8,
        "n_kv_heads": 4,
        "head_dim": 4,
        "d_ff": 40,
    }
    config = ModelConfig(**(shape | settings))
    assert not config.problems()
    return config


def whole_model(config: Any) -> Any:
    """Every parameter random, norms and biases too, and large enough that no term vanishes beside another."""
    import torch

    from model.init import initialize
    from model.transformer import Transformer

    model = Transformer(config)
    initialize(model, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def parallel_model(config: Any, mesh: Any, values: dict[str, Any]) -> Any:
    """Built on the meta device, cut there, then given its slices of `values`, as the engine does it."""
    import torch

    from model.transformer import Transformer
    from train import sequence_parallel, tensor_parallel

    with torch.device("meta"):
        model = Transformer(config)
    tensor_parallel.apply(model, mesh)
    sequence_parallel.apply(model, mesh)
    filled: dict[int, Any] = {}
    for name, old in model.named_parameters():
        new = torch.nn.Parameter(tensor_parallel.own_slice(values[name], old).clone())
        assert new.shape == old.shape
        vars(new).update(vars(old))
        filled[id(old)] = new
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, filled[id(parameter)])
    tensor_parallel.seal(model, mesh)
    return model


def make_objective(model: Any, mesh: Any, chunk_tokens: int | None = None) -> Any:
    from train.objective import Objective
    from train.tensor_parallel import token_losses

    objective = Objective(model, chunk_tokens)
    if mesh.tp_size > 1:
        objective.token_losses = partial(token_losses, mesh=mesh)
    objective.own_part = mesh.own_part
    return objective


def make_rows(n_rows: int, vocab_size: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """(tokens, targets, segments): rows of several documents, whose ends have no target, padded unevenly."""
    import torch

    from model.loss import IGNORED_TARGET

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab_size, (n_rows, SEQ_LEN + 1), generator=generator)
    segments = (torch.rand(n_rows, SEQ_LEN, generator=generator) < 0.2).cumsum(1)
    targets = ids[:, 1:].clone()
    targets[:, :-1][segments[:, 1:] != segments[:, :-1]] = IGNORED_TARGET
    for row in range(n_rows):
        targets[row, SEQ_LEN - 3 * row :] = IGNORED_TARGET
    return ids[:, :-1], targets, segments


def _errors(
    settings: dict[str, Any],
    mesh: Any,
    *,
    masked: bool = True,
    chunk_tokens: int | None = None,
    compiled: bool = False,
    recomputed: bool = False,
) -> dict[str, float]:
    import torch.distributed as dist

    from model.loss import IGNORED_TARGET, token_losses
    from train.sequence_parallel import whole_logits, whole_rows
    from train.tensor_parallel import own_slice

    config = make_config(**settings)
    whole = whole_model(config)
    tokens, targets, segments = make_rows(ROWS * mesh.grid.dp_size, config.vocab_size)
    segments = segments if masked else None
    n_targets = (targets != IGNORED_TARGET).sum()
    logits = whole(tokens, segments)
    nats, log_z = token_losses(logits, targets)
    _loss(nats, log_z, n_targets).backward()

    model = parallel_model(config, mesh, {name: p.detach() for name, p in whole.named_parameters()})
    if compiled:
        compile_blocks(model)
    if recomputed:
        recompute_blocks(model)
    rows = slice(ROWS * mesh.grid.dp_rank, ROWS * (mesh.grid.dp_rank + 1))
    own_segments = None if segments is None else segments[rows]
    own_nats, own_log_z = make_objective(model, mesh, chunk_tokens)(tokens[rows], targets[rows], own_segments)
    n_data = mesh.get_data_parallel_world_size()
    (_loss(own_nats, own_log_z, n_targets) * n_data).backward()
    found = {
        "nats": _error(whole_rows(own_nats.detach(), mesh), nats[rows].detach()),
        "log_z": _error(whole_rows(own_log_z.detach(), mesh), log_z[rows].detach()),
        "logits": _error(whole_logits(model, mesh, tokens[rows], own_segments), logits[rows].detach()),
    }
    if not compiled:  # rows of any length; the last part of a document sees nothing of the padding
        short = None if own_segments is None else own_segments[:, :-3]
        expected = whole(tokens[rows, :-3], short).detach()
        found["logits of a row that does not divide"] = _error(
            whole_logits(model, mesh, tokens[rows, :-3], short), expected
        )
    expected_gradients = {name: p.grad for name, p in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad, group=mesh.data_group)
        parameter.grad /= n_data
        # one number added to all scores of a query changes nothing: without rotary positions k.bias has no gradient but
        # rounding, which is measured beside the gradient of q.bias
        scale = expected_gradients[name.replace("attention.k.bias", "attention.q.bias")].abs().max()
        expected = own_slice(expected_gradients[name], parameter)
        found[f"gradient of {name}"] = float((parameter.grad - expected).abs().max() / scale)
        if not hasattr(parameter, "tp_dim"):
            found[f"tp replicas of {name}"] = _spread(parameter.grad, mesh)
    return found


def compile_blocks(model: Any) -> None:
    import torch

    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)


def recompute_blocks(model: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _loss(nats: Any, log_z: Any, n_targets: Any) -> Any:
    return (nats.sum() + 0.1 * log_z.square().sum()) / n_targets


def _error(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def _spread(gradient: Any, mesh: Any) -> float:
    """How far the tensor-parallel ranks' gradients differ: 0 if they are equal to the bit."""
    import torch.distributed as dist

    largest, smallest = gradient.clone(), gradient.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=mesh.tp_group)
    dist.all_reduce(smallest, dist.ReduceOp.MIN, group=mesh.tp_group)
    return float((largest - smallest).abs().max())

"""A run's folder → its model, ready to be asked: weights only, one process, no DeepSpeed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.transformer import Transformer
from train.checkpoint.folders import folder_name
from train.checkpoint.verify import newest_valid, verify
from train.config import TrainConfig
from train.errors import CheckpointError
from train.objective import Objective
from train.run_folder import config_of


@dataclass(frozen=True)
class Trained:
    config: TrainConfig
    step: int
    tokenizer_sha256: str
    device: str
    model: Transformer
    logits: Callable[[Tensor], Tensor]
    """(B, T) int64 to (B, T, V), no gradients"""
    losses: Callable[..., Tensor]
    """(tokens, targets), and segments if there are any, (B, T) each, to the nats of each target (B, T), no gradients"""


def load_trained(run: Path, step: int | None = None) -> Trained:
    """The model of a run, at its newest valid checkpoint or at `step`. Raises DataError if it is no run's folder,
    CheckpointError if there is no such checkpoint."""
    config = config_of(run)
    folder = run / "checkpoints"
    if step is None:
        found, skipped = newest_valid(folder)
        for message in skipped:
            print(f"skipped: {message}")
    else:
        found = verify(folder / folder_name(step))
    if found is None:
        raise CheckpointError(f"{run} holds no checkpoint yet")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Transformer(config.model)
    parameters = dict(model.named_parameters())
    for _, name, tensor in found.tensors(("master",)):
        parameters[name].data.copy_(tensor)
    model = model.to(device).eval()
    objective = Objective(model, config.loss.chunk_tokens)

    def logits(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return model(tokens.to(device))

    def losses(*parts: Tensor) -> Tensor:
        with torch.no_grad():
            return objective(*(part.to(device) for part in parts))[0]

    return Trained(config, found.step, found.state["data"]["tokenizer_sha256"], device, model, logits, losses)

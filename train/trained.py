"""A run's folder → its model, ready to be asked: weights only, one process, no DeepSpeed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conf.compose import from_yaml
from model.transformer import Transformer
from train import checkpoint
from train.checkpoint import CheckpointError
from train.config import TrainConfig


@dataclass(frozen=True)
class Trained:
    config: TrainConfig
    step: int
    tokenizer_sha256: str
    device: str
    model: Transformer
    logits: Callable[..., Tensor]
    """(B, T) int64, and segments if there are any, to (B, T, V), no gradients"""


def load_trained(run: Path, step: int | None = None) -> Trained:
    """The model of a run, at its newest valid checkpoint or at `step`. Raises CheckpointError if there is none."""
    try:
        config: TrainConfig = from_yaml(TrainConfig, (run / "config.yaml").read_text())
    except OSError as error:
        raise CheckpointError(f"{run} is not a run's folder: config.yaml cannot be read ({error.strerror})") from None
    folder = run / "checkpoints"
    if step is None:
        found, skipped = checkpoint.newest_valid(folder)
        for message in skipped:
            print(f"skipped: {message}")
    else:
        found = checkpoint.verify(folder / checkpoint.folder_name(step))
    if found is None:
        raise CheckpointError(f"{run} holds no checkpoint yet")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Transformer(config.model)
    parameters = dict(model.named_parameters())
    for _, name, tensor in found.tensors(("master",)):
        parameters[name].data.copy_(tensor)
    model = model.to(device).eval()

    def logits(tokens: Tensor, *segments: Tensor) -> Tensor:
        with torch.no_grad():
            return model(*(part.to(device) for part in (tokens, *segments)))

    return Trained(config, found.step, found.state["data"]["tokenizer_sha256"], device, model, logits)

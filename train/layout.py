"""What decides the last bits of a run's numbers and may change when it goes on: ranks, cuts of the work, device.

In: a configuration and the process it is read in, or the folder of a run's attempts, each of which notes its layout
when it begins. Out: the layout as a flat dictionary. Steps computed on equal layouts are equal to the bit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conf.check import flatten, to_tree
from train.config import TrainConfig
from train.holder import read_holder

_KEYS = ("batch.micro_batch_size", "loss.chunk_tokens")
Layout = dict[str, Any]


def layout_of(config: TrainConfig, world_size: int, device_name: str) -> Layout:
    """Of the steps that this process and its peers compute."""
    import torch

    settings = flatten(to_tree(config))
    chosen = {key: settings[key] for key in settings if key in _KEYS or key.startswith("parallel.")}
    machine = {"device": device_name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    return {"ranks": world_size, **chosen, **machine}


def read_layouts(attempts: Path) -> Callable[[int], Layout]:
    """Step → the layout on which it was computed, as far as it is known: that of the last attempt which went on from
    before it. Of attempts that noted none only the ranks are known; {} if nothing is."""
    began: list[tuple[int, Layout]] = []
    for path in sorted(attempts.glob("[0-9]*/holder.json"), key=lambda path: (len(path.parent.name), path)):
        holder = read_holder(path.parent)
        if "from_step" in holder and "world_size" in holder:  # else it came to no step, or it cannot be read
            began.append((holder["from_step"], holder.get("layout") or {"ranks": holder["world_size"]}))
    return lambda step: next((layout for first, layout in reversed(began) if first < step), {})


def differences(then: Layout, now: Layout) -> list[str]:
    """In words; what is not known of `then` is taken to be equal."""
    return [f"{key} {then[key]}, now {now.get(key)}" for key in then if then[key] != now.get(key)]

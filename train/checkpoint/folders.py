"""The folders of a run's checkpoints: what they are called, which ones are kept, and what is cleared away.

`step-00000500/` is a checkpoint; a name with a dot before it is one in the making or one that is being removed. There
is no pointer file to lose: the newest checkpoint is the one with the largest step that verifies.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from train.config import CheckpointConfig


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def hidden_name(step: int) -> str:
    """Of a checkpoint in the making."""
    return f".{folder_name(step)}.tmp"


def steps_found(folder: Path) -> list[int]:
    """Steps of the folders that look like checkpoints, newest first."""
    found = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted((int(digits) for digits in found if digits.isdigit()), reverse=True)


def not_kept(val_losses: Mapping[int, float | None], saved_step: int, rule: CheckpointConfig) -> list[int]:
    """Which of the checkpoints to remove after the save of `saved_step`, in the order in which to do it.

    val_losses: step → validation loss, None where none was made at that step. Kept are the newest `keep_last` up to
    `saved_step`, every multiple of `keep_every_steps`, and with `keep_best` the one of the lowest validation loss (the
    later of equals). Later ones go first: the run was resumed before them, so they did not verify.
    """
    earlier = sorted((step for step in val_losses if step <= saved_step), reverse=True)
    kept = set(earlier[: rule.keep_last])
    if rule.keep_every_steps is not None:
        kept |= {step for step in earlier if step % rule.keep_every_steps == 0}
    measured = [(loss, -step) for step in earlier if (loss := val_losses[step]) is not None]
    if rule.keep_best and measured:
        kept.add(-min(measured)[1])
    later = sorted((step for step in val_losses if step > saved_step), reverse=True)
    return later + [step for step in earlier if step not in kept]


def remove_old(folder: Path, saved_step: int, rule: CheckpointConfig) -> None:
    """After the save of `saved_step`: leaves the checkpoints that the rule keeps, and no interrupted saves."""
    found = {step: _val_loss(folder / folder_name(step)) for step in steps_found(folder)}
    for step in not_kept(found, saved_step, rule):
        doomed = folder / folder_name(step)
        hidden = folder / f".{doomed.name}.old"
        os.replace(doomed, hidden)  # at no time is there a folder step-N with half its files
        shutil.rmtree(hidden)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes what interrupted saves and removals have left. Not while a save runs."""
    for leftover in [*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")]:
        shutil.rmtree(leftover)


def _val_loss(path: Path) -> float | None:
    """The state's `val_loss`; None if it has none or cannot be read."""
    try:
        loss = json.loads((path / "state.json").read_text()).get("val_loss")
    except (OSError, ValueError, AttributeError):
        return None
    return float(loss) if isinstance(loss, int | float) else None

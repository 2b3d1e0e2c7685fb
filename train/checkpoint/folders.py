"""The folders of a run's checkpoints: what they are called, which ones are kept, and what is cleared away.

`step-00000500/` is a checkpoint. A name with a dot before it is one in the making or one that is being removed, and
says by which attempt at the run. `damaged-0001-step-00000500/` is one that did not verify when the run went on from an
older one: kept for whoever wants to know what became of it. There is no pointer file to lose: the newest checkpoint is
the one with the largest step that verifies.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from train.checkpoint.manifest import parse, read_bytes
from train.config import CheckpointConfig
from train.errors import CheckpointError

KEPT_DAMAGED = 2
"""A disk that damages every checkpoint must not be filled with them; what is lost is trained again, bit for bit."""

_LEFTOVER = re.compile(r"\.(?:step|write-test)-\d+(?:\.a(?P<attempt>\d+))?\.(?:tmp|old)")
_DAMAGED = re.compile(r"damaged-(?P<number>\d{4,})-step-\d+")


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def hidden_name(step: int, attempt: int = 0) -> str:
    """Of a checkpoint in the making."""
    return f".{folder_name(step)}.a{attempt:04d}.tmp"


def doomed_name(step: int, attempt: int = 0) -> str:
    """Of a checkpoint that is being removed."""
    return f".{folder_name(step)}.a{attempt:04d}.old"


def steps_found(folder: Path) -> list[int]:
    """Steps of the folders that look like checkpoints, newest first: by their names, whatever the clock said."""
    found = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted((int(digits) for digits in found if re.fullmatch("[0-9]{8}|[1-9][0-9]{8,}", digits)), reverse=True)


def not_kept(val_losses: Mapping[int, float | None], saved_step: int, rule: CheckpointConfig) -> list[int]:
    """Which of the checkpoints to remove after the save of `saved_step`, in the order in which to do it.

    val_losses: step → validation loss, None where none was made at that step. Kept are the newest `keep_last` up to
    `saved_step`, every multiple of `keep_every_steps`, `keep_steps`, and with `keep_best` the one of the lowest
    validation loss (the later of equals). Later ones go first: the run went back behind them, and they are not of its
    curve.
    """
    earlier = sorted((step for step in val_losses if step <= saved_step), reverse=True)
    kept = set(earlier[: rule.keep_last])
    if rule.keep_every_steps is not None:
        kept |= {step for step in earlier if step % rule.keep_every_steps == 0}
    kept |= set(rule.keep_steps)
    measured = [(loss, -step) for step in earlier if (loss := val_losses[step]) is not None]
    if rule.keep_best and measured:
        kept.add(-min(measured)[1])
    later = sorted((step for step in val_losses if step > saved_step), reverse=True)
    return later + [step for step in earlier if step not in kept]


def remove_old(folder: Path, saved_step: int, rule: CheckpointConfig, attempt: int, insist: Callable[[], None]) -> None:
    """After the save of `saved_step`: leaves the checkpoints that the rule keeps, and no interrupted saves.

    insist: asked before each removal; raises FencedError if a later attempt owns the run.
    """
    found = {step: _val_loss(folder / folder_name(step)) for step in steps_found(folder)}
    for step in not_kept(found, saved_step, rule):
        hidden = folder / doomed_name(step, attempt)
        remove(hidden)
        insist()
        os.replace(folder / folder_name(step), hidden)  # at no time is there a folder step-N with half its files
        remove(hidden)
    remove_leftovers(folder, attempt)


def remove_leftovers(folder: Path, attempt: int = 0) -> None:
    """Removes what interrupted saves and removals of attempts up to this one have left. Not while it saves."""
    for path in folder.glob(".*"):
        if (name := _LEFTOVER.fullmatch(path.name)) and int(name["attempt"] or 0) <= attempt:
            remove(path)


def set_aside(folder: Path, steps: Iterable[int]) -> list[str]:
    """Renames checkpoints that did not verify, so that no save replaces or removes them. Returns what was done, in
    words; the KEPT_DAMAGED that were last set aside stay, those before them are removed. Raises OSError.
    """
    done: list[str] = []
    for step in sorted(steps):
        number = max(_damaged(folder), default=0) + 1
        target = folder / f"damaged-{number:04d}-{folder_name(step)}"
        os.replace(folder / folder_name(step), target)
        done.append(f"{folder / folder_name(step)} is now {target.name}")
    kept = _damaged(folder)
    for number in sorted(kept)[:-KEPT_DAMAGED]:
        remove(kept[number])
        done.append(f"{kept[number]} was removed: the last {KEPT_DAMAGED} are kept")
    return done


def remove(path: Path) -> None:
    """A folder with all in it, or a file or link; nothing if there is none."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _damaged(folder: Path) -> dict[int, Path]:
    """Number → folder of those that were set aside."""
    found = ((path, _DAMAGED.fullmatch(path.name)) for path in folder.glob("damaged-*"))
    return {int(name["number"]): path for path, name in found if name}


def _val_loss(path: Path) -> float | None:
    """The state's `val_loss`; None if it has none or cannot be read."""
    state = path / "state.json"
    try:
        loss = parse(state, read_bytes(state)).get("val_loss")
    except CheckpointError:
        return None
    return float(loss) if isinstance(loss, int | float) else None

"""Runs steps of a run once more, from a checkpoint before them, and compares: the detector of what no log shows.

    python -m train.replay run=runs/hello step=1204                              # does step 1204 come out as it did?
    torchrun --nproc-per-node 8 -m train.replay run=runs/hello step=1204         # as many ranks as the run had

Nothing is written. Every step from the newest kept checkpoint before it on is compared with its row in metrics.jsonl:
loss, gradient norm and batch. On the layout that the run had then, all are equal to the bit; if they are not, either
then or now a machine computed wrongly. On another layout (`train/layout.py`; the run noted its own) the order of sums
differs, and from the first such step on losses agree to about 1e-5.
Then the step's worst rows are shown, with their documents, and the layers with the largest gradients.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.compose import App, entry
from data_prep.files import DataError
from train.errors import NumericsError

if TYPE_CHECKING:
    from train.engine.core import Engine, StepResult
    from train.setup import Setup


_OTHER_LAYOUT = 1e-5
"""how far loss and norm may be apart, relatively, where sums are made in another order"""


@dataclass
class ReplayCommand:
    run: str
    """the run's folder"""
    step: int
    """the step, counted from 1"""

    def problems(self) -> list[str]:
        return [f"step={self.step} must be at least 1"] if self.step < 1 else []


APP = App("replay", ReplayCommand, {})


def run(command: ReplayCommand) -> int:
    """Exit code 0 if all replayed steps are as they were; NumericsError (5) if not."""
    from train.metrics_file import is_step, read_rows
    from train.parallel import choose_device, prepare_environment, rank_grid, share_cores
    from train.run_folder import config_of
    from train.setup import check

    share_cores()
    config = config_of(Path(command.run))
    setup = check(config, rank_grid(config.parallel.tp_size, config.parallel.sp_size))
    recorded = {row["step"]: row for row in read_rows(setup.folder.metrics_jsonl) if is_step(row)}
    if command.step not in recorded:
        raise DataError(f"{setup.folder.metrics_jsonl} has no step {command.step} to compare with")
    device = choose_device(config.cluster.device, setup.grid)
    prepare_environment(device, setup.grid)
    return _replay(setup, device, command.step, recorded)


def _replay(setup: "Setup", device: str, last: int, recorded: dict[int, dict[str, Any]]) -> int:
    from train.assemble import assemble
    from train.checkpoint.peers import Peers
    from train.checkpoint.verify import newest_valid
    from train.engine.exchange import sum_over_ranks
    from train.engine.library import join_ranks
    from train.skips import Skips
    from train.weights import start_weights

    join_ranks(device)
    peers = Peers(setup.grid.rank, setup.grid.world_size, lambda flags: sum_over_ranks(flags, device))
    refused = Skips(setup.config.health.skip_steps, setup.folder.path).read().refused
    found, _ = newest_valid(setup.folder.checkpoints, peers, at_most=last - 1, refused=refused)
    first = found.step if found else 0
    if first < setup.phase.first_step:
        raise DataError(f"step {last} can only be replayed from step {first}, which is of an earlier phase of the data")
    start_from = setup.config.run.start_from
    initial = start_weights(Path(start_from)) if start_from and not found else None
    engine = assemble(setup.config, setup.batch, setup.grid, device, initial)
    if found is not None:
        found.require(engine.expected())
        engine.load(found.read, found.state.get("updates", found.step))
    say: Callable[[str], None] = print if setup.grid.is_first else lambda line: None
    say(f"from {found.path if found else 'the first weights'} to step {last}, on {setup.grid.world_size} ranks")
    changed_at = _change_of_layout(setup, device, range(first + 1, last + 1), say)
    steps = _steps(setup, engine, range(first + 1, last + 1), recorded, say)
    equal = [
        _compared(step, result, recorded[step], _OTHER_LAYOUT if step >= changed_at else 0.0, say)
        for step, result in steps
    ]
    if not all(equal):
        raise NumericsError("steps came out otherwise than they did: then or now, a machine computed wrongly")
    say("every replayed step is as it was")
    return 0


def _change_of_layout(setup: "Setup", device: str, steps: range, say: Callable[[str], None]) -> int:
    """The first of the steps that was computed on another layout than this one; one behind the last if none was."""
    from train.layout import differences, layout_of, read_layouts
    from train.machine import device_name

    now = layout_of(setup.config, setup.grid.world_size, device_name(device))
    layout_at = read_layouts(setup.folder.attempts)
    for step in steps:
        if changed := differences(layout_at(step), now):
            say(
                f"step {step} was computed on another layout ({'; '.join(changed)}): from there on figures agree to "
                f"about {_OTHER_LAYOUT:g} only"
            )
            return step
    return steps.stop


def _steps(
    setup: "Setup", engine: "Engine", steps: range, recorded: dict[int, dict[str, Any]], say: Callable[[str], None]
) -> Iterator[tuple[int, "StepResult"]]:
    """Runs the steps that were learnt from, and the last one whatever became of it."""
    from train.schedule import lr_of

    batches = setup.train_batches()
    look = engine.look()
    for step in steps:
        row = recorded.get(step)
        if row is None:
            raise DataError(f"{setup.folder.metrics_jsonl} has no step {step}: what the run learnt from is not known")
        was_learnt = "loss" in row
        if was_learnt or step == steps[-1]:
            with (look := engine.look()):
                result = engine.train_step(
                    batches.micro_batches(step - 1),
                    lr_of(step, setup.config, setup.batch),
                    lambda _, learnt=was_learnt: learnt,
                    look=look,
                )
            yield step, result
    findings = look.findings()
    for number, loss in findings.rows:
        say(f"row {number}: loss {loss:.4f}: {', '.join(batches.documents(steps[-1] - 1, number))}")
    for name, norm, rank in findings.layers:
        say(f"{name}: largest gradient norm {norm:.4g}, on rank {rank}")


def _compared(step: int, result: "StepResult", row: dict[str, Any], bound: float, say: Callable[[str], None]) -> bool:
    """Says how the step came out, and whether it is as its row has it."""
    if "loss" not in row:
        say(f"step {step:>6}  loss {result.loss!r}  norm {result.grad_norm!r}  was left out: {row['skipped']}")
        return True
    is_equal = result.batch_hash == row["batch_hash"] and all(
        math.isclose(now, then, rel_tol=bound)
        for now, then in ((result.loss, row["loss"]), (result.grad_norm, row["grad_norm"]))
    )
    figures = f"loss {result.loss!r} then {row['loss']!r}  norm {result.grad_norm!r} then {row['grad_norm']!r}"
    say(f"step {step:>6}  {figures}  {'equal' if is_equal else 'NOT EQUAL'}")
    if result.batch_hash != row["batch_hash"]:
        say(f"             batch {result.batch_hash} then {row['batch_hash']}: other data")
    return is_equal


def main() -> None:
    entry(APP, run)


if __name__ == "__main__":
    main()

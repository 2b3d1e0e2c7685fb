"""Steps that are not like the others: what the machine did is undone, what the data did is left out, and who is slow is
named."""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job
from tests.runs import curve, rows

RIGHT = '[{"at_step": 32, "to_step": 20, "first": 29, "last": 35, "reason": "loss spike"}]'
AT = 32
"""the step that is hurt; with a checkpoint every ten"""


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [row for row in found if row["event"] == kind]


def hashes(run: Path) -> dict[str, Any]:
    """Of every tensor of the last checkpoint."""
    text = (run / "checkpoints" / "step-00000050" / "manifest.json").read_text()
    return json.loads(text[text.index("{", text.index("\n") if not text.startswith("{") else 0) :])["tensor_hashes"]


def at_step(action: Callable[[Any], None], rank: int, only_once: bool, own: int) -> None:
    """On `rank`, `action(engine)` is called before the forward passes of step AT: each time, or the first one only."""
    from train.data import TrainBatches
    from train.engine.core import Engine

    if own != rank:
        return
    train_step, rows_of = Engine.train_step, TrainBatches.micro_batches
    steps: list[int] = []

    def asked(self: TrainBatches, step: int) -> Any:
        steps.append(step + 1)
        return rows_of(self, step)

    def hurt(self: Engine, micro_batches: Any, *arguments: Any, **named: Any) -> Any:
        if steps[-1] == AT and not (only_once and steps.count(AT) > 1):
            action(self)
        return train_step(self, micro_batches, *arguments, **named)

    TrainBatches.micro_batches = asked
    Engine.train_step = hurt


def spoil_a_gradient(engine: Any) -> None:
    """What comes back into one layer is once not a number."""
    layer = engine.module.model.blocks[1].mlp.up
    hooks: list[Any] = []

    def spoil(layer: Any, gradients: Any) -> Any:
        hooks.pop().remove()
        return tuple(gradient * float("nan") for gradient in gradients)

    hooks.append(layer.register_full_backward_pre_hook(spoil))


def flip_a_bit(engine: Any) -> None:
    """Of a weight of forward, on this rank alone."""
    import torch

    parameter = dict(engine._named)["blocks.0.attention.o.weight"]
    parameter.data.view(torch.int32).view(-1)[7] ^= 1 << 20


def poisoned(rank: int) -> None:
    """The rows of step AT predict noise, on all ranks and however often they are read."""
    import torch

    from train.data import TrainBatches

    micro_batches = TrainBatches.micro_batches

    def noise(self: TrainBatches, step: int) -> Any:
        for tokens, targets, *rest in micro_batches(self, step):
            if step + 1 == AT:
                draw = torch.Generator().manual_seed(5)
                targets = torch.randint(400, 512, targets.shape, generator=draw)  # ids that the text never has
            yield tokens, targets, *rest

    TrainBatches.micro_batches = noise


def told(run: Path) -> dict[str, Any]:
    (event,) = [event for event in events(run, "flagged") if event["step"] == AT]
    return event


def test_a_gradient_that_was_once_no_number_leaves_no_trace(here: Path, undisturbed_on_two: Path):
    """F11: on one rank only. The step is computed again, and applied."""
    run = here / "runs" / "transient"
    job = Job(here, "run.name=transient", fault=functools.partial(at_step, spoil_a_gradient, 1, True))
    assert job.end() == [0, 0], job.printed()
    event = told(run)
    assert (event["reason"], event["outcome"]) == ("non-finite", "applied: it did not come again")
    assert curve(run) == curve(undisturbed_on_two)
    assert hashes(run) == hashes(undisturbed_on_two)


def test_a_flipped_bit_in_one_copy_of_the_weights_is_found_located_and_undone(here: Path, undisturbed_on_two: Path):
    """F28: one weight of rank 1, before its forward pass."""
    run = here / "runs" / "flipped"
    job = Job(here, "run.name=flipped", fault=functools.partial(at_step, flip_a_bit, 1, True))
    assert job.end() == [0, 0], job.printed()
    event = told(run)
    assert event["reason"] == "replicas differ"
    assert event["parameters"] == ["blocks.0.attention.o.weight"]
    assert 1 in [where["rank"] for where in event["ranks"]]  # of two that differ, neither can be called the odd one
    assert curve(run) == curve(undisturbed_on_two)
    assert hashes(run) == hashes(undisturbed_on_two)


def left_out(here: Path, name: str, steps: str) -> Path:
    """A run that never saw these steps."""
    job = Job(here, f"run.name={name}", f"health.skip_steps=[{steps}]")
    assert job.end() == [0, 0], job.printed()
    return here / "runs" / name


def test_a_gradient_that_is_never_a_number_is_left_out_and_its_layer_and_rank_named(here: Path):
    """F11: it comes again when the step is computed again."""
    run = here / "runs" / "never-finite"
    job = Job(here, "run.name=never-finite", fault=functools.partial(at_step, spoil_a_gradient, 1, False))
    assert job.end() == [0, 0], job.printed()
    event = told(run)
    assert (event["reason"], event["outcome"]) == ("non-finite", "left out")
    assert [where["rank"] for where in event["ranks"]] == [1]
    assert event["layers"][0] == {"name": "blocks.1.mlp.up.weight", "norm": "inf", "rank": 1}
    assert [row["step"] for row in rows(run) if "skipped" in row] == [AT]
    never = left_out(here, "never", f"{AT}-{AT}")
    assert curve(run) == curve(never)
    assert hashes(run) == hashes(never)


SPIKES = ("health.loss_z=4", "health.window_steps=16")


def test_a_poisoned_batch_that_is_skipped_leaves_the_run_that_never_saw_it(here: Path):
    """F12"""
    run = here / "runs" / "skipped"
    job = Job(here, "run.name=skipped", *SPIKES, "health.on_loss_spike=skip", fault=poisoned)
    assert job.end() == [0, 0], job.printed()
    event = told(run)
    assert (event["reason"], event["outcome"]) == ("loss spike", "left out")
    assert all(row["documents"] for row in event["rows"])
    never = left_out(here, "never", f"{AT}-{AT}")
    assert curve(run) == curve(never)
    assert hashes(run) == hashes(never)


def die_after_rollback(rank: int) -> None:
    """As soon as the run has gone back."""
    import os
    import signal

    from train.reports import Reports

    poisoned(rank)
    rewind = Reports.rewind
    opened: list[int] = []

    def killed(self: Reports, step: int, spent: Any) -> int:
        opened.append(1)
        if len(opened) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return rewind(self, step, spent)

    Reports.rewind = killed


def test_a_rollback_goes_back_leaves_out_what_was_around_and_holds_after_a_kill(here: Path):
    """F12: from step 32 to the checkpoint of step 20; steps 29 to 35 are left out; killed on the way, it does so
    again."""
    run = here / "runs" / "back"
    words = ("run.name=back", *SPIKES, "health.on_loss_spike=rollback", "health.rollback_margin_steps=3")
    first = Job(here, *words, fault=die_after_rollback)
    assert -9 in first.end(), first.printed()
    assert not events(run, "rolled_back")
    again = Job(here, *words, fault=poisoned)
    assert again.end() == [0, 0], again.printed()
    assert [row["step"] for row in rows(run) if "skipped" in row] == list(range(29, 36))
    never = left_out(here, "never", "29-35")
    assert curve(run) == curve(never)
    assert hashes(run) == hashes(never)
    assert totals(run) == totals(never)


def totals(run: Path) -> list[Any]:
    """FLOPs of the run up to each row, and in the summary."""
    told = [*rows(run), json.loads((run / "summary.json").read_text())]
    return [(row["flops_full"], row["flops_causal"]) for row in told]


def test_what_comes_again_and_again_ends_the_run_with_exit_code_5(here: Path):
    """F11, F12: by policy, and where one step after the other is flagged."""
    job = Job(here, "run.name=stops", *SPIKES, "health.on_loss_spike=stop", fault=poisoned)
    assert job.end() == [5, 5], job.printed()
    assert "loss spike" in job.printed()
    assert json.loads((here / "runs" / "stops" / "summary.json").read_text())["status"] == "diverged"
    every = Job(here, "run.name=every", "health.max_skips_in_a_row=2", fault=never_a_number)
    assert every.end() == [5, 5], every.printed()
    assert len(events(here / "runs" / "every", "flagged")) == 3


def never_a_number(rank: int) -> None:
    """From step AT on, the loss on rank 1 is none."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    from train.data import TrainBatches

    micro_batches, backward = TrainBatches.micro_batches, DeepSpeedEngine.backward
    now = [0]

    def noted(self: TrainBatches, step: int) -> Any:
        now[0] = step + 1
        return micro_batches(self, step)

    def spoilt(self: Any, loss: Any, *arguments: Any, **named: Any) -> Any:
        factor = float("nan") if rank == 1 and now[0] >= AT else 1.0
        return backward(self, loss * factor, *arguments, **named)

    TrainBatches.micro_batches, DeepSpeedEngine.backward = noted, spoilt


def slow(rank: int) -> None:
    """Rank 1 takes 200 ms more for each step's rows: far more than a busy machine adds to both."""
    from train.data import TrainBatches

    micro_batches = TrainBatches.micro_batches

    def slowly(self: TrainBatches, step: int) -> Any:
        time.sleep(0.2 * rank)
        return micro_batches(self, step)

    TrainBatches.micro_batches = slowly


def test_a_slow_rank_is_named_and_the_run_goes_on(here: Path, undisturbed_on_two: Path):
    """F14: what counts is its own time, for the others wait just as long in their collectives."""
    run = here / "runs" / "slow"
    job = Job(here, "run.name=slow", "log.every_steps=1", "run.stop_at_step=30", fault=slow)
    assert job.end() == [0, 0], job.printed()
    named = events(run, "slow_rank")  # once, or again after a time in which other work on the machine hid it
    assert named
    assert all(event["rank"] == 1 and event["ratio"] > 1.5 for event in named)
    late = [row for row in rows(run) if row["step"] > 20 and "loss" in row]
    assert sum(row["slowest_rank"] == 1 for row in late) > 0.8 * len(late)
    assert all(row["work_seconds_max"] > row["work_seconds_min"] for row in late)
    assert curve(run) == [row for row in curve(undisturbed_on_two) if row[0] <= 30]


def replayed(folder: str, words: list[str]) -> tuple[int, str]:
    """(exit code, what rank 0 printed) of train.replay, in each rank."""
    import contextlib
    import io
    import os

    from conf.compose import compose
    from train.replay import APP, run

    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            return run(compose(APP, words)), printed.getvalue()
        except Exception as error:
            return getattr(error, "exit_code", 1), printed.getvalue() + str(error)


def test_a_step_can_be_replayed_to_the_bit_and_a_wrong_one_is_found(here: Path, undisturbed_on_two: Path):
    """Issue 5, item 4: from the checkpoint of step 40, on the layout of the run, and on another one."""
    from tests.distributed.ranks import run_ranks

    words = [f"run={undisturbed_on_two}", "step=44"]
    code, printed = run_ranks(replayed, 2, str(here), words)[0]
    assert code == 0, printed
    assert printed.count(" equal") == 4, printed
    assert "row " in printed
    assert "largest gradient norm" in printed
    code, printed = run_ranks(replayed, 1, str(here), words)[0]
    assert code == 0, printed
    assert "agree to about 1e-05 only" in printed
    log = undisturbed_on_two / "metrics.jsonl"
    text = log.read_text()
    row = next(row for row in rows(undisturbed_on_two) if row["step"] == 43 and "loss" in row)
    log.write_text(text.replace(repr(row["loss"]), repr(row["loss"] * (1 + 1e-15))))
    try:
        code, printed = run_ranks(replayed, 2, str(here), words)[0]
    finally:
        log.write_text(text)
    assert code == 5, printed
    assert printed.count("NOT EQUAL") == 1


def test_steps_that_were_computed_on_another_layout_are_no_false_alarm_of_a_replay(here: Path):
    """F17, issue 5, item 4: until step 25 on two ranks, then on one with other micro-batches. The checkpoint of step 20
    is of two ranks; what came after step 25 is compared as what another layout computed, whoever replays it."""
    from tests.distributed.ranks import run_ranks

    assert Job(here, "run.name=moved", "run.stop_at_step=25").end() == [0, 0]
    smaller = "batch={global_batch_size: 8, micro_batch_size: 2}"
    assert Job(here, "run.name=moved", "run.stop_at_step=28", smaller, ranks=1).end() == [0]
    code, printed = run_ranks(replayed, 1, str(here), ["run=runs/moved", "step=28"])[0]
    assert (code, printed.count(" equal")) == (0, 3), printed
    assert "another layout" not in printed
    code, printed = run_ranks(replayed, 2, str(here), ["run=runs/moved", "step=28"])[0]
    assert code == 0, printed
    assert "step 26 was computed on another layout (ranks 1, now 2" in printed
    code, printed = run_ranks(replayed, 2, str(here), ["run=runs/moved", "step=22"])[0]
    assert code == 0, printed
    assert "step 21 was computed on another layout (ranks" not in printed
    assert "batch.micro_batch_size 4, now 2" in printed


def test_a_lost_rollbacks_json_is_made_again_from_the_checkpoint(here: Path):
    """F12, F7: else the run would learn from steps 34 and 35 after all."""
    run = here / "runs" / "lost"
    words = ("run.name=lost", *SPIKES, "health.on_loss_spike=rollback", "health.rollback_margin_steps=3")
    first = Job(here, *words, "run.stop_at_step=33", ranks=1, fault=poisoned)
    assert first.end() == [0], first.printed()
    written = (run / "rollbacks.json").read_text()
    (run / "rollbacks.json").unlink()
    again = Job(here, *words, "run.stop_at_step=37", ranks=1, fault=poisoned)
    assert again.end() == [0], again.printed()
    assert [row["step"] for row in rows(run) if "skipped" in row] == list(range(29, 36))
    assert (run / "rollbacks.json").read_text() == written
    assert len(events(run, "rollbacks_restored")) == 1


@pytest.mark.parametrize("content", ["", "{}", "null", '[{"at_step": 1}]', '[["a"]]', RIGHT.replace("20", '"20"')])
def test_a_rollbacks_json_that_is_not_what_it_was_is_refused(tmp_path: Path, content: str):
    """F12, F7"""
    from train.errors import UnreadableError
    from train.skips import Skips

    (tmp_path / "rollbacks.json").write_text(RIGHT)
    assert Skips([], tmp_path).read().reason(30) == "rollback from step 32 (loss spike)"
    (tmp_path / "rollbacks.json").write_text(content)
    with pytest.raises(UnreadableError, match="leaves out"):
        Skips([], tmp_path).read()


def flip_a_master(rank: int) -> None:
    """A bit of a master that both tensor-parallel ranks hold, on rank 1, in the update of step 30, so that what is
    saved after it may be the wrong copy."""
    from train.engine.core import Engine

    train_step = Engine.train_step
    done: list[int] = []

    def hurt(self: Engine, *arguments: Any, **named: Any) -> Any:
        import torch

        result = train_step(self, *arguments, **named)
        done.append(1)
        if rank == 1 and len(done) == 30:
            self._replicas._masters[0].view(torch.int32)[3] ^= 1 << 20
        return result

    Engine.train_step = hurt


def test_masters_that_differ_lead_back_behind_what_may_have_been_saved_of_them(here: Path):
    """F28: they were last found equal before step 30, so the checkpoint of step 30 is not trusted."""
    run = here / "runs" / "masters"
    job = Job(here, "run.name=masters", "run.stop_at_step=32", "parallel.tp_size=2", fault=flip_a_master)
    assert job.end() == [0, 0], job.printed()
    assert [event["reason"] for event in events(run, "flagged")] == ["replicas differ"]
    assert [(event["at_step"], event["to_step"]) for event in events(run, "rolled_back")] == [(31, 20)]
    assert [row["step"] for row in rows(run) if "loss" in row] == list(range(1, 33))


def no_number(times: int, rank: int) -> None:
    """So many evaluations give none."""
    import dataclasses

    import train.validation as validation

    evaluate = validation.evaluate
    made: list[int] = []

    def spoilt(*arguments: Any) -> Any:
        made.append(1)
        result = evaluate(*arguments)
        return dataclasses.replace(result, val_loss=float("nan")) if len(made) <= times else result

    validation.evaluate = spoilt


@pytest.mark.parametrize(("times", "code"), [(1, 0), (2, 5)])
def test_a_validation_loss_that_is_no_number_is_looked_at_twice(here: Path, times: int, code: int):
    """F11: as a step is; the second time it is no accident."""
    words = ("run.name=validated", "run.stop_at_step=20")
    job = Job(here, *words, ranks=1, fault=functools.partial(no_number, times))
    assert job.end() == [code], job.printed()
    run = here / "runs" / "validated"
    assert len(events(run, "evaluated_again")) == 1
    assert [row["step"] for row in rows(run) if "val_loss" in row] == ([20] if code == 0 else [])


def no_room_for_rollbacks(rank: int) -> None:
    """The disk has none in the moment of the rollback."""
    from data_prep.files import DataError
    from train.skips import Skips

    poisoned(rank)

    def write(self: Skips) -> None:
        raise DataError(f"no room to write {self.path}: No space left on device")

    Skips.write = write


def test_a_rollback_on_a_full_disk_is_made_all_the_same(here: Path):
    """F4, F12: it is told, and the checkpoints know of it."""
    run = here / "runs" / "full"
    words = ("run.name=full", *SPIKES, "health.on_loss_spike=rollback", "health.rollback_margin_steps=3")
    first = Job(here, *words, "run.stop_at_step=33", ranks=1, fault=no_room_for_rollbacks)
    assert first.end() == [0], first.printed()
    assert len(events(run, "rollbacks_not_written")) == 1
    again = Job(here, *words, "run.stop_at_step=37", ranks=1, fault=poisoned)
    assert again.end() == [0], again.printed()
    assert [row["step"] for row in rows(run) if "skipped" in row] == list(range(29, 36))
    assert (run / "rollbacks.json").exists()

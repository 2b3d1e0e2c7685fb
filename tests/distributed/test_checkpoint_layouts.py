"""A run saved under one layout goes on under another: the state to the bit, the losses as in the parity table."""

from pathlib import Path

import pytest

from model.transformer import Transformer
from tests.distributed.ranks import run_ranks
from train.checkpoint.verify import verify
from train.config import Device
from train.parallel_config import ParallelConfig
from train.verify.cases import SUMS, Case, Family, model_of

TRAINED, LONGER = 3, 6
"""steps before the checkpoint, and in all"""

CHAIN = [
    Case("ZeRO 1, DP 4", 4, ParallelConfig(zero_stage=1)),
    Case("ZeRO 3, DP 2", 2, ParallelConfig(zero_stage=3)),
    Case("TP 2", 2, ParallelConfig(tp_size=2)),
    Case("one process", 1),
    Case("ZeRO 3, DP 2 x TP 2", 4, ParallelConfig(zero_stage=3, tp_size=2)),
    Case("ZeRO 2, SP 2", 2, ParallelConfig(zero_stage=2, sp_size=2)),
    Case("ZeRO 1, DP 2, optimizer on the CPU", 2, ParallelConfig(zero_stage=1, offload_optimizer=True)),
    Case("ZeRO 1, DP 4 again", 4, ParallelConfig(zero_stage=1)),
]


def trained(case: Case, source: str | None, target: str) -> list[float]:
    """Losses of steps up to LONGER; `target` gets a checkpoint of step TRAINED, taken over from `source` if given."""
    from train.checkpoint.peers import Peers
    from train.checkpoint.saver import Saver
    from train.config import CheckpointConfig
    from train.engine.exchange import sum_over_ranks
    from train.parallel import rank_grid
    from train.verify.runs import Trial

    trial, grid, losses = Trial(case, Device.cpu), rank_grid(), []
    peers = Peers(grid.rank, grid.world_size, lambda flags: sum_over_ranks(flags, "cpu"))
    if source is None:
        losses = [trial.step(step).loss for step in range(TRAINED)]
    else:
        checkpoint = verify(Path(source) / "step-00000003", peers)
        checkpoint.require(trial.engine.expected())
        trial.engine.load(checkpoint.read, checkpoint.step)
    saver = Saver(Path(target), CheckpointConfig(), peers)
    saver.save(TRAINED, trial.engine.fragments(), {})
    losses += [trial.step(step).loss for step in range(TRAINED, LONGER)]  # while it is being written
    outcome = saver.wait()
    assert outcome is not None
    assert outcome.problem is None
    return losses


def test_a_state_goes_through_every_layout_without_losing_a_bit(tmp_path: Path):
    expected = run_ranks(trained, 1, Case("never saved"), None, str(tmp_path / "reference"))[0]
    names = {name for name, _ in Transformer(model_of(CHAIN[0])).named_parameters()}
    source, hashes = None, None
    for number, case in enumerate(CHAIN):
        target = str(tmp_path / str(number))
        losses = run_ranks(trained, case.ranks, case, source, target)[0]
        assert losses[-3:] == pytest.approx(expected[-3:], rel=SUMS.relative), case.name
        found = verify(Path(target) / "step-00000003").hashes
        assert {kind: set(found[kind]) for kind in found} == dict.fromkeys(("master", "exp_avg", "exp_avg_sq"), names)
        assert hashes is None or found == hashes, case.name
        source, hashes = target, found


def test_a_checkpoint_of_another_model_is_refused_with_its_differences(tmp_path: Path):
    run_ranks(trained, 1, Case("a Llama"), None, str(tmp_path / "a"))
    message = run_ranks(refused, 2, Case("a GPT-2", 2, family=Family.gpt2), str(tmp_path / "a"))
    for said in message:
        assert "checkpoint of another model" in said
        assert "position.weight" in said


def refused(case: Case, source: str) -> str:
    from train.errors import StateError

    try:
        trained(case, source, source + "-never")
    except StateError as error:
        return str(error)
    return "taken"

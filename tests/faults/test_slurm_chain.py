"""Chains of jobs under a real Slurm, where no job puts itself back into the queue: each goes on where the one before
stopped, until the run is finished or another start would not help.
"""

from pathlib import Path

import pytest

from tests.faults.slurm_runs import Sent
from tests.runs import curve
from tests.slurm_box import Box

pytestmark = pytest.mark.slurm


def test_a_chain_goes_on_without_a_bad_node_and_past_its_time_limit(
    here: Path, box: Box, undisturbed_on_two_nodes: Path
):
    """Job 1 finds its first node bad, and the others leave it out. Job 2 is told of its end by Slurm, saves and leaves;
    job 3 finishes, so that nothing is left to job 4. One whose configuration is refused takes its chain with it."""
    sent = Sent(box, here, "chained", "slurm.chain=4", "slurm.signal_seconds=3000", bad="n1")
    refused = Sent(box, here, "refused", "slurm.chain=2", "model.vocab_size=256", nodes=1)
    assert len(sent.numbers) == 4
    sent.number = sent.numbers[1]
    sent.go_to(7, attempt=1)
    assert sent.of(sent.numbers[0], "ExitCode") == "7:0"
    assert sent.of(sent.numbers[3], "Dependency").startswith("singleton")
    assert {sent.of(job, "ExcNodeList") for job in sent.numbers[1:]} == {"n1"}
    box.ask("scontrol", "update", f"jobid={sent.number}", "EndTime=now+900")
    assert sent.wait_for_end() == "FAILED", sent.log()  # by exit code 143; its end was near enough for the signal
    assert "the next job of the chain goes on from what is saved; 2 left" in sent.log()
    sent.number = sent.numbers[2]
    assert sent.end() == "COMPLETED", sent.log()
    sent.number = sent.numbers[3]
    assert sent.end() == "COMPLETED", sent.log()
    assert "nothing is left to do" in sent.log()
    assert [event["repeated_steps"] for event in sent.events("started")] == [0, 0]
    assert curve(sent.run) == curve(undisturbed_on_two_nodes)
    assert refused.end() == "FAILED", refused.log()
    assert refused.of(refused.numbers[1], "JobState") == "CANCELLED"
    assert f"the rest of the chain is cancelled: {refused.numbers[1]}" in refused.log()

"""Jobs that `launch submit` sends to a real Slurm, whose nodes and jobs are then hurt: they resume by themselves, and
end with the curve of a run that was left in peace.

What Slurm does that a job must reckon with, and the test of it; here, in test_slurm_chain.py, or by stand-ins for
Slurm's programs in tests/launch (S: test_submit.py, P: test_preflight_script.py, T: test_job_time.py):

exit 0 in the grace time is an end for good     ..._requeued_preempted_and_warned_...;
                                                S only_an_end_that_another_start_...
at the time limit a job is not requeued         jobs_end_for_good_..._when_they_are_sent_again;
                                                a_chain_goes_on_...
--signal comes up to a minute early             a_chain_goes_on_...;
                                                S what_cannot_work_...;
                                                T starts_and_orderly_ends_...
--signal reaches the steps, not the script      ..._requeued_preempted_and_warned_...;
                                                S a_signal_to_the_script_goes_on_...
scontrol requeue sends SIGTERM, then SIGKILL    ..._requeued_preempted_and_warned_...
a job that comes back waits for minutes         the same: it is only let through (StartTime), after the old srun's end
the old srun ends the next attempt's step       a_rank_that_is_cut_off_...;
                                                S each_attempt_trains_in_a_step_...
logs are truncated without append mode          ..._requeued_preempted_and_warned_...: one log tells of all attempts
ranks outlive one that died (--kill-on-bad-exit), or left early (--wait: only that srun is told)
                                                ..._requeued_preempted_and_warned_...;
                                                S srun_is_told_...
SLURM_RESTART_COUNT is not there at first       S whatever_was_typed_...: under `set -u`
a last line that is false fails a good job      S only_an_end_that_another_start_...: exit 0
24:00:00 in YAML is 86400 minutes               T a_time_where_minutes_...;
                                                T sixty_days_...;
                                                T a_limit_that_no_partition_...
names and values are no code                    S whatever_was_typed_...;
                                                S a_run_name_that_is_no_plain_name_...;
                                                all here
a rank on a node that was cut off writes on     a_rank_that_is_cut_off_...;
                                                P a_stale_job_of_a_chain_cancels_nothing
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.jobs import Job
from tests.faults.slurm_runs import ROOT, SHORT, Sent
from tests.launch.conftest import HOSTILE
from tests.runs import curve
from tests.slurm_box import Box
from train.checkpoint.folders import steps_found

pytestmark = pytest.mark.slurm


def files(run: Path) -> list[str]:
    """Of a run, but for those that tell of its starts, or of how it was sent."""
    found = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    others = ("attempts", "slurm", "tensorboard", "prediction.json")
    return sorted(str(path) for path in found if path.parts[0] not in others)


def test_a_job_that_is_requeued_preempted_and_warned_and_loses_a_node_resumes_by_itself(
    here: Path, box: Box, undisturbed_on_two_nodes: Path
):
    """F8, F15: SIGTERM as Slurm takes the job off its nodes; then as jobs of another partition need them; then SIGUSR1
    to the ranks, as before the time limit: they save and leave, and no step is done twice. Last a node dies, its
    daemon, its ranks and all, and the steps since the last checkpoint are done again elsewhere. Before all that, the
    real preflight finds a node whose software differs, and the job comes back without it, for good."""
    sent = Sent(box, here, "preempted", bad="n2", looks=True)
    sent.go_to(3, attempt=1)
    box.ask("scontrol", "requeue", sent.number)
    sent.go_to(6, attempt=2)
    box.ask("sbatch", f"--chdir={here}", "--partition=high", f"--nodes={len(box.up())}", "--wrap=true")
    sent.go_to(9, attempt=3)
    box.ask("scancel", "--signal=USR1", sent.number)
    sent.go_to(13, attempt=4)
    first, second = sent.nodes
    with box.impatient():  # rank 0 cannot save without rank 1, and srun waits for it for a minute
        box.kill_node(second)
        assert sent.end() == "COMPLETED", sent.log()
    assert set(sent.nodes) != {first, second}
    assert (sent.fact("Restarts"), sent.fact("ExcNodeList")) == ("5", "n2")
    assert "bad node n2: deepspeed 0.1, " in sent.log()
    passed = sent.log().count("2 nodes can be used"), sent.log().count("these nodes passed it")
    assert sum(passed) == 5, sent.log()
    assert sent.log().count("exit code 143: back into the queue") == 2, sent.log()  # the first was Slurm's own doing
    assert [event["repeated_steps"] for event in sent.events("started")][:4] == [0, 0, 0, 0]
    assert curve(sent.run) == curve(undisturbed_on_two_nodes)
    assert files(sent.run) == files(undisturbed_on_two_nodes)
    assert not list(here.rglob("pwned"))


def test_a_rank_that_is_cut_off_and_lives_on_writes_nothing_into_the_run_of_its_successor(
    here: Path, box: Box, undisturbed_on_two_nodes: Path
):
    """F15: rank 0, which writes, and the job's script; the watchdog that would end the rank at once is frozen until the
    job has gone on elsewhere for a while. Then the network comes back."""
    if box.why_no_cables:
        pytest.skip(f"no network of its own for each node here ({box.why_no_cables})")
    sent = Sent(box, here, "cut")
    sent.go_to(7, attempt=1)
    first, _ = sent.nodes
    stale, watchdog = (the_one(box.tasks(first), words) for words in (("-m", "train"), ("-m", "train.watch")))
    os.kill(watchdog, signal.SIGSTOP)
    with box.impatient():  # rank 1 cannot save without rank 0
        box.cut_off(first)
        sent.go_to(13, attempt=2)
        sent.wait_for_checkpoint(12)
        os.kill(stale, 0)  # alive
        os.kill(watchdog, signal.SIGCONT)
        sent.wait("the fence", lambda: not cmdline(stale))
        box.reach_again(first)
        assert sent.end() == "COMPLETED", sent.log()
    assert '"fenced"' in (sent.run / "attempts" / "0001" / "rank-00000.failure.json").read_text()
    assert sent.fact("Restarts") == "1"
    written = [event["attempt"] for event in sent.events()]
    assert written == sorted(written)
    assert curve(sent.run) == curve(undisturbed_on_two_nodes)
    assert files(sent.run) == files(undisturbed_on_two_nodes)


def the_one(processes: list[int], words: tuple[str, ...]) -> int:
    """Of them, the one started with these words."""
    wanted = b"\0".join(word.encode() for word in words) + b"\0"
    (found,) = [pid for pid in processes if wanted in cmdline(pid) and b"srun" not in cmdline(pid)]
    return found


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_jobs_end_for_good_where_another_start_would_not_help_and_go_on_when_they_are_sent_again(
    here: Path, box: Box, workplace: Path
):
    """F10: Slurm's time limit comes while a checkpoint is being written to a disk that takes its time: TIMEOUT, and
    only what came after the checkpoint before is lost. A job that a person cancels saves, and stays away. F1, F20: two
    that end by themselves, while the first of them waits for Slurm, which looks at time limits every 30 s."""
    assert Job(workplace, *SHORT, "run.name=alone", ranks=1).end() == [0]
    sent = Sent(box, here, "late", "slurm.signal_seconds=30", nodes=1)
    sent.go_to(7, attempt=1)
    sent.wait_for_checkpoint(6)
    sent.slow_disk(True)
    with box.impatient():
        box.ask("scontrol", "update", f"jobid={sent.number}", "EndTime=now+1")
        idle, refused = idle_job(box, here), Sent(box, here, "refused", "model.vocab_size=256")
        ends_because_it_makes_no_progress(idle)
        ends_with_its_refusal_whatever_becomes_of_the_other_ranks(refused)
        assert sent.wait_for_end() == "TIMEOUT", sent.log()
    sent.slow_disk(False)
    saved = max(steps_found(sent.run / "checkpoints"))
    sent.send()
    sent.go_to(saved + 2, attempt=2)
    box.ask("scancel", sent.number)
    assert sent.end() == "CANCELLED", sent.log()
    assert "back into the queue" not in sent.log()
    sent.send()
    assert sent.end() == "COMPLETED", sent.log()
    assert [event["step"] for event in sent.events("started")][1] == saved
    assert sent.events("started")[2]["repeated_steps"] == 0
    assert curve(sent.run) == curve(workplace / "runs" / "alone")


def idle_job(box: Box, folder: Path) -> Sent:
    """Attempt after attempt died at once."""
    attempt = folder / HOSTILE / "idle" / "attempts" / "0001"
    attempt.mkdir(parents=True)
    (attempt / "holder.json").write_text("{}")
    (attempt / "ended.json").write_text('{"how": "failed"}')
    return Sent(box, folder, "idle", "run.max_idle_starts=1", nodes=1)


def ends_because_it_makes_no_progress(sent: Sent) -> None:
    """The next attempt does not try, and Slurm does not start it again."""
    assert sent.end() == "FAILED", sent.log()
    assert sent.fact("ExitCode") == "6:0", sent.log()
    assert sent.fact("Restarts") == "0"


def ends_with_its_refusal_whatever_becomes_of_the_other_ranks(sent: Sent) -> None:
    """A vocabulary that the model has no room for: exit code 2, and not what srun makes of the ranks it ends."""
    assert sent.end() == "FAILED", sent.log()
    assert sent.fact("ExitCode") == "2:0"
    assert "which another start would not change" in sent.log()
    assert sent.fact("Restarts") == "0"


def test_the_end_of_the_job_is_known_to_its_ranks(tmp_path: Path, box: Box):
    code = "import time; from train.stop import TimeLimit; limit = TimeLimit.find(None, 0); "
    code += "print(limit.source, round(limit.seconds_left()), limit.problem)"
    words = ("srun", "--nodes=1", "--ntasks=1", "--time=10", f"--chdir={ROOT}", sys.executable, "-c", code)
    source, left, problem = box.ask(*words).strip().rsplit(" ", 2)
    assert source.startswith("the time limit of Slurm job ")
    assert 400 < int(left) <= 600
    assert problem == "None"

"""The audit of a run that was hurt, as a person runs it."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.faults.jobs import Job
from tests.faults.test_curve import at_steps, kill
from tests.runs import STEPS, finish, rows, start


@pytest.fixture(scope="module")
def hurt(workplace: Path) -> Path:
    """Killed at step 27, stopped at step 33, then finished."""
    words = ("run.name=audited", "run.max_idle_starts=100")
    assert Job(workplace, *words, ranks=1, fault=partial(at_steps, {27: kill})).end() == [-9]
    assert Job(workplace, *words, "run.stop_at_step=33", ranks=1).end() == [0]
    assert Job(workplace, *words, ranks=1).end() == [0]
    return workplace / "runs" / "audited"


def audit(run: Path, *words: str) -> tuple[int, str]:
    return finish(start(run.parents[1], f"run=runs/{run.name}", *words, module="train.audit"))


def test_a_person_reads_in_one_place_what_happened(hurt: Path):
    """F1, F8: attempts, time and ledger of a run that was killed and stopped."""
    code, printed = audit(hurt)
    assert code == 0, printed
    lines = [line for line in printed.splitlines() if line[:1].isdigit()]
    assert len(lines) == 3
    assert "without a word" in lines[0]
    assert "stopped as asked" in lines[1]
    assert "finished" in lines[2]
    for words in (f"{STEPS} steps, 12,800 tokens", "tokens lost 0, repeated 0", "it balances", "effective-time ratio"):
        assert words in printed
    assert "best is a checkpoint every" in printed  # one failure


def test_programs_read_the_same(hurt: Path):
    """F1"""
    code, printed = audit(hurt, "json=true")
    found = json.loads(printed)
    assert (code, found["ledger"]["balances"], found["ledger"]["steps"]) == (0, True, STEPS)
    assert [(story["from_step"], story["to_step"], story["repeated_steps"]) for story in found["attempts"]] == [
        (0, 27, 0),
        (20, 33, 7),
        (33, STEPS, 0),
    ]
    time = found["time"]
    assert 0 < time["effective_time_ratio"] < 1
    assert time["total"] == pytest.approx(time["steps"] + time["between_attempts"] + time["other"])
    summary = json.loads((hurt / "summary.json").read_text())
    assert 0 < summary["effective_time_ratio"] < 1
    assert 0 < summary["device_time_ratio"] < 1
    assert time["steps"] == pytest.approx(sum(row.get("seconds", 0) for row in rows(hurt)))


def test_a_ledger_that_does_not_balance_ends_with_code_3_and_names_the_first_step(hurt: Path):
    """F5, F30: other data in a step, and a step that is gone."""
    original = (hurt / "metrics.jsonl").read_text()
    lines = original.splitlines(keepends=True)
    other = lines[9].replace('"batch_hash": "', '"batch_hash": "f')
    try:
        (hurt / "metrics.jsonl").write_text("".join([*lines[:9], other, *lines[10:19], *lines[20:]]))
        code, printed = audit(hurt)
    finally:
        (hurt / "metrics.jsonl").write_text(original)
    assert code == 3, printed
    assert "IT DOES NOT BALANCE, first at step 10" in printed
    assert "step 20 is not in metrics.jsonl" in printed
    assert "tokens lost 256, repeated 0, other than they should be 256" in printed


def test_the_audit_needs_no_torch(hurt: Path):
    """F30: it works where there is no accelerator, no torch and nobody to wait for either."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from train.audit import ledger_of\n"
        f"assert ledger_of(Path('runs/{hurt.name}')).balances\n"
        "assert not {'torch', 'deepspeed'} & set(sys.modules)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=hurt.parents[1], env={"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_no_run_is_named(workplace: Path):
    """F19"""
    code, printed = audit(workplace / "runs" / "nothing")
    assert (code, "runs/nothing is not a run's folder" in printed) == (3, True)

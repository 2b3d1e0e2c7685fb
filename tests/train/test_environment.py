"""environment.json of each attempt: enough to make the place again, and no secret."""

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from tests.distributed.ranks import run_ranks
from tests.runs import forked, tiny
from train.environment import REDACTED, kept

VARIABLES = {
    "NCCL_DEBUG": "WARN",
    "OMP_NUM_THREADS": "1",
    "SLURM_JOB_ID": "17",
    "SLURM_JWT": "eyJhbGciOi",
    "HF_HOME": "/cache",
    "HF_TOKEN": "hf_abcdefgh",
    "HF_ENDPOINT": "https://me:hunter22@mirror/",
    "AWS_REGION": "elsewhere",
    "MY_PASSWORD": "correct horse",
    "PYTHON_KEYRING_BACKEND": "key-ring",
}


def test_only_variables_that_change_training_are_kept_and_no_secret_is():
    found = kept(VARIABLES)
    assert found.keys() == VARIABLES.keys() - {"AWS_REGION", "MY_PASSWORD"}
    assert [name for name, value in found.items() if value == REDACTED] == [
        *("HF_TOKEN", "PYTHON_KEYRING_BACKEND", "SLURM_JWT")
    ]
    assert found["HF_ENDPOINT"] == f"https://{REDACTED}@mirror/"
    assert found["NCCL_DEBUG"] == "WARN"


def test_every_attempt_tells_where_it_ran(here: Path):
    """In a run of two ranks that is begun twice."""
    for step in (1, 2):
        assert [code for code, _ in run_ranks(_run, 2, str(here), f"run.stop_at_step={step}")] == [0, 0]
    found: list[dict[str, Any]] = [
        json.loads((here / "runs" / "here" / "attempts" / number / "environment.json").read_text())
        for number in ("0001", "0002")
    ]
    for facts in found:
        assert facts["packages"]["torch"] == importlib.metadata.version("torch")
        assert facts["hosts"] == {os.uname().nodename: [0, 1]}
        assert (facts["variables"]["WORLD_SIZE"], facts["variables"]["NCCL_DEBUG"]) == ("2", "WARN")
        assert facts["node"]["code"] == found[0]["node"]["code"]
    for path in (here / "runs").rglob("environment.json"):
        text = path.read_text()
        assert [value for value in ("eyJhbGciOi", "hf_abcdefgh", "hunter22", "correct horse") if value in text] == []


def _run(folder: str, word: str) -> tuple[int, str]:
    os.environ.update({name: value for name, value in VARIABLES.items() if not name.startswith(("SLURM_JOB", "OMP"))})
    return forked(folder, tiny("run.name=here", word))

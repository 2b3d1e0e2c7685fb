import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.files import DataError
from launch import slurm
from launch.data_config import SlurmConfig
from launch.slurm import ELEMENT, BatchJob
from tests.launch.conftest import HOSTILE, directives
from tests.slurm_box import Box


def job(folder: Path, **options: object) -> BatchJob:
    settings: dict[str, object] = {
        "key": "encode",
        "name": "x-encode",
        "title": "A stage.",
        "folder": folder,
        "python_path": None,
        "program": (sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"),
        "words": (),
        "more": f"task={ELEMENT}",
        "elements": (0, 1, 2, 5),
        "logs": folder / "logs",
        "file": folder / "encode.sh",
    }
    return BatchJob(**(settings | options))  # pyright: ignore[reportArgumentType]


STATIC = {
    f"--{name}" for name in ("job-name", "nodes", "ntasks", "cpus-per-task", "time", "requeue", "open-mode", "export")
} | {"--kill-on-invalid-dep"}


def test_whatever_was_typed_reaches_the_command_as_it_was_typed(tmp_path: Path):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    words = (f"out={HOSTILE}", "a=\nb", "source.paths=[a b,'c']", "--x", "$HOME", "\\")
    text = slurm.script(job(folder, words=words, python_path=folder), SlurmConfig())
    done = subprocess.run(
        ["bash", "-s"],
        input=text,
        env={"SLURM_ARRAY_TASK_ID": "7", "PATH": "/usr/bin:/bin"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [*words, "task=7"]
    assert list(folder.iterdir()) == []


def test_a_script_asks_slurm_for_what_was_configured(tmp_path: Path):
    asked = SlurmConfig(
        partition="cpu,long",
        account="lab",
        qos="low",
        time_limit_minutes=90,
        cpus_per_task=8,
        memory_gib=16,
        max_parallel=3,
        options=["--exclude=n[3-5]", "--exclusive"],
        export=["PATH", "HF_TOKEN"],
    )
    assert asked.problems() == []
    found = directives(slurm.script(job(tmp_path), asked))
    assert found == {
        "job-name": "x-encode",
        "array": "0-2,5%3",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": "8",
        "time": "90",
        "mem": "16G",
        "partition": "cpu,long",
        "account": "lab",
        "qos": "low",
        "exclude": "n[3-5]",
        "exclusive": "",
        "export": "PATH,HF_TOKEN",
        "requeue": "",
        "open-mode": "append",
        "kill-on-invalid-dep": "yes",
    }
    found = directives(slurm.script(job(tmp_path, elements=None), SlurmConfig()))
    assert not {"array", "mem", "partition", "account", "qos"} & found.keys()


def test_no_value_of_this_shell_reaches_an_element_unless_it_is_named(tmp_path: Path):
    """Security, rule 3: without a list Slurm keeps the whole environment of who sent it, in its own files."""
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ALL"} & set(SlurmConfig().export)
    sent = slurm.sbatch(job(tmp_path), SlurmConfig(export=[]), None)
    assert "--export=NIL" in sent
    assert "slurm.export holds 'ALL'" in str(SlurmConfig(export=["ALL"]).problems())


def test_the_commands_shown_send_each_job_after_the_one_before(tmp_path: Path):
    logs = tmp_path / HOSTILE
    first = job(tmp_path, key="clean", logs=logs, file=tmp_path / HOSTILE / "clean.sh")
    text = slurm.commands([first, job(tmp_path, logs=logs, elements=None)], SlurmConfig())
    stand_in = 'sbatch() { n=$((${#clean} + 41)); for w in "$@"; do echo "$w" >&2; done; echo "$n"; }'
    done = subprocess.run(["bash", "-ec", f"{stand_in}\n{text}"], capture_output=True, text=True, cwd=tmp_path)
    pattern = str(logs).replace("%", "%%")
    shown = [line for line in done.stderr.splitlines() if line.partition("=")[0] not in STATIC]
    assert shown == [
        "--parsable",
        "--array=0-2,5",
        f"--output={pattern}/%x-%A_%a.log",
        str(first.file),
        "--parsable",
        f"--output={pattern}/%x-%j.log",
        "--dependency=afterok:41",
        str(tmp_path / "encode.sh"),
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cpu; rm -rf /", "a b", "x\n#SBATCH --uid=0", "$(id)", ""])
def test_a_partition_that_could_be_a_command_is_refused(name: str):
    for key in ("partition", "account", "qos"):
        assert f"slurm.{key}={name!r} is no name" in dataclasses.replace(SlurmConfig(), **{key: name}).problems()[0]


@pytest.mark.parametrize(
    ("option", "why"),
    [("exclusive", "is not written"), ("--comment=a b", "is not written"), ("--array=0", "launch sets --array itself")],
)
def test_an_option_that_sbatch_would_not_take_or_that_is_ours_is_refused(option: str, why: str):
    assert why in SlurmConfig(options=[option]).problems()[0]


@pytest.mark.parametrize(
    ("written", "minutes"),
    [("infinite", math.inf), ("30:00", 30), ("1:00:30", 60.5), ("2-00:00:00", 2880), ("n/a", math.inf)],
)
def test_slurm_s_times_are_read(written: str, minutes: float):
    assert slurm.minutes(written) == minutes


@pytest.mark.slurm
def test_when_one_job_is_refused_none_stays_in_the_queue(tmp_path: Path, box: Box, monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, box.env[name])
    good, missing = job(tmp_path, elements=(0, 1)), job(tmp_path, file=tmp_path / "absent.sh")
    good.file.write_text("#!/bin/bash\nsleep 60\n")
    with pytest.raises(DataError, match=r"Slurm refused the job x-encode: .*absent\.sh(.|\n)*were cancelled"):
        slurm.submit([good, missing], SlurmConfig(cpus_per_task=1))
    box.wait_until_empty()


@pytest.mark.slurm
def test_what_slurm_would_take_and_never_start_is_doubted(box: Box, monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, box.env[name])
    assert slurm.doubts(["--nodes=2"]) == []
    (words,) = slurm.doubts(["--nodes=8"])
    assert "could not start this job (sbatch --test-only: allocation failure: Requested node" in words

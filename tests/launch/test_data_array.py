import dataclasses
import math
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from data_prep.__main__ import APP as DATA_PREP
from data_prep.config import Stage
from data_prep.files import DataError
from data_prep.inputs import Input, Span
from data_prep.jobs import Backlog, Task
from data_prep.pipeline import prepare
from data_prep.plan import Plan
from data_prep.sources.config import TextFiles
from launch.__main__ import LAUNCH_DATA
from launch.data_array import launch_data, refuse_too_long, widest_array, work_of
from launch.data_config import LaunchDataConfig, Rates, SlurmConfig
from launch.slurm import Limits
from tests.corpus import write_corpus
from tests.launch.conftest import HOSTILE, directives
from tests.slurm_box import Box, Cluster

ROOT = Path(__file__).parents[2]
DEFAULTS = Limits(1001, 10_000, "slurm.conf(5)")


def config(**options: object) -> LaunchDataConfig:
    settings = {"out": "data/x", "source": TextFiles(paths=["texts"])} | options
    return LaunchDataConfig(**settings)  # pyright: ignore[reportArgumentType]


def plan_of(*n_bytes: int, suffix: str = ".txt") -> Plan:
    spans = [Span(Input(f"/d/{i}{suffix}", f"d/{i}{suffix}", "d", size, ""), 0, size) for i, size in enumerate(n_bytes)]
    return Plan({}, [], tuple(Task(f"{i:016x}", "d", (span,)) for i, span in enumerate(spans)))


# --- how wide, how long ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tasks", "cpus", "limits", "n_arrays", "widest"),
    [
        (10, 1, DEFAULTS, 1, 10),
        (10, 4, DEFAULTS, 1, 3),  # 4 + 4 + 2 tasks
        (5000, 1, DEFAULTS, 1, 1001),
        (5000, 1, DEFAULTS, 10, 500),  # half of 10 000 jobs, for ten arrays
        (5000, 1, Limits(64, 10_000, ""), 1, 64),
        (1, 64, DEFAULTS, 1, 1),
    ],
)
def test_arrays_are_as_wide_as_tasks_cores_and_the_cluster_allow(
    n_tasks: int, cpus: int, limits: Limits, n_arrays: int, widest: int
):
    asked = config(slurm=SlurmConfig(cpus_per_task=cpus))
    assert widest_array(n_tasks, asked, limits, n_arrays) == widest


def test_a_cluster_without_arrays_says_so():
    with pytest.raises(DataError, match="MaxArraySize=0"):
        widest_array(10, config(), Limits(0, 10_000, ""), 1)


def test_only_elements_with_something_left_are_sent():
    finished = [True, False, True, True, True, False, False]
    backlog = Backlog(tuple((1, done) for done in finished))
    work = work_of(Stage.encode, backlog, 4, plan_of(*[1] * 7), config())
    assert work.elements == (1, 2)
    assert [i for i in range(4) if not all(finished[i::4])] == [1, 2]


def test_what_only_earlier_stages_can_tell_is_sent_whole_and_weighed_by_the_plan():
    asked = config(slurm=SlurmConfig(cpus_per_task=2, rates=Rates(encode=1.0)))
    work = work_of(Stage.encode, None, 2, plan_of(60_000_000, 5_000_000, 20_000_000), asked)
    assert work.elements == (0, 1)
    assert work.seconds == pytest.approx(30 + 20 / 2 + 60)  # the large one may begin last


def test_compressed_inputs_hold_more_text_than_they_have_bytes():
    plain, packed = (
        work_of(Stage.encode, None, 1, plan_of(10**9, suffix=suffix), config()) for suffix in (".txt", ".jsonl.zst")
    )
    assert plain.seconds is not None
    assert packed.seconds is not None
    assert packed.seconds - 30 == pytest.approx(3 * (plain.seconds - 30))
    told = config(slurm=SlurmConfig(text_per_stored_byte=1.0))
    assert work_of(Stage.encode, None, 1, plan_of(10**9, suffix=".zst"), told).seconds == plain.seconds


def test_an_element_that_cannot_end_in_its_time_is_refused_with_what_would_work():
    asked = config(slurm=SlurmConfig(time_limit_minutes=60, cpus_per_task=1, max_array=2, rates=Rates(encode=1.0)))
    plan = plan_of(*[3_000_000_000] * 4)
    work = work_of(Stage.encode, None, 2, plan, asked)
    with pytest.raises(DataError) as error:
        refuse_too_long([work], asked, widest=4)
    minutes = math.ceil((30 + 6000) / 60)
    for part in (f"about {minutes} minutes", "slurm.max_array=2, up to 4", "slurm.rates.encode=1.0", "task_bytes"):
        assert part in str(error.value)
    enough = dataclasses.replace(asked.slurm, time_limit_minutes=minutes)
    refuse_too_long([work], dataclasses.replace(asked, slurm=enough), widest=4)


# --- the command -----------------------------------------------------------------------------------------------------


def words(out: Path, corpus: Path, *more: str) -> list[str]:
    options = [f'out="{out}"', "source=text", f'source.paths=["{corpus}"]']
    return [*options, "tokenizer.vocab_size=400", "val_fraction=0.2", "task_bytes=10_000", *more]


def test_the_elements_see_the_configuration_that_was_launched(tmp_path: Path):
    """Their plan is compared option by option with what they are asked for."""
    typed = words(tmp_path / "out", tmp_path, "dedup=minhash", "clean=gopher", "slurm.partition=x", "submit=true")
    launched = compose(LAUNCH_DATA, typed)
    kept = [word for word in typed if not word.startswith(("slurm", "submit"))]
    assert launched.data_prep == compose(DATA_PREP, kept)


def test_words_that_launch_decides_itself_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="launch data deals out stages and tasks itself") as error:
        compose(LAUNCH_DATA, words(tmp_path / "out", tmp_path, "stage=encode", "task=0", "n_tasks=2"))
    assert len(error.value.problems) == 3
    with pytest.raises(ConfigError, match="Slurm cannot name log files"):
        compose(LAUNCH_DATA, words(tmp_path / "a\\b", tmp_path))


def test_without_submit_everything_is_shown_and_nothing_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    corpus = write_corpus(tmp_path / "texts", n_documents=20)
    out = tmp_path / HOSTILE.replace("'", "").replace('"', "")
    typed = words(out, corpus, "dedup=exact", "slurm.cpus_per_task=1")
    launch_data(compose(LAUNCH_DATA, typed), typed)
    shown = capsys.readouterr().out
    stages = ["sign", "catalog", "copies", "resolve", "tokenizer", "encode", "publish"]
    assert re.findall(r"^(\w+)=\$\(sbatch", shown, re.MULTILINE) == stages
    assert "nothing was sent" in shown
    assert not (out / "logs").exists()
    scripts = {stage: (out / "work" / "slurm" / f"{stage}.sh").read_text() for stage in stages}
    n = int(shown.split("Arrays have ")[1].split()[0])
    assert n > 2
    command = shlex.split(scripts["encode"].split("exec ")[1].replace("\\\n", ""))
    assert command == [sys.executable, "-m", "data_prep", *typed[:-1], "stage=encode", *command[-3:]]
    assert command[-3:] == ["task=${SLURM_ARRAY_TASK_ID}", f"n_tasks={n}", "workers=1"]
    assert [directives(scripts[stage]).get("array") for stage in ("sign", "catalog", "tokenizer")] == [
        f"0-{n - 1}",
        "0",
        None,
    ]


def test_what_is_finished_is_not_sent_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    corpus = write_corpus(tmp_path / "texts", n_documents=20)
    out = tmp_path / "out"
    typed = words(out, corpus, "slurm.cpus_per_task=1")
    asked = compose(LAUNCH_DATA, typed)
    prepare(dataclasses.replace(asked.data_prep, workers=1))
    launch_data(asked, typed)
    assert capsys.readouterr().out == ""
    (out / "manifest.json").unlink()
    names = sorted(file.stem for file in out.glob("train-*.bin"))
    (out / f"{names[0]}.json").unlink()
    launch_data(asked, typed)
    shown = capsys.readouterr().out
    assert re.findall(r"^(\w+)=\$\(sbatch", shown, re.MULTILINE) == ["encode", "publish"]
    assert re.fullmatch(r"\d+", directives((out / "work" / "slurm" / "encode.sh").read_text())["array"])


def test_submitting_where_there_is_no_slurm_says_so(tmp_path: Path):
    command = [sys.executable, "-m", "launch", "data", *words(tmp_path / "out", tmp_path, "submit=true")]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 3
    assert "sbatch is not on the PATH" in done.stderr
    assert not (tmp_path / "out").exists()


# --- under a real Slurm ----------------------------------------------------------------------------------------------


def launched(box: Cluster, typed: list[str], **variables: str) -> str:
    command = [sys.executable, "-m", "launch", "data", *typed, "submit=true"]
    done = subprocess.run(command, cwd=ROOT, env=box.env | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


@pytest.mark.slurm
def test_arrays_over_several_nodes_give_the_bytes_of_one_process(tmp_path: Path, cluster: Cluster):
    """More tasks than an array may have elements."""
    corpus = write_corpus(tmp_path / "texts", n_documents=60)
    out, alone = tmp_path / "it's $(here) 100% #1", tmp_path / "alone"
    typed = words(out, corpus, "dedup=exact", "slurm.cpus_per_task=1", "slurm.max_array=4")
    assert "Arrays have 4 elements" in launched(cluster, typed)
    with pytest.raises(AssertionError, match="wait or run already"):
        launched(cluster, typed)
    cluster.wait_until_empty()
    logs = "".join(file.read_text() for file in (out / "logs").iterdir())
    assert (out / "manifest.json").exists(), logs
    assert len(set(re.findall(r"on (\S+), attempt", logs))) > 1
    prepare(dataclasses.replace(compose(LAUNCH_DATA, typed).data_prep, out=str(alone), workers=1))
    assert len(list(alone.glob("train-*.bin"))) > 4
    assert contents(out) == contents(alone)


ENCODE_LATER = """\
import os, sys, time
while "stage=encode" in sys.orig_argv and os.path.exists(os.environ["HELD"]):
    time.sleep(0.1)
"""
"""put before a task by way of Python's sitecustomize: what is to be hurt does not end before"""


def running(box: Cluster, stage: str) -> tuple[str, str]:
    """(job id, node) of a running element of the stage, as soon as there is one."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        for line in box.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i %N %j").splitlines():
            job_id, node, name = line.split()
            if name.endswith(f"-{stage}"):
                return job_id, node
        time.sleep(0.05)
    raise AssertionError(box.ask("squeue"))


@pytest.mark.slurm
def test_what_the_cluster_and_the_environment_say_is_heeded(tmp_path: Path, box: Box):
    """MaxArraySize is 4; SBATCH_TIMELIMIT would overrule the directives of a script."""
    corpus = write_corpus(tmp_path / "texts", n_documents=60)
    typed = words(tmp_path / "out", corpus, "slurm.cpus_per_task=1", "slurm.time_limit_minutes=33")
    shown = launched(box, typed, SBATCH_TIMELIMIT="7")
    assert "Arrays have 4 elements (MaxArraySize=4, MaxJobCount=10,000: scontrol show config)" in shown
    assert set(box.ask("squeue", "--noheader", "--format=%l").split()) == {"33:00"}
    box.ask("scancel", "--me")
    box.wait_until_empty()


@pytest.mark.slurm
def test_a_time_limit_that_the_partition_does_not_allow_is_refused(tmp_path: Path, box: Box):
    """Slurm itself takes such a job and never starts it."""
    command = [
        sys.executable,
        "-m",
        "launch",
        "data",
        *words(tmp_path / "out", tmp_path, "slurm.time_limit_minutes=20"),
    ]
    box.ask("scontrol", "update", "partitionname=main", "maxtime=15")
    done = subprocess.run(command, cwd=ROOT, env=box.env, capture_output=True, text=True)
    box.ask("scontrol", "update", "partitionname=main", "maxtime=infinite")
    assert done.returncode == 3
    assert "slurm.time_limit_minutes=20 is more than the partition (the default one) allows, 15 minutes" in done.stderr


@pytest.mark.slurm
def test_a_dead_node_and_a_cancelled_element_lose_nothing(tmp_path: Path, box: Box):
    """Slurm starts the dead node's element again elsewhere; the cancelled one waits for the same command."""
    corpus = write_corpus(tmp_path / "texts", n_documents=60)
    out, alone, held = tmp_path / "out", tmp_path / "alone", tmp_path / "held"
    typed = words(out, corpus, "slurm.cpus_per_task=1", "slurm.max_array=3", "slurm.max_parallel=1")
    typed.append("slurm.export=[PATH,HOME,PYTHONPATH,HELD]")
    (tmp_path / "sitecustomize.py").write_text(ENCODE_LATER)
    held.touch()
    launched(box, typed, PYTHONPATH=str(tmp_path), HELD=str(held))
    element, node = running(box, "encode")
    array = element.partition("_")[0]
    box.ask("scancel", f"{array}_2")
    box.kill_node(node)
    held.unlink()
    box.ask("scontrol", "update", f"jobid={element}", "starttime=now")  # else it waits two minutes
    box.wait_until_empty()
    assert "attempt 2" in (out / "logs" / f"{log_name(out, 'encode')}-{element}.log").read_text()
    assert not (out / "manifest.json").exists()
    n_done = len(list(out.glob("train-*.json")))
    launched(box, typed)
    assert directives((out / "work" / "slurm" / "encode.sh").read_text())["array"] == "2%1"
    box.wait_until_empty()
    prepare(dataclasses.replace(compose(LAUNCH_DATA, typed).data_prep, out=str(alone), workers=1))
    assert 0 < n_done < len(list(alone.glob("train-*.json")))
    assert contents(out) == contents(alone)


def log_name(out: Path, stage: str) -> str:
    return directives((out / "work" / "slurm" / f"{stage}.sh").read_text())["job-name"]

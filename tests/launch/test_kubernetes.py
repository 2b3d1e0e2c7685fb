"""The PyTorchJob of a run: what it says to Kubernetes, and what the script in its pods does with each end. The script
runs here for real, with a stand-in for torchrun; that Kubernetes and the operator do what their manuals say is not
tried.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.compose import ConfigError, compose
from launch.job import Job
from launch.kubernetes import pytorch_job
from launch.submit import submit
from tests.launch.conftest import HOSTILE
from tests.launch.desk import APP

WORDS = (
    *("experiment=debug", "run.name=Hello_1.x", "batch.micro_batch_size=1", "job.nodes=2", "job.ranks_per_node=2"),
    *("job.target=kubernetes", "kubernetes.image=lab/crisol:1", "kubernetes.volume_claim=shared"),
)


def job(*more: str) -> dict[str, Any]:
    words = [*WORDS, *more]
    return yaml.safe_load(pytorch_job(compose(APP, words), Job.of(compose(APP, words), words)))


def pods(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [replica["template"]["spec"] for replica in tree["spec"]["pytorchReplicaSpecs"].values()]


def as_kubernetes_runs_it(container: dict[str, Any], variables: dict[str, str]) -> list[str]:
    """Command and arguments with $(NAME) replaced and $$ made one, as the manual of the Container type says."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return [re.sub(r"\$\$|\$\(([^)]*)\)", replaced, word) for word in (*container["command"], *container["args"])]


def test_a_job_asks_for_what_was_configured():
    tree = job("job.gpus_per_node=2", "kubernetes.namespace=ml", "kubernetes.grace_seconds=77", "kubernetes.cpus=12")
    assert (tree["apiVersion"], tree["kind"], tree["metadata"]["namespace"]) == (
        "kubeflow.org/v1",
        "PyTorchJob",
        "ml",
    )
    replicas = tree["spec"]["pytorchReplicaSpecs"]
    assert {name: (r["replicas"], r["restartPolicy"]) for name, r in replicas.items()} == {
        "Master": (1, "ExitCode"),
        "Worker": (1, "ExitCode"),
    }
    for pod in pods(tree):
        (container,) = pod["containers"]
        assert (container["name"], container["image"], pod["terminationGracePeriodSeconds"]) == (
            "pytorch",
            "lab/crisol:1",
            77,
        )
        assert container["resources"]["limits"] == {"cpu": "12", "memory": "64Gi", "nvidia.com/gpu": "2"}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert places == {"runs": "/work", "shared-memory": "/dev/shm"}
        sources = {volume.pop("name"): volume for volume in pod["volumes"]}
        assert sources == {
            "runs": {"persistentVolumeClaim": {"claimName": "shared"}},
            "shared-memory": {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
        }


@pytest.mark.parametrize("name", ["Hello_1.x", "9", "___", "a" * 64, "-.-x"])
def test_names_are_those_that_kubernetes_knows_and_differ_where_runs_do(name: str):
    found = job(f"run.name='{name}'")["metadata"]
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", found["name"])
    assert len(found["name"]) <= 50  # and -master-0 comes behind it
    assert found["annotations"] == {"crisol/run": name}
    assert found["name"] != job(f"run.name='{name[:60]}z'")["metadata"]["name"]


def test_one_node_has_no_workers():
    assert list(job("job.nodes=1")["spec"]["pytorchReplicaSpecs"]) == ["Master"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("kubernetes.image='a b'", "kubernetes.image='a b' is no name"),
        ("kubernetes.namespace='x: y'", "kubernetes.namespace='x: y' is no name"),
        ("kubernetes.volume_claim=null", "kubernetes.volume_claim is required"),
        ("kubernetes.mount_path=work", "must be a plain absolute folder"),
        ("kubernetes.shm_gib=64", "kubernetes.shm_gib=64 counts as memory"),
        ("run.folder=/elsewhere", "run.folder='/elsewhere' lies outside of kubernetes.mount_path=/work"),
        ("data.folder=../data", "data folder data='../data' lies outside"),
        ("cluster.device=cuda", "pass job.gpus_per_node=2"),
        ("slurm.partition=gpu", "job.target=kubernetes would ignore slurm.partition=gpu"),
        ("torchrun.restarts=1", "would ignore torchrun.restarts=1"),
        ("submit=true", "| kubectl apply -f -"),
    ],
)
def test_what_cannot_work_is_refused(more: str, why: str):
    with pytest.raises(ConfigError) as error:
        compose(APP, [*WORDS, more])
    assert why in str(error.value)


def test_the_output_is_the_file_alone(capsys: pytest.CaptureFixture[str]):
    submit(compose(APP, WORDS), WORDS)
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "PyTorchJob"


# --- a pod -----------------------------------------------------------------------------------------------------------


class Pod:
    """`python` stands for torchrun: it writes down its words and its variables, and does what is said for a module."""

    def __init__(self, folder: Path, train: str = "exit 0", preflight: str = "exit 0"):
        self.folder = folder
        text = f'echo "$RANK $WORLD_SIZE" >>{folder}/places\nprintf "%s\\0" "$@" >{folder}/words\n'
        text += (
            f'while [ "$1" != -m ] || [ "$2" = torch.distributed.run ]; do shift; done; echo "$2" >>{folder}/modules\n'
        )
        text += f"case $2 in train) {train} ;; *) {preflight} ;; esac\n"
        (folder / "python").write_text(f"#!/bin/bash\n{text}")
        (folder / "python").chmod(0o755)

    def start(self, *more: str) -> "subprocess.Popen[str]":
        variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "m-master-0", "MASTER_PORT": "23456"}
        (container,) = pods(job(*more))[0]["containers"]
        return subprocess.Popen(
            as_kubernetes_runs_it(container, variables | {"HOME": "no"}),
            env=variables | {"PATH": f"{self.folder}:/usr/bin:/bin", "TMPDIR": str(self.folder)},
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def end(self, *more: str) -> tuple[int, str]:
        process = self.start(*more)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    def modules(self) -> list[str]:
        return (self.folder / "modules").read_text().split()


def test_whatever_was_typed_reaches_the_ranks_as_it_was_typed(tmp_path: Path):
    typed = (f"sample.prompts=['{'$(touch pwned) $(HOME) $$ `id` %s'}']", "log.every_steps=3")
    code, printed = Pod(tmp_path).end(*typed)
    assert code == 0, printed
    seen = (tmp_path / "words").read_text().split("\0")[:-1]
    options = (
        "--nnodes=2 --node-rank=1 --nproc-per-node=2 --master-addr=m-master-0 --master-port=23456 --max-restarts=0"
    )
    assert seen == ["-m", "torch.distributed.run", *options.split(), "-m", "train", *WORDS[:3], *typed]
    assert Pod(tmp_path).modules() == ["train.preflight", "train"]
    assert (tmp_path / "places").read_text().split() == []  # those of the pod are not those of a rank
    assert not (tmp_path / "pwned").exists()
    assert HOSTILE not in printed


@pytest.mark.parametrize(
    ("train", "code"),
    [
        ("exit 0", 0),
        *((f'echo {code} >"$CRISOL_EXIT_WORD"; exit 1', code) for code in (2, 3, 4, 5, 6)),
        ("exit 1", 143),  # what torchrun says when a rank was killed, or has saved and left
        ("kill -9 $$", 143),
    ],
)
def test_a_pod_is_started_again_only_where_that_would_help(tmp_path: Path, train: str, code: int):
    """restartPolicy ExitCode: of 128 and more the pod is started again, below the job has failed."""
    ended, printed = Pod(tmp_path, train).end()
    assert ended == code, printed


def test_a_bad_node_fails_the_job_with_its_name(tmp_path: Path):
    pod = Pod(tmp_path, preflight='echo "bad node n2: no GPU"; echo n2 >"$CRISOL_BAD_NODES"; exit 1')
    code, printed = pod.end()
    assert (code, pod.modules()) == (7, ["train.preflight"])
    assert "bad node n2: no GPU" in printed


def test_starts_that_do_not_come_so_far_as_to_be_counted_end_by_themselves(tmp_path: Path):
    """The operator itself would go on for ever: of codes of 128 and more it counts none."""
    pod = Pod(tmp_path, "exit 1")
    assert [pod.end("run.max_idle_starts=3")[0] for _ in range(3)] == [143, 143, 6]


def test_a_pod_that_is_asked_to_leave_tells_its_ranks_to_save(tmp_path: Path):
    """Each of them, and not torchrun, which would give them 30 s."""
    rank = f"trap 'echo saved >>{tmp_path}/told; exit 143' USR1; touch {tmp_path}/up; while :; do sleep 0.05; done"
    (tmp_path / "rank").write_text(rank)
    pod = Pod(tmp_path, f"bash {tmp_path}/rank & bash {tmp_path}/rank & wait; exit 1")
    process = pod.start()
    while not (tmp_path / "up").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert (tmp_path / "told").read_text().split() == ["saved", "saved"]

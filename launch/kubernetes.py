"""A run as a PyTorchJob of Kubeflow's training operator.

In: the configuration and the words for the ranks. Out: YAML for `kubectl apply -f -`. A node is a pod with torchrun in
it: the operator gives each pod its number (RANK) and the address of the first one. A pod that ends with a code of 128
or more is started again, and goes on from what is saved; with one below, the job has failed for good (restartPolicy
ExitCode). torchrun itself ends with 1 whatever happened, so the pod's script says which of the two it was.
"""

import re
from pathlib import PurePosixPath
from typing import Any

import yaml

from launch.job import Job
from launch.submit_config import SubmitConfig

VOLUMES = ("runs", "shared-memory")


def pytorch_job(config: SubmitConfig, job: Job) -> str:
    """YAML, of which every value has gone through the writer of a YAML library."""
    name = _plain(job.name)
    metadata: dict[str, Any] = {"name": name, "annotations": {"crisol/run": config.run.name}}
    if config.kubernetes.namespace is not None:
        metadata["namespace"] = config.kubernetes.namespace
    replicas = {"Master": _replica(config, job, 1)}
    if config.job.nodes > 1:
        replicas["Worker"] = _replica(config, job, config.job.nodes - 1)
    tree = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata,
        "spec": {"runPolicy": {"cleanPodPolicy": "None"}, "pytorchReplicaSpecs": replicas},
    }
    head = f"# Trains the run {config.run.name}: | kubectl apply -f -\n# Written by `python -m launch submit`.\n"
    return head + yaml.dump(tree, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=10_000)


class _Readable(yaml.SafeDumper):
    """Shows a script line by line, wherever YAML can."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def _replica(config: SubmitConfig, job: Job, n_pods: int) -> dict[str, Any]:
    asked = config.kubernetes
    spec = {
        "terminationGracePeriodSeconds": asked.grace_seconds,
        "containers": [_container(config, job)],
        "volumes": [
            {"name": VOLUMES[0], "persistentVolumeClaim": {"claimName": asked.volume_claim}},
            {"name": VOLUMES[1], "emptyDir": {"medium": "Memory", "sizeLimit": f"{asked.shm_gib}Gi"}},
        ],
    }
    return {"replicas": n_pods, "restartPolicy": "ExitCode", "template": {"spec": spec}}


def _container(config: SubmitConfig, job: Job) -> dict[str, Any]:
    asked, gpus = config.kubernetes, config.job.gpus_per_node
    resources: dict[str, Any] = {"cpu": str(asked.cpus), "memory": f"{asked.memory_gib}Gi"}
    resources |= {} if gpus is None else {"nvidia.com/gpu": str(gpus)}
    run = str(PurePosixPath(config.run.folder, config.run.name))
    return {
        "name": "pytorch",  # the operator looks for this one
        "image": asked.image,
        "workingDir": asked.mount_path,
        "command": ["/bin/bash", "-c", literal(pod_script(config)), "crisol", literal(run)],
        "args": [literal(word) for word in job.words],
        "resources": {"requests": resources, "limits": dict(resources)},  # twice the same would become an alias
        "volumeMounts": [
            {"name": VOLUMES[0], "mountPath": asked.mount_path},
            {"name": VOLUMES[1], "mountPath": "/dev/shm"},
        ],
    }


def literal(text: str) -> str:
    """Kubernetes replaces $(NAME) in commands and makes one dollar of two (Kubernetes API, Container, command)."""
    return text.replace("$", "$$")


def _plain(name: str) -> str:
    """As names of pods may be; the operator adds to it. The digits at the end of a job's name keep it unique."""
    head, _, digits = name.lower().rpartition("-")
    plain = re.sub(r"[^a-z0-9]+", "-", head).strip("-")[:40].strip("-")
    return f"{plain if plain[:1].isalpha() else f'run-{plain}'.strip('-')}-{digits}"


def pod_script(config: SubmitConfig) -> str:
    """Its arguments: the folder of the run, and the words for the ranks."""
    return POD.format(
        nodes=config.job.nodes,
        ranks=config.job.ranks_per_node,
        preflight=PREFLIGHT if config.job.preflight else "code=0\n",
        idle=config.run.max_idle_starts,
    )


POD = """\
set -uo pipefail
run=$1; shift
pod=$RANK; unset RANK WORLD_SIZE   # of the pod; torchrun gives each of its ranks its own
word=$(mktemp -d) || exit 1
export CRISOL_EXIT_WORD=$word/exit CRISOL_BAD_NODES=$word/bad
# Kubernetes asks the first process to leave: the ranks are told to save. torchrun itself would wait 30 s for them.
step= told=
tell() {{
    told=1  # once more while torchrun has not started them yet
    until [ -z "$step" ] || ! kill -0 "$step" || kill -USR1 $(cat "/proc/$step/task/$step/children"); do sleep 1; done
}} 2>/dev/null
trap tell TERM USR1 USR2
newest_attempt() {{ ls -1 -- "$run/attempts" 2>/dev/null | tail -n 1; }}
before=$(newest_attempt)

ranks() {{  # the module, the port, the words
    local module=$1 port=$2
    shift 2
    python -m torch.distributed.run --nnodes={nodes} --node-rank="$pod" --nproc-per-node={ranks} \\
        --master-addr="$MASTER_ADDR" --master-port="$port" --max-restarts=0 -m "$module" "$@" &
    step=$!
    wait "$step"; code=$?
    while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
    step=
    [ ! -r "$CRISOL_EXIT_WORD" ] || read -r code <"$CRISOL_EXIT_WORD"
}}

{preflight}[ -z "$told" ] || code=143
[ "$code" != 0 ] || ranks train "$MASTER_PORT" "$@"
case $code in
0 | [2-7]) exit "$code" ;;
esac
# A run counts its starts that reach no new step. Those in which it did not come so far as to count are counted here.
mkdir -p -- "$run/kubernetes"
idle=$run/kubernetes/$pod.idle
if [ -z "$told" ] && [ "$(newest_attempt)" = "$before" ]; then echo "$code" >>"$idle"; else rm -f -- "$idle"; fi
if [ -e "$idle" ] && [ "$(wc -l <"$idle")" -ge {idle} ]; then
    echo "the last {idle} starts did not come so far as to take up the run: no further one is made"
    rm -f -- "$idle"
    exit 6
fi
echo "exit code $code: started again, to go on from what is saved"
exit 143
"""

PREFLIGHT = """\
ranks train.preflight "$((MASTER_PORT + 1))" "$@"
[ ! -s "$CRISOL_BAD_NODES" ] || code=7
"""

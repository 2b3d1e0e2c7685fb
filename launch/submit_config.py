"""What `launch submit` can be asked to do: the keys of `train`, the shape of the job, and what takes it: a queue of
Slurm, Kubernetes, or torchrun by hand. Only dataclasses.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from launch.queue_config import QueueConfig
from train.config import Device, TrainConfig


class Target(StrEnum):
    slurm = "slurm"
    kubernetes = "kubernetes"
    torchrun = "torchrun"


@dataclass
class JobConfig:
    target: Target = Target.slurm
    """what the job is written for: a queue of Slurm, Kubeflow's training operator, or torchrun typed on each node"""
    nodes: int = 1
    ranks_per_node: int = 1
    """One a device"""
    gpus_per_node: int | None = None
    """null: none are asked for, as where a partition gives whole nodes"""
    preflight: bool = True
    """Looks at the nodes before the run is taken up, and names those that cannot be used"""

    def problems(self) -> list[str]:
        found: list[str] = []
        for name in ("nodes", "ranks_per_node", "gpus_per_node"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"job.{name}={value} must be at least 1{', or null' if name == 'gpus_per_node' else ''}")
        if self.gpus_per_node is not None and self.gpus_per_node >= 1 and self.gpus_per_node != self.ranks_per_node:
            found.append(
                f"job.gpus_per_node={self.gpus_per_node} and job.ranks_per_node={self.ranks_per_node}: a rank "
                "drives one GPU, so let them be equal"
            )
        if self.gpus_per_node is not None and self.target == Target.torchrun:
            found.append(
                f"job.gpus_per_node={self.gpus_per_node}: torchrun takes what a node has, and would ignore it; "
                "job.ranks_per_node says how many are used"
            )
        return found

    @property
    def n_ranks(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass
class TrainJobConfig(QueueConfig):
    time_limit_minutes: int = 1440
    """Of the job; started again after it has saved and left, it has as much once more"""
    signal_seconds: int = 300
    """Slurm tells the ranks so long before the end of the job to save and leave; it may be a minute earlier. They look
    at the time themselves as well"""
    chain: int = 1
    """Jobs that are sent at once, each of which goes on where the one before stopped: for sites where a job may not put
    itself back into the queue, which a single one does"""

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("signal_seconds", "chain"):
            if getattr(self, name) < 1:
                found.append(f"slurm.{name}={getattr(self, name)} must be at least 1")
        if self.lead_seconds >= self.time_limit_minutes * 60:
            found.append(
                f"slurm.signal_seconds={self.signal_seconds} (Slurm may send it 60 s earlier) leaves nothing of "
                f"slurm.time_limit_minutes={self.time_limit_minutes}: allow more minutes, or be told later"
            )
        return found

    @property
    def lead_seconds(self) -> int:
        """From the earliest moment at which Slurm may tell of the end to the end."""
        return self.signal_seconds + 60


LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""a name as Kubernetes has them (RFC 1123)"""
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")


@dataclass
class KubernetesConfig:
    image: str | None = None
    """Has Python as `python`, and Crisol installed; required for job.target=kubernetes, as is volume_claim"""
    volume_claim: str | None = None
    """The claim of a volume that all pods may write at once (ReadWriteMany): the data, and the folders of the runs"""
    mount_path: str = "/work"
    """Where the pods have it; the working folder of the run"""
    namespace: str | None = None
    """null: that of kubectl's context"""
    cpus: int = 8
    """Of a pod; so are the next two"""
    memory_gib: int = 64
    shm_gib: int = 16
    """Shared memory, by which NCCL's ranks of one node exchange tensors; counts as memory"""
    grace_seconds: int = 600
    """From the request to leave to the end of a pod: the step in hand and its save"""

    def problems(self) -> list[str]:
        found: list[str] = []
        for name, form in (("image", IMAGE), ("volume_claim", LABEL), ("namespace", LABEL)):
            value = getattr(self, name)
            if value is not None and not form.fullmatch(value):
                found.append(f"kubernetes.{name}={value!r} is no name that Kubernetes could know: {form.pattern}")
        path = PurePosixPath(self.mount_path)
        if not path.is_absolute() or str(path) == "/" or ".." in path.parts or not re.fullmatch(r"[\w./-]+", str(path)):
            found.append(f"kubernetes.mount_path={self.mount_path!r} must be a plain absolute folder, as /work")
        for name in ("cpus", "memory_gib", "shm_gib", "grace_seconds"):
            if getattr(self, name) < 1:
                found.append(f"kubernetes.{name}={getattr(self, name)} must be at least 1")
        if self.shm_gib >= self.memory_gib >= 1:
            found.append(
                f"kubernetes.shm_gib={self.shm_gib} counts as memory of the pod: allow more than that by "
                f"kubernetes.memory_gib={self.memory_gib}"
            )
        return found


ENDPOINT = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")


@dataclass
class TorchrunConfig:
    endpoint: str | None = None
    """HOST:PORT of one of the nodes, at which all meet; required for job.target=torchrun"""
    restarts: int = 5
    """so often the ranks are started again after one of them has died"""

    def problems(self) -> list[str]:
        found: list[str] = []
        match = ENDPOINT.fullmatch(self.endpoint or "host:29400")
        if match is None or not 1024 <= int(match[2]) < 65535:
            found.append(f"torchrun.endpoint={self.endpoint!r} must be HOST:PORT with a port of 1024 to 65534")
        if self.restarts < 0:
            found.append(f"torchrun.restarts={self.restarts} must be 0 or more")
        return found


@dataclass(kw_only=True)
class SubmitConfig(TrainConfig):
    job: JobConfig = field(default_factory=JobConfig)
    slurm: TrainJobConfig = field(default_factory=TrainJobConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    torchrun: TorchrunConfig = field(default_factory=TorchrunConfig)
    submit: bool = False
    """Send the job; without it the script is only shown."""

    def problems(self) -> list[str]:
        found = super().problems() + self._ignored()
        job, cluster = self.job, self.cluster
        if cluster.n_devices not in (None, job.n_ranks):
            found.append(
                f"cluster.n_devices={cluster.n_devices}, but job.nodes={job.nodes} x "
                f"job.ranks_per_node={job.ranks_per_node} = {job.n_ranks}"
            )
        if cluster.device == Device.cpu and job.gpus_per_node is not None:
            found.append(f"job.gpus_per_node={job.gpus_per_node} and cluster.device=cpu: GPUs would idle")
        if cluster.device != Device.cpu and cluster.gpus_per_node is not None:
            found += self._more_than_a_node(cluster.gpus_per_node)
        path = str(Path(self.run.folder).absolute())
        if "\\" in path or not path.isprintable():
            found.append(f"run.folder={self.run.folder!r}: Slurm cannot name log files below a folder with such signs")
        match job.target:
            case Target.kubernetes:
                return found + self._kubernetes_problems()
            case Target.torchrun:
                return found + self._torchrun_problems()
            case Target.slurm:
                return found

    def _ignored(self) -> list[str]:
        """Keys that were set for another target."""
        found: list[str] = []
        for target in Target:
            section = getattr(self, target)
            changed = [item.name for item in dataclasses.fields(section) if _is_changed(section, item.name)]
            if target != self.job.target and changed:
                keys = ", ".join(f"{target}.{name}={getattr(section, name)}" for name in changed)
                found.append(f"job.target={self.job.target} would ignore {keys}: drop it, or job.target={target}")
        if self.submit and self.job.target != Target.slurm:
            how = "| kubectl apply -f -" if self.job.target == Target.kubernetes else "and typed on each node"
            found.append(
                f"submit=true sends jobs to Slurm only; with job.target={self.job.target} what is shown is sent by "
                f"you: the same command without submit=true, {how}"
            )
        return found

    def _more_than_a_node(self, gpus: int) -> list[str]:
        if self.job.ranks_per_node <= gpus:
            return []
        return [
            f"job.ranks_per_node={self.job.ranks_per_node}, but a node of this cluster has "
            f"cluster.gpus_per_node={gpus}: let job.nodes be more"
        ]

    def _kubernetes_problems(self) -> list[str]:
        found = [
            f"kubernetes.{name} is required for job.target=kubernetes: pass kubernetes.{name}=NAME"
            for name in ("image", "volume_claim")
            if getattr(self.kubernetes, name) is None
        ]
        if self.cluster.device == Device.cuda and self.job.gpus_per_node is None:
            found.append(
                "job.gpus_per_node=null with cluster.device=cuda: a pod sees only the GPUs that it asks for; pass "
                f"job.gpus_per_node={self.job.ranks_per_node}"
            )
        folders = {"run.folder": self.run.folder}
        folders |= {f"data folder {name}": source.folder for name, source in self.data.mixture.items()}
        for key, folder in folders.items():
            place = PurePosixPath(self.kubernetes.mount_path, folder)
            if ".." in place.parts or not place.is_relative_to(self.kubernetes.mount_path):
                found.append(
                    f"{key}={folder!r} lies outside of kubernetes.mount_path={self.kubernetes.mount_path}: it would be "
                    "lost with its pod. Name a folder below it"
                )
        return found

    def _torchrun_problems(self) -> list[str]:
        if self.torchrun.endpoint is not None:
            return []
        return ["torchrun.endpoint is required for job.target=torchrun: HOST:PORT of the first node, as n1:29400"]

    @property
    def train(self) -> TrainConfig:
        """The part that the ranks see."""
        return TrainConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(TrainConfig)})


def _is_changed(section: QueueConfig | KubernetesConfig | TorchrunConfig, name: str) -> bool:
    return getattr(section, name) != getattr(type(section)(), name)

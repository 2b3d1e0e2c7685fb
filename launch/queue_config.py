"""What any job asks of Slurm's queue. Only dataclasses."""

import re
from dataclasses import dataclass, field

PLAIN = re.compile(r"[A-Za-z0-9_.,:@+*=-]+")
"""What Slurm's own names are made of. They stand unquoted in a script: versions of sbatch differ in how they take
quotes there."""
OPTION = re.compile(r"--([a-z-]+)(=[]A-Za-z0-9_.,:@+*=&|!/[-]+)?")
OURS = re.compile(
    "account|array|cpus-per-task|dependency|export|gpus-per-node|job-name|kill-on-invalid-dep|mem|nodes|ntasks|"
    "ntasks-per-node|open-mode|output|parsable|partition|qos|requeue|no-requeue|signal|time|wrap"
)

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass
class QueueConfig:
    partition: str | None = None
    """null: the cluster's default; the same holds for account and qos"""
    account: str | None = None
    qos: str | None = None
    time_limit_minutes: int = 240
    """Of each job, and of each element of an array."""
    cpus_per_task: int = 4
    """Cores of an element of an array, or of a rank"""
    memory_gib: int | None = None
    """Of a job on each of its nodes; null: the partition's default"""
    export: list[str] = field(default_factory=lambda: ["PATH", "HOME", "USER", "LANG", "LD_LIBRARY_PATH"])
    """Names of the variables that the job sees besides Slurm's own; nothing else of this shell reaches it, as HF_TOKEN
    or NCCL_SOCKET_IFNAME, unless it is named here"""
    options: list[str] = field(default_factory=list[str])
    """Further options of sbatch, quoted for Hydra: slurm.options=['--constraint=icelake','--exclude=n[3-5]']."""

    def problems(self) -> list[str]:
        found: list[str] = []
        for name in ("partition", "account", "qos"):
            value = getattr(self, name)
            if value is not None and not PLAIN.fullmatch(value):
                found.append(f"slurm.{name}={value!r} is no name that Slurm could know: letters, digits and _.,:@+*=-")
        for name in ("time_limit_minutes", "cpus_per_task", "memory_gib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"slurm.{name}={value} must be at least 1")
        for name in self.export:
            if not VARIABLE.fullmatch(name) or name in ("ALL", "NONE", "NIL"):
                found.append(f"slurm.export holds {name!r}: names of variables only, as PATH")
        for word in self.options:
            option = OPTION.fullmatch(word)
            if option is None:
                found.append(f"slurm.options: {word!r} is not written as --option=value without blanks and quotes")
            elif OURS.fullmatch(option[1]):
                found.append(f"slurm.options: launch sets --{option[1]} itself; see the keys of slurm")
        return found

    def asked(self) -> list[str]:
        """Options of sbatch for what is configured here, but for the shape of the job."""
        found = [f"--cpus-per-task={self.cpus_per_task}", f"--time={self.time_limit_minutes}"]
        found += [] if self.memory_gib is None else [f"--mem={self.memory_gib}G"]
        for name in ("partition", "account", "qos"):
            value = getattr(self, name)
            found += [] if value is None else [f"--{name}={value}"]
        return [*found, f"--export={','.join(self.export) or 'NIL'}", *self.options]

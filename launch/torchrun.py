"""A run without a scheduler: one command, typed alike on each node.

In: the configuration and the words for the ranks. Out: lines for a shell. The nodes find each other at one endpoint
(torchrun's c10d rendezvous), where the first to come keeps the store. The preflight meets at the port above: the store
of a node that is not yet done with it must not be taken for that of the run. Should a rank die, all nodes start theirs
again and go on from what is saved; each start meets in a store of its own, because torch does not tell the starts of a
shared one apart (train/parallel.py, `restarted_store`).
"""

import shlex
import sys

from launch import slurm
from launch.job import Job
from launch.submit_config import SubmitConfig

STORE = "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"


def commands(config: SubmitConfig, job: Job) -> str:
    """In brackets, so that nothing of it stays in the shell that it is typed into."""
    steps = [f"cd -- {shlex.quote(str(job.work))}", *slurm.python_path(job.python_path), STORE]
    if config.job.preflight:
        steps.append(_torchrun(config, job, "train.preflight", port=1, restarts=0))
    steps.append(_torchrun(config, job, "train", port=0, restarts=config.torchrun.restarts))
    joined = " &&\n ".join(steps)
    where = "on this node" if config.job.nodes == 1 else f"on each of {config.job.nodes} nodes"
    return f"# Trains the run {config.run.name}: to be typed alike {where}.\n({joined})"


def _torchrun(config: SubmitConfig, job: Job, module: str, port: int, restarts: int) -> str:
    host, _, first = (config.torchrun.endpoint or "").rpartition(":")
    options = [
        f"--nnodes={config.job.nodes} --nproc-per-node={config.job.ranks_per_node} --max-restarts={restarts}",
        f"--rdzv-backend=c10d --rdzv-endpoint={host}:{int(first) + port} --rdzv-id={job.name}-{module}",
        f"-m {module}",
    ]
    command = shlex.join([sys.executable, "-m", "torch.distributed.run"])
    return " \\\n    ".join([command, *options, *(shlex.quote(word) for word in job.words)])

"""environment.json of an attempt: under which software, on which hosts and with which variables it ran. No torch until
it is written.

In: the hosts of all ranks. Out: a file that lets somebody make the same place again, or find what differs between two
attempts. Of the process's variables only the families that change training are kept, and none that may hold a secret.
"""

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.files import publish_json
from train.node import ROOT, look

FAMILIES = ("SLURM_", "NCCL_", "TORCH_", "TORCHELASTIC_", "CUDA_", "OMP_", "GOMP_", "MKL_", "GLOO_", "DS_", "PYTHON")
FAMILIES += ("HF_", "CRISOL_", "NVIDIA_", "UCX_", "FI_")
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURMD_NODENAME")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH|JWT|COOKIE", re.IGNORECASE)
REDACTED = "(redacted)"
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def write_environment(file: Path, hosts: Sequence[str], variables: Mapping[str, str]) -> None:
    """hosts: of each rank; variables: all of this process."""
    publish_json(file, environment(hosts, variables))


def environment(hosts: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks.setdefault(host, []).append(rank)
    return {
        "schema_version": 1,
        "time": time.time(),
        "node": asdict(look()),
        "hosts": ranks,
        "command": [_without_passwords(word) for word in sys.orig_argv],
        "git": _git(),
        "packages": packages(),
        "variables": kept(variables),
    }


def packages() -> dict[str, str]:
    """Version of every installed distribution."""
    found = {dist.name: dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def kept(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that change training; of one whose name sounds like a secret, only the name."""
    chosen = {name: value for name, value in variables.items() if name.startswith(FAMILIES) or name in PLACE}
    return {
        name: REDACTED if SECRET.search(name) else _without_passwords(value) for name, value in sorted(chosen.items())
    }


def _without_passwords(text: str) -> str:
    """Of URLs in it."""
    return _IN_URL.sub(REDACTED, text)


def _git() -> dict[str, str | None]:
    """Commit of the project's own checkout, and a digest of what differs from it in files that git knows."""
    commit, changes = _ask("rev-parse", "HEAD"), _ask("diff", "HEAD")
    text = (commit or b"").decode().strip() or None
    return {"commit": text, "diff_sha256": hashlib.sha256(changes).hexdigest() if changes else None}


def _ask(*words: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

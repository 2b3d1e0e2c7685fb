"""`launch doctor`: what this machine or cluster can do, and what to mend, within a minute.

Out: one line for each thing looked at (ok, note, or fix) and under each `fix` the command that mends it. What only
torch can tell is asked of children (`python -m train.node`, `python -m train.trial`), so that a broken torch is a line
like any other. Exit code 0, or 2 if something must be mended before a run can train here.
"""

import errno
import json
import locale
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from launch.installation import imports, packages

ROOT = Path(__file__).resolve().parents[1]
CHILD_SECONDS = 55.0
GIB = 2**30
_COLOURS = {"ok": "32", "note": "33", "fix": "31"}
_LEAST_DRIVER = {13: 580, 12: 525}
"""for a major version of CUDA: docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility"""


@dataclass
class DoctorCommand:
    folder: str = "runs"
    """where runs are to be written"""

    def problems(self) -> list[str]:
        return [] if self.folder else ["folder is empty: name the folder that is to hold the runs; runs is the default"]


@dataclass(frozen=True)
class Line:
    status: str
    """ok, note or fix"""
    topic: str
    words: str
    command: str = ""
    """mends it"""


def doctor(command: DoctorCommand) -> int:
    started = time.monotonic()
    with ThreadPoolExecutor() as pool:
        children = [pool.submit(_child, f"train.{name}") for name in ("node", "trial")]
        slurm = pool.submit(lambda: [*_slurm()])
        here = [*imports(ROOT), *packages(ROOT), *_folder(Path(command.folder)), *_process()]
        node, trial = (child.result() for child in children)
        lines = [Line(*line) if isinstance(line, tuple) else line for line in here]
        if lines[0].status == "fix" and isinstance(node, str):
            asked = [Line("note", "torch", "not asked: what would be asked is part of `train`, see imports")]
        else:
            asked = [*_software(node), *_hardware(node), *_trials(trial)]
        lines = [*lines[:2], *asked, *lines[2:], *slurm.result()]
    show(lines, sys.stdout.isatty())
    n_fix = sum(line.status == "fix" for line in lines)
    verdict = "runs can train here" if not n_fix else f"{n_fix} to fix before runs can train here"
    print(f"\n{verdict} ({time.monotonic() - started:.0f} s)")
    return ConfigError.exit_code if n_fix else 0


def show(lines: list[Line], is_terminal: bool) -> None:
    width = max(len(line.topic) for line in lines)
    for line in lines:
        status = f"{line.status:<4}"
        if is_terminal:
            status = f"\033[{_COLOURS[line.status]}m{status}\033[0m"
        print(f"{status}  {line.topic:<{width}}  {line.words}")
        if line.command:
            print(f"{'':<{width + 6}}  $ {line.command}")


def _child(module: str) -> dict[str, Any] | str:
    """The JSON that a module of the project prints; or why there is none."""
    words = [sys.executable, "-m", module]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=CHILD_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"gave no answer within {CHILD_SECONDS:.0f} s"
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]


def _software(node: dict[str, Any] | str) -> Iterator[Line]:
    if isinstance(node, str):
        yield Line("fix", "torch", f"python -m train.node: {node}", f"cd {ROOT} && make install")
        return
    build = f"CUDA {node['cuda']}" if node["cuda"] else "CPU build"
    yield Line("ok", "torch", f"{node['torch']} ({build}), Python {node['python']}")
    yield _cuda(node)
    if node["nccl"]:
        yield Line("ok", "NCCL", node["nccl"])


def _cuda(node: dict[str, Any]) -> Line:
    driver, cuda, gpus = node["driver"], node["cuda"], node["gpus"]
    if gpus:
        names = sorted({gpu["name"] for gpu in gpus})
        memory = min(gpu["memory_bytes"] for gpu in gpus)
        words = f"{len(gpus)} x {', '.join(names)}, {memory / GIB:.0f} GiB each, driver {driver}"
        return Line("ok", "GPU", words)
    if driver is None:
        return Line("note", "GPU", "none: no NVIDIA driver is loaded; runs train on the CPU (cluster.device=cpu)")
    if cuda is None:
        words = f"driver {driver} is loaded, and torch is a CPU build: it sees no GPU"
        return Line("fix", "GPU", words, f"cd {ROOT} && rm -r .venv && CRISOL_TORCH=cuda make install")
    least = _LEAST_DRIVER.get(int(cuda.split(".")[0]), 0)
    if int(driver.split(".")[0]) < least:
        words = f"driver {driver} is older than CUDA {cuda} of this torch needs: {least} or newer"
        return Line("fix", "GPU", words, "sudo apt-get install nvidia-driver-580    # or ask who keeps the machine")
    words = f"driver {driver} is loaded, but torch sees no GPU: none was given to this job, or it fell off the bus"
    return Line("fix", "GPU", words, "nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES; sudo dmesg | grep -i xid")


def _hardware(node: dict[str, Any] | str) -> Iterator[Line]:
    if isinstance(node, str):
        return
    cores, all_cores = node["cores"], node["machine_cores"]
    bound = "" if cores == all_cores else f" of {all_cores}: this process is bound to them"
    yield Line("ok", "cores", f"{cores}{bound}")
    memory = f"{node['available_bytes'] / GIB:.1f} of {node['memory_bytes'] / GIB:.1f} GiB are free"
    yield Line("ok" if node["available_bytes"] > 2 * GIB else "note", "memory", memory)
    yield _shared_memory(node)
    temp = f"{node['temp_bytes'] / GIB:.1f} GiB are free in {node['temp_folder']}"
    if node["temp_bytes"] < GIB / 4:
        yield Line("fix", "temporary files", temp, "export TMPDIR=/some/larger/folder")
    else:
        yield Line("ok", "temporary files", temp)


def _shared_memory(node: dict[str, Any]) -> Line:
    size, n_gpus = node["shared_memory_bytes"], len(node["gpus"])
    words = f"{size / GIB:.2f} GiB are free in /dev/shm"
    if size < max(1, n_gpus) * GIB / 16 and n_gpus > 1:
        command = "docker run --shm-size=8g ...    # outside of a container: sudo mount -o remount,size=8g /dev/shm"
        return Line("fix", "shared memory", f"{words}, too little for NCCL on {n_gpus} GPUs", command)
    return Line("ok", "shared memory", words)


def _trials(trial: dict[str, Any] | str) -> Iterator[Line]:
    if isinstance(trial, str):
        yield Line("fix", "two ranks", f"python -m train.trial: {trial}", "python -m train.trial    # in full")
        return
    ranks = trial["ranks"]
    if ranks["problem"]:
        command = "GLOO_SOCKET_IFNAME=lo python -m train.trial    # if that works, export the variable"
        yield Line("fix", "two ranks", f"cannot train together: {ranks['problem']}", command)
    else:
        words = "met on the loopback interface under DeepSpeed and gloo, and added up"
        yield Line("ok", "two ranks", f"{words} ({ranks['seconds']:.0f} s)")
    for words in trial["gpus"]:
        yield Line("fix", "GPU", words, "nvidia-smi")
    yield from _compiled(trial["locks"])


def _compiled(locks: list[str]) -> Iterator[Line]:
    """DeepSpeed compiles nothing here: the one operation that it would, for shared memory on CPUs, is switched off."""
    for lock in locks:
        words = f"{lock} is left of a killed build: torch would wait for it for ever"
        yield Line("fix", "DeepSpeed ops", words, f"rm {shlex.quote(lock)}")
    compiler = shutil.which("cc") or shutil.which("gcc")
    words = "none is compiled, no compiler is needed"
    if not locks:
        only = "" if compiler else " (parallel.compile=inductor would need one)"
        yield Line("ok", "DeepSpeed ops", f"{words}{only}")


def _folder(folder: Path) -> Iterator[Line]:
    """The disk for runs: room, speed, and its clock, which on a network file system is another machine's."""
    size = 64 * 2**20
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if _is_there(path))
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as stream:
            started = time.perf_counter()
            stream.write(os.urandom(1 << 20) * (size >> 20))
            stream.flush()
            os.fsync(stream.fileno())
            seconds, written = time.perf_counter() - started, Path(stream.name).stat().st_mtime
            skew = written - time.time()
    except OSError as error:
        words = f"{place} cannot be written to: {error.strerror}"
        yield Line("fix", "disk", words, "python -m launch doctor folder=/a/folder/of/yours    # then run.folder=… too")
        return
    free = shutil.disk_usage(place).free
    words = (
        f"{free / GIB:,.1f} GiB are free for {folder} in {place}; {size / seconds / 1e6:,.0f} MB/s until on the disk"
    )
    yield Line("ok" if free > GIB else "note", "disk", words)
    if abs(skew) > 2:
        words = f"files in {place} are dated {skew:+.1f} s from the clock here"
        yield Line("fix", "clock", words, "sudo chronyc makestep    # on the machine whose clock is wrong")
    else:
        yield Line("ok", "clock", f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, and files are dated alike")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _process() -> Iterator[Line]:
    mask = os.umask(0o077)
    os.umask(mask)
    others = "nobody else may read" if mask & 0o044 == 0o044 else "others may read"
    yield Line("ok", "umask", f"{mask:03o}: {others} what runs write")
    encoding = locale.getencoding()
    if encoding.lower().replace("-", "") != "utf8" and not sys.flags.utf8_mode:
        yield Line("note", "locale", f"{encoding}: names outside of it cannot be shown", "export LANG=C.UTF-8")
    else:
        yield Line("ok", "locale", encoding)


def _slurm() -> Iterator[Line]:
    if shutil.which("sbatch") is None:
        yield Line("note", "Slurm", "no sbatch on the PATH: `launch submit` only shows its scripts here")
        return
    version = _ask("sbatch", "--version")
    shown = _ask("sinfo", "--noheader", "--format=%P|%l|%D|%c|%m|%G|%a")
    if isinstance(shown, Exception) or isinstance(version, Exception):
        words = f"sbatch is there, but no controller answers: {shown if isinstance(shown, Exception) else version}"
        yield Line("note", "Slurm", words, "scontrol ping")
        return
    rows = [line.split("|") for line in shown.splitlines() if line.count("|") == 6]
    yield Line("ok", "Slurm", f"{version.split()[-1]}, {len(rows)} kinds of nodes in its partitions")
    for partition, limit, nodes, cores, memory, gres, up in rows:
        gpus = "" if gres in ("(null)", "") else f", {gres}"
        words = (
            f"{partition}: {nodes} nodes x {cores} cores, {int(memory.rstrip('+')) / 1024:.0f} GiB{gpus}; limit {limit}"
        )
        yield Line("ok" if up == "up" else "note", "partition", words + ("" if up == "up" else f"; it is {up}"))
    answer = _ask("sbatch", "--test-only", "--wrap=true")
    if isinstance(answer, Exception):
        command = "sbatch --test-only --wrap=true    # with the --account or --partition that your cluster wants"
        yield Line("note", "sbatch", f"refuses a plain job: {answer}", command)
    else:
        yield Line("ok", "sbatch", "would take a job")


def _ask(*words: str) -> str | Exception:
    """What a command prints, or its complaint."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return error
    if done.returncode != 0:
        return RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout.strip()

"""Prepares .venv before anything is installed: `python3 launch/bootstrap.py --venv .venv --extras test,dev`.

In: the system's python3 and pip's own configuration. Out: a virtual environment with the project (editable) and the
versions of constraints.txt. In order: a Python that fits, the venv, uv, the choice of a torch build, the install by uv
(by pip where uv will not), a stamp. While the stamp fits there is nothing to do. What the tools print goes to
`<venv>/bootstrap.log`; a failure shows the end of it and a hint. Standard library only, and written so that old Pythons
(3.7 on) can parse it and say what is missing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INPUTS = ("pyproject.toml", "constraints.txt", "launch/bootstrap.py")  # a change in one of them installs anew
SUPPORTED = ((3, 12), (3, 11))

# Options of pip and what uv calls them: uv does not read pip's configuration.
UV_NAMES = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}

# Where torch comes from.
PLAIN = "the ordinary build (CUDA on Linux: several GB)"
OFFERED_CPU = "the CPU build that pip is offered here"
UV_CPU = "a CPU build from where uv knows them"  # pip knows no such place

CPU_BUILD_HINT = """\
No NVIDIA GPU is visible here (or CRISOL_TORCH=cpu was said), pip is offered no CPU build of torch for this Python, and
the place where uv knows CPU builds did not serve one. The ordinary build would bring several GB of CUDA. Either
  - point pip at a folder that holds a CPU wheel:  PIP_FIND_LINKS=/folder make ...
  - or take the ordinary build all the same:       CRISOL_TORCH=cuda make ..."""
SILENT_INDEX = (
    "The package index did not answer: see network, proxy (HTTPS_PROXY) and `pip config list`, then run again."
)
NO_VERSION = "No fitting version was found: a mirror must carry the versions of constraints.txt, for this Python."
HINTS = {
    r"No module named '?(ensurepip|venv)\b|ensurepip is (not available|disabled)": (
        "This Python cannot make complete virtual environments. On Debian and Ubuntu:  apt install python3-venv"
    ),
    r"externally[- ]managed": (
        "This Python belongs to the system and refuses packages (PEP 668). Nothing needs to go there: use a folder of\n"
        "its own, such as the default .venv."
    ),
    r"No space left on device|os error 28": "The disk is full: 2 GB are needed here, and 2 GB for the cache.",
    r"Permission denied|os error 13|Read-only file system": "See who owns this checkout and its .venv.",
    r"(?i)certificate verify failed|UnknownIssuer|invalid peer certificate": (
        "TLS certificates were refused. Behind a company proxy:  pip config set global.cert /path/to/ca.crt"
    ),
    r"(?i)name resolution|dns error|error sending request|connection (refused|error|broken)|timed out": SILENT_INDEX,
    r"(?i)no matching distribution|no solution found|no wheels with a matching": NO_VERSION,
}


class StageError(Exception):
    """A stage cannot go on; the message is for the user."""


def pip_options(listing: str) -> dict[str, list[str]]:
    """`pip config list` → {option: values}; of an option given twice the last counts: global, install, environment."""
    order = ["global", "install", ":env:"]
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)=(['\"].*)$", listing, re.M)
    found.sort(key=lambda item: order.index(item[0]))
    return {option: str(ast.literal_eval(value)).split() for _, option, value in found}


def cpu_build(constraints: str) -> str:
    """The CPU build's version, such as 2.13.0+cpu, of the torch that constraints.txt pins."""
    return re.findall(r"^torch==([\w.]+)", constraints, re.M)[0] + "+cpu"


def torch_source(choice: str, linux: bool, gpu: bool, offered: bool) -> str:
    """CUDA comes to a machine without a GPU only when it is asked for. Elsewhere than on Linux torch has none."""
    if choice == "cuda" or (choice == "auto" and (gpu or not linux)):
        return PLAIN
    return OFFERED_CPU if offered else UV_CPU


def install_commands(
    bin_folder: Path, source: str, cpu_torch: str, extras: Sequence[str], options: dict[str, list[str]]
) -> dict[str, list[str]]:
    """What to try in turn: uv, told what pip's configuration says; then pip, unless it would bring CUDA unasked."""
    python, uv = str(bin_folder / "python"), str(bin_folder / "uv")
    torch = {PLAIN: [f"torch!={cpu_torch}"], OFFERED_CPU: [f"torch=={cpu_torch}"], UV_CPU: []}[source]
    target = ["-c", "constraints.txt", *torch, "-e", f".[{','.join(extras)}]" if extras else "."]
    trust = [f"SSL_CERT_FILE={path}" for path in options.get("cert", [])]
    places = [word for key, name in UV_NAMES.items() for value in options.get(key, []) for word in (name, value)]
    if options.get("no-index", ["no"])[0].lower() in ("1", "true", "yes", "on"):
        places.append("--no-index")
    if "extra-index-url" in options:
        places += ["--index-strategy", "unsafe-best-match"]  # as for pip: all indexes are equal
    if source == UV_CPU:
        places += ["--torch-backend", "cpu"]
    with_uv = ["env", *trust, uv, "pip", "install", "--python", python, *places, *target]
    with_pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *target]
    commands = {"installing the packages with uv (about a minute)": with_uv}
    return commands if source == UV_CPU else {**commands, "installing them with pip (some minutes)": with_pip}


def hint_for(output: str, source: str = PLAIN) -> str:
    hint = next((hint for pattern, hint in HINTS.items() if re.search(pattern, output)), "")
    return CPU_BUILD_HINT if source == UV_CPU and hint in ("", SILENT_INDEX, NO_VERSION) else hint


def find_python() -> tuple[str, tuple[int, int]]:
    """This interpreter if its version is supported, else the first supported one on PATH that starts."""
    if sys.version_info[:2] in SUPPORTED:
        return os.path.realpath(sys.executable), sys.version_info[:2]  # not a link inside the venv we may replace
    for version in SUPPORTED:
        name = "python{}.{}".format(*version)
        if shutil.which(name) and subprocess.run([name, "-c", ""], capture_output=True).returncode == 0:
            return name, version
    raise StageError(
        "Python 3.11 or 3.12 is needed; this is {}.{}, and PATH holds no other that starts.\n"
        "On Debian 12:  apt install python3 python3-venv\n"
        "If you have one elsewhere:  make PYTHON=/path/to/python3.12 ...".format(*sys.version_info)
    )


def attempt(stage: str, command: list[str], log: Path) -> bool:
    """Runs `command` into the log under a line that shows the seconds, counting them on a terminal."""
    start, live = time.monotonic(), sys.stdout.isatty()
    print(f"  {stage} ...", end="", flush=True)
    with log.open("a") as output:
        output.write(f"\n$ {' '.join(command)}\n")
        output.flush()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if live:
                    print(f"\r  {stage} ... {time.monotonic() - start:.0f} s", end="", flush=True)
        finally:
            process.kill()
    back = f"\r  {stage} ..." if live else ""
    print(f"{back} {time.monotonic() - start:.0f} s{'' if process.returncode == 0 else ', failed'}", flush=True)
    return process.returncode == 0


def demand(stage: str, command: list[str], log: Path) -> None:
    if not attempt(stage, command, log):
        raise StageError(report(log))


def report(log: Path, source: str = PLAIN) -> str:
    """The end of what the last command said, and a hint."""
    said = log.read_text(errors="replace").rpartition("\n$ ")[2]
    tail = "".join(f"    {line}\n" for line in said.rstrip().splitlines()[1:][-12:])
    return f"{tail}The whole output is in {log}.\n{hint_for(said, source)}".rstrip()


def ask(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def prepare(venv: Path, extras: set[str], choice: str) -> None:
    """Brings the venv to a state that the stamp then vouches for; while the stamp fits, does nothing."""
    base_python, version = find_python()
    stamp, python = venv / "bootstrap.json", venv / "bin/python"
    had = read_stamp(stamp)
    # A venv cannot be moved, nor change its Python; and a torch is not replaced by another build of its version.
    kept = had["foundation"]["torch"] if had and choice == "auto" else choice
    foundation = {"folder": str(venv), "python": "{}.{}".format(*version), "torch": kept}
    digest = hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in INPUTS)).hexdigest()
    had = had or {"foundation": foundation, "digest": "", "extras": [], "made_here": not python.exists()}
    if had["foundation"] != foundation:
        changed = ", ".join(
            f"{key} {was} -> {foundation[key]}" for key, was in had["foundation"].items() if was != foundation[key]
        )
        if not had["made_here"]:
            raise StageError(f"{venv} must be made anew ({changed}), but we did not make it: remove it to go on.")
        print(f"crisol: making {venv} anew ({changed})", flush=True)
        shutil.rmtree(venv)
    elif had["digest"] == digest and extras.issubset(had["extras"]) and python.exists():
        return
    print(f"crisol: preparing {venv} (Python {foundation['python']})", flush=True)
    start, names = time.monotonic(), sorted(extras.union(had["extras"]))
    venv.mkdir(parents=True, exist_ok=True)
    (venv / "bootstrap.log").write_text("")
    write_stamp(stamp, {**had, "foundation": foundation, "digest": "unfinished"})
    furnish(venv, base_python)
    install(venv, names, kept)
    write_stamp(stamp, {**had, "foundation": foundation, "digest": digest, "extras": names})
    torch = next(venv.glob("lib/python*/site-packages/torch-*.dist-info")).stem.split("-")[1]
    print(f"crisol: ready after {time.monotonic() - start:.0f} s, with torch {torch}", flush=True)


def read_stamp(stamp: Path) -> dict[str, Any]:
    """What `write_stamp` wrote; empty if there is none, or one that was damaged."""
    try:
        had = json.loads(stamp.read_text())
        return had if {"foundation", "digest", "extras", "made_here"} <= had.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def write_stamp(stamp: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: a kill in between must not leave a stamp that nobody can read."""
    temporary = stamp.with_name(stamp.name + ".new")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, stamp)


def furnish(venv: Path, base_python: str) -> None:
    """The venv with pip, and uv if it can be had. In three steps, so that a half-made one is completed."""
    log, python = venv / "bootstrap.log", str(venv / "bin/python")
    if not Path(python).exists():
        demand("making the virtual environment", [base_python, "-m", "venv", "--without-pip", str(venv)], log)
    if not ask(python, "-m", "pip", "--version"):
        demand("adding pip", [python, "-m", "ensurepip", "--default-pip"], log)
    if not (venv / "bin/uv").exists():
        attempt("adding uv", [python, "-m", "pip", "install", "-c", "constraints.txt", "uv"], log)


def install(venv: Path, extras: Sequence[str], choice: str) -> None:
    """The project, editable, with the packages that constraints.txt pins and the torch build that fits the machine."""
    log, pip = venv / "bootstrap.log", [str(venv / "bin/python"), "-m", "pip"]
    cpu_torch = cpu_build((ROOT / "constraints.txt").read_text())
    known = re.split(r"[,\s]+", ask(*pip, "index", "versions", "torch"))  # those to be had, and the one installed
    gpu = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    source = torch_source(choice, sys.platform.startswith("linux"), gpu, cpu_torch in known)
    print(f"  torch: {source}", flush=True)
    options = pip_options(ask(*pip, "config", "list"))
    commands = install_commands(venv / "bin", source, cpu_torch, extras, options)
    if not any(attempt(stage, command, log) for stage, command in commands.items()):
        raise StageError(report(log, source))


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes or refreshes the virtual environment of this checkout.")
    parser.add_argument("--venv", default=".venv", help="its folder (default: %(default)s)")
    parser.add_argument("--extras", default="", help="of pyproject.toml, with commas: test,dev")
    parser.add_argument("--torch", default="auto", choices=["auto", "cpu", "cuda"], help="build (default: %(default)s)")
    given = parser.parse_args()
    try:
        with (ROOT / "pyproject.toml").open() as lock:  # two at a time (make -j) take turns, where locks exist
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            prepare(Path(given.venv).resolve(), {name for name in given.extras.split(",") if name}, given.torch)
    except (StageError, OSError) as failure:
        hint = hint_for(str(failure)) if isinstance(failure, OSError) else ""
        print(f"\ncrisol: stopped.\n{failure}\n{hint}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncrisol: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

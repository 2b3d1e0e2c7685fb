"""`launch doctor`: what is shown on this machine, and which command it gives for what is wrong on others."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch import doctor as doctors
from launch.installation import differing, imports, packages
from tests.runs import finish, start
from train.trial import stale_locks

NODE: dict[str, Any] = {
    "torch": "2.13.0",
    "python": "3.11.7",
    "cuda": "13.0",
    "nccl": "2.29.7",
    "driver": "580.95.05",
    "gpus": [{"name": "NVIDIA H200", "memory_bytes": 141 << 30, "pci": "0000:1b:00.0"}] * 8,
    "cores": 96,
    "machine_cores": 192,
    "memory_bytes": 1 << 40,
    "available_bytes": 1 << 39,
    "shared_memory_bytes": 1 << 36,
    "temp_folder": "/tmp",
    "temp_bytes": 1 << 36,
}


def lines_of(node: dict[str, Any] | str) -> dict[str, doctors.Line]:
    software, hardware = doctors._software(node), doctors._hardware(node)  # pyright: ignore[reportPrivateUsage]
    return {line.topic: line for line in (*software, *hardware)}


def test_this_machine_is_shown_line_by_line_and_can_train(tmp_path: Path):
    code, printed = finish(start(tmp_path, "doctor", module="launch"))
    assert code == 0, printed
    rows = {
        line[6:].split("  ")[0]: line[:4].strip() for line in printed.splitlines() if line[:4].strip() in ("ok", "note")
    }
    assert rows["two ranks"] == rows["disk"] == rows["imports"] == rows["torch"] == "ok", printed
    assert "\nruns can train here (" in printed
    assert "\033" not in printed  # it is not read at a terminal
    assert list(tmp_path.iterdir()) == []


def test_a_machine_as_it_should_be_has_nothing_to_fix():
    lines = lines_of(NODE)
    assert {line.status for line in lines.values()} == {"ok"}
    assert lines["GPU"].words == "8 x NVIDIA H200, 141 GiB each, driver 580.95.05"
    assert lines["cores"].words == "96 of 192: this process is bound to them"


@pytest.mark.parametrize(
    ("changed", "topic", "words", "command"),
    [
        ({"gpus": [], "cuda": None}, "GPU", "torch is a CPU build", "CRISOL_TORCH=cuda make install"),
        ({"gpus": [], "driver": "535.54.03"}, "GPU", "older than CUDA 13.0 of this torch needs: 580", "nvidia-driver"),
        ({"gpus": []}, "GPU", "torch sees no GPU", "nvidia-smi -L"),
        ({"shared_memory_bytes": 64 << 20}, "shared memory", "0.06 GiB are free in /dev/shm, too little", "--shm-size"),
        ({"temp_bytes": 1 << 20}, "temporary files", "0.0 GiB are free in /tmp", "export TMPDIR"),
    ],
)
def test_what_is_wrong_comes_with_the_command_that_mends_it(
    changed: dict[str, Any], topic: str, words: str, command: str
):
    line = lines_of(NODE | changed)[topic]
    assert line.status == "fix"
    assert words in line.words
    assert command in line.command


def test_a_torch_that_does_not_start_is_a_line_like_any_other():
    line = lines_of("ImportError: libcudart.so.13: cannot open shared object file")["torch"]
    assert (line.status, line.command) == ("fix", f"cd {doctors.ROOT} && make install")
    assert "libcudart.so.13" in line.words


def test_a_lock_that_a_killed_build_left_is_found_and_a_running_build_is_not(tmp_path: Path):
    """Every later start would wait for it for ever."""
    for name in ("py311_cpu/old", "py311_cpu/new"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "lock").touch()
    old = tmp_path / "py311_cpu/old/lock"
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    assert stale_locks(tmp_path) == [str(old)]
    (line,) = doctors._compiled([str(old)])  # pyright: ignore[reportPrivateUsage]
    assert (line.status, line.command) == ("fix", f"rm {old}")


def test_packages_of_another_place_or_version_are_noticed(tmp_path: Path):
    ((status, _, words, _),) = imports(tmp_path)
    assert (status, words.count(" is ")) == ("fix", 5)
    import numpy as np

    assert differing(f"numpy=={np.__version__}\nnumpy==1.0 ; sys_platform == 'win32'\nno-such-thing==1\n") == []
    assert differing("numpy==1.0") == [f"numpy {np.__version__} (1.0)"]


def test_colours_are_for_terminals(capsys: pytest.CaptureFixture[str]):
    doctors.show([doctors.Line("fix", "disk", "full", "rm core")], is_terminal=True)
    assert capsys.readouterr().out == "\033[31mfix \033[0m  disk  full\n            $ rm core\n"


def test_a_foreign_package_that_pythonpath_brings_is_left_out_by_one_command(tmp_path: Path):
    """Its consequences are no findings of their own: torch itself may be as it should be."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{doctors.ROOT}"}
    words = [sys.executable, "-m", "launch", "doctor"]
    done = subprocess.run(words, cwd=tmp_path / "train", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("fix")] == [lines[0]]
    assert f"train is {tmp_path / 'train'}, not what lies in {doctors.ROOT}" in lines[0]
    assert lines[1].strip() == "$ unset PYTHONPATH"


def test_a_python_without_the_packages_is_told_which_one_has_them(tmp_path: Path):
    """Of a shell in which nothing is activated: the doctor itself cannot start there."""
    words = [sys.executable, "-S", "-m", "launch", "doctor"]  # -S: nothing that was installed is seen
    environment = os.environ | {"PYTHONPATH": str(doctors.ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no package" in done.stderr
    assert done.stderr.splitlines()[-1].strip() == f"cd {doctors.ROOT} && make install"


def test_a_file_is_no_place_for_runs(tmp_path: Path):
    (tmp_path / "runs").touch()
    (line,) = doctors._folder(tmp_path / "runs" / "more")  # pyright: ignore[reportPrivateUsage]
    assert (line.status, line.words) == ("fix", f"{tmp_path / 'runs'} cannot be written to: it is a file")


def test_an_installation_without_a_checkout_is_held_against_what_it_was_installed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = ["numpy>=2.1", "fsspec", 'pytest>=999; extra == "test"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: asked)
    assert list(packages(tmp_path)) == [("ok", "packages", "of the versions that are asked for", "")]
    asked[0] = "numpy>=999"
    ((status, _, words, _),) = packages(tmp_path)
    assert (status, words.startswith("numpy>=999 is asked for, ")) == ("fix", True)

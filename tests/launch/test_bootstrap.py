"""The installer decides by tables and says what to do where it cannot go on. Real installs are CI's first step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import bootstrap
from launch.bootstrap import CPU_BUILD_HINT, NO_VERSION, OFFERED_CPU, PLAIN, SILENT_INDEX, UV_CPU

SCRIPT = Path(bootstrap.__file__)
BIN = Path("/venv/bin")
CPU_TORCH = "2.13.0+cpu"


@pytest.mark.parametrize(
    ("choice", "linux", "gpu", "offered", "expected"),
    [
        ("auto", True, False, True, OFFERED_CPU),
        ("auto", True, False, False, UV_CPU),
        ("auto", True, True, False, PLAIN),
        ("auto", True, True, True, PLAIN),
        ("auto", False, False, False, PLAIN),
        ("cpu", True, True, True, OFFERED_CPU),
        ("cpu", True, True, False, UV_CPU),
        ("cuda", True, False, False, PLAIN),
        ("cuda", True, False, True, PLAIN),
    ],
)
def test_cuda_comes_only_to_a_gpu_or_on_request(choice: str, linux: bool, gpu: bool, offered: bool, expected: str):
    assert bootstrap.torch_source(choice, linux, gpu, offered) == expected


def commands(source: str, extras: list[str] | None = None, **options: list[str]) -> list[str]:
    named = {name.replace("_", "-"): values for name, values in options.items()}
    return [" ".join(c) for c in bootstrap.install_commands(BIN, source, CPU_TORCH, extras or [], named).values()]


def test_uv_comes_first_and_pip_after_it_with_the_same_targets():
    with_uv, with_pip = commands(OFFERED_CPU, ["dev", "test"])
    targets = "-c constraints.txt torch==2.13.0+cpu -e .[dev,test]"
    assert with_uv == f"env /venv/bin/uv pip install --python /venv/bin/python {targets}"
    assert with_pip == f"/venv/bin/python -m pip install --disable-pip-version-check {targets}"


def test_pip_is_never_tried_where_it_would_bring_cuda_to_a_machine_without_gpu():
    (only,) = commands(UV_CPU)
    assert "--torch-backend cpu" in only


def test_on_a_gpu_an_offered_cpu_build_is_passed_over():
    assert all("torch!=2.13.0+cpu" in command for command in commands(PLAIN))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"find_links": ["/a", "/b"]}, "--find-links /a --find-links /b"),
        ({"extra_index_url": ["file:///x"]}, "--index file:///x --index-strategy unsafe-best-match"),
        ({"index_url": ["file:///mirror"]}, "--default-index file:///mirror"),
        ({"trusted_host": ["mirror"]}, "--allow-insecure-host mirror"),
        ({"no_index": ["true"]}, "--no-index"),
        ({"cert": ["/ca.crt"]}, "env SSL_CERT_FILE=/ca.crt /venv/bin/uv"),
    ],
)
def test_uv_is_told_what_pip_is_configured_with(options: dict[str, list[str]], expected: str):
    assert expected in commands(OFFERED_CPU, **options)[0]


def test_an_option_that_is_off_is_not_passed_on():
    assert "--no-index" not in commands(OFFERED_CPU, no_index=["false"])[0]


def test_pip_configuration_is_read_in_the_order_of_pip_itself():
    listing = "\n".join(
        [
            ":env:.find-links='/from/env'",
            "global.extra-index-url='file:///one file:///two'",
            "global.find-links='\\n/from/file\\n/also'",
            "install.cert='/install.crt'",
            "global.cert='/global.crt'",
            "freeze.timeout='9'",
        ]
    )
    assert bootstrap.pip_options(listing) == {
        "find-links": ["/from/env"],
        "extra-index-url": ["file:///one", "file:///two"],
        "cert": ["/install.crt"],
    }


def test_pip_configuration_of_a_real_pip_is_understood(tmp_path: Path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nfind-links =\n    /one\n    /two\n[install]\nno-index = true\n")
    environment = {"PIP_CONFIG_FILE": str(config), "PATH": "/nonexistent", "PIP_TIMEOUT": "7"}
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    options = bootstrap.pip_options(listing)
    assert (options["find-links"], options["no-index"], options["timeout"]) == (["/one", "/two"], ["true"], ["7"])


def test_the_pinned_torch_names_its_cpu_build():
    assert bootstrap.cpu_build("tqdm==4.0\ntorch==2.13.0\ntorchdata==1.0\n") == CPU_TORCH
    assert bootstrap.cpu_build((bootstrap.ROOT / "constraints.txt").read_text()).endswith("+cpu")


def test_constraints_name_no_place_and_pin_every_direct_dependency():
    lines = [line for line in (bootstrap.ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in lines if "://" in line or " @ " in line or "==" not in line]
    pinned = {line.partition("==")[0] for line in lines}
    direct = "torch deepspeed datasets sentencepiece hydra-core tensorboard safetensors numpy pyarrow pyyaml"
    tools = "pytest transformers ruff pyright uv"
    assert pinned.issuperset(f"{direct} {tools}".split())


@pytest.mark.parametrize(
    ("said", "source", "hint"),
    [
        ("/x/python: No module named ensurepip", PLAIN, "apt install python3-venv"),
        ("error: externally-managed-environment", PLAIN, "PEP 668"),
        ("OSError: [Errno 28] No space left on device", UV_CPU, "disk is full"),
        ("cause: failed: Temporary failure in name resolution", PLAIN, SILENT_INDEX),
        ("cause: dns error", UV_CPU, CPU_BUILD_HINT),
        ("No solution found when resolving dependencies", PLAIN, NO_VERSION),
        ("No solution found when resolving dependencies", UV_CPU, CPU_BUILD_HINT),
        ("SSLError: certificate verify failed", PLAIN, "global.cert"),
        ("something never seen", PLAIN, ""),
    ],
)
def test_a_failure_gets_the_hint_that_helps(said: str, source: str, hint: str):
    found = bootstrap.hint_for(said, source)
    assert hint in found if hint else not found


def test_an_unsupported_python_takes_a_supported_one_from_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, code in (("python3.12", 127), ("python3.11", 0)):  # the first like a version manager's dead shim
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert bootstrap.find_python() == ("python3.11", (3, 11))
    (tmp_path / "python3.11").unlink()
    with pytest.raises(bootstrap.StageError, match=r"3\.11 or 3\.12 is needed; this is 3\.13"):
        bootstrap.find_python()


def start(venv: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--venv", str(venv), *words]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment})


def test_a_python_without_ensurepip_gets_the_apt_line_and_no_traceback(tmp_path: Path):
    # The words and the exit code of Debian's python3 where python3-venv is not installed.
    (tmp_path / "ensurepip.py").write_text("import sys\nsys.exit(f'{sys.executable}: No module named ensurepip')\n")
    for _ in range(2):  # the half-made venv does not confuse the second try
        result = start(tmp_path / "venv", PYTHONPATH=str(tmp_path))
        assert result.returncode == 1
        assert "apt install python3-venv" in result.stderr
        assert "Traceback" not in result.stdout + result.stderr


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    result = start(tmp_path / "file" / "venv")
    assert result.returncode == 1
    assert str(tmp_path / "file") in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A checkout whose installs are only noted: the list of extras, one entry for every install."""
    installs: list[list[str]] = []

    def furnish(venv: Path, base_python: str) -> None:
        for folder in ("bin", f"lib/python3.11/site-packages/torch-{CPU_TORCH}.dist-info"):
            (venv / folder).mkdir(parents=True, exist_ok=True)
        (venv / "bin/python").touch()

    monkeypatch.setattr(bootstrap, "furnish", furnish)
    monkeypatch.setattr(bootstrap, "install", lambda venv, extras, choice: installs.append(extras))  # pyright: ignore
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    (tmp_path / "launch").mkdir()
    for name in bootstrap.INPUTS:
        (tmp_path / name).write_text("")
    return installs


def test_a_second_call_does_nothing_until_something_changes(tmp_path: Path, finished: list[list[str]]):
    venv = tmp_path / ".venv"
    bootstrap.prepare(venv, set(), "auto")
    bootstrap.prepare(venv, set(), "auto")
    assert finished == [[]]
    bootstrap.prepare(venv, {"test"}, "auto")
    bootstrap.prepare(venv, {"dev"}, "auto")  # what was there stays
    bootstrap.prepare(venv, {"test"}, "auto")
    assert finished == [[], ["test"], ["dev", "test"]]
    (tmp_path / "constraints.txt").write_text("torch==2.13.1\n")
    bootstrap.prepare(venv, set(), "auto")
    assert finished[3:] == [["dev", "test"]]


def test_another_torch_makes_the_venv_anew_and_auto_keeps_it(tmp_path: Path, finished: list[list[str]]):
    venv = tmp_path / ".venv"
    bootstrap.prepare(venv, {"test"}, "auto")
    (venv / "old").touch()
    bootstrap.prepare(venv, set(), "cpu")
    bootstrap.prepare(venv, set(), "auto")
    assert not (venv / "old").exists()
    assert len(finished) == 2
    assert json.loads((venv / "bootstrap.json").read_text())["foundation"]["torch"] == "cpu"


def test_a_venv_that_someone_else_made_is_never_removed(tmp_path: Path, finished: list[list[str]]):
    venv = tmp_path / "mine"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").touch()
    bootstrap.prepare(venv, set(), "auto")
    with pytest.raises(bootstrap.StageError, match="remove it to go on"):
        bootstrap.prepare(venv, set(), "cpu")
    assert (venv / "bin/python").exists()


def test_an_install_that_failed_leaves_no_stamp_that_fits(
    tmp_path: Path, finished: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    def fail(venv: Path, extras: list[str], choice: str) -> None:
        raise bootstrap.StageError("no")

    venv = tmp_path / ".venv"
    bootstrap.prepare(venv, set(), "auto")
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", fail)
        with pytest.raises(bootstrap.StageError):
            bootstrap.prepare(venv, {"dev"}, "auto")
    bootstrap.prepare(venv, set(), "auto")  # the extra that failed is not demanded again
    assert finished == [[], []]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"digest": "x"}'])
def test_a_stamp_that_a_kill_damaged_counts_as_none(tmp_path: Path, content: str):
    (tmp_path / "bootstrap.json").write_text(content)
    assert bootstrap.read_stamp(tmp_path / "bootstrap.json") == {}


def test_a_stamp_reads_back(tmp_path: Path):
    content = {"foundation": {}, "digest": "d", "extras": [], "made_here": True}
    bootstrap.write_stamp(tmp_path / "bootstrap.json", content)
    assert bootstrap.read_stamp(tmp_path / "bootstrap.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["bootstrap.json"]

"""F22, F23, and the ten rules of security: what is trusted is written in SECURITY.md, what is done about it is here."""

import ast
import contextlib
import io
import json
import os
import pickle
import re
import secrets
import shutil
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.check import read_config
from conf.errors import ConfigError
from data_prep.files import DataError, published
from data_prep.manifest import Manifest
from data_prep.shards import ShardReader
from data_prep.sources.stored import facts
from data_prep.tokenizer import Tokenizer
from tests.corpus import write_corpus
from tests.distributed.ranks import run_ranks
from tests.runs import TINY
from tests.test_import_rules import ROOT, sources
from train.config import TrainConfig
from train.weights import open_weights

# --- in the code: what no module of ours says -------------------------------------------------------------------------

FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"),
    *("pickle.Unpickler", "marshal.loads", "shelve.open", "dill.load", "cloudpickle.load", "joblib.load"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("yaml.load_all", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "hydra.utils.instantiate"),
    *("instantiate", "OmegaConf.register_new_resolver"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, the call)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_runs_text_or_asks_a_shell(path: Path):
    """F22; rules 1, 2, 4, 5: no code comes from a file, and no archive is extracted."""
    imported = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy"}
    for name, call in calls(path):
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in FORBIDDEN_CALLS, f"{path}:{call.lineno} {name}"
        assert said.get("shell", "False") == "False", f"{path}:{call.lineno} shell"
        assert said.get("trust_remote_code", "False") == "False", f"{path}:{call.lineno} trust_remote_code"
        assert said.get("weights_only", "True") == "True", f"{path}:{call.lineno} weights_only"
        if name in ("np.load", "numpy.load"):
            assert said.get("allow_pickle") == "False", f"{path}:{call.lineno} allow_pickle"
        if name in ("np.fromfile", "np.memmap"):
            assert "object" not in said.get("dtype", ""), f"{path}:{call.lineno} dtype"


def test_no_configuration_of_ours_names_code_or_the_environment():
    """Rules 2 and 3."""
    for path in (ROOT / "conf").rglob("*.yaml"):
        text = path.read_text()
        assert "_target_" not in text, path
        assert set(re.findall(r"\$\{[^}]*\}", text)) <= {"${hydra.help.header}"}, path


# --- while it runs: the commands, watched by the interpreter itself ---------------------------------------------------

SECRETS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "WANDB_API_KEY", "SOME_SECRET", "GITHUB_TOKEN")
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
COMMANDS: list[tuple[str, tuple[str, ...]]] = [
    (
        "data_prep",
        ("source=text", "source.paths=[texts]", "out=data/tiny", "tokenizer.vocab_size=400", "val_fraction=0.1"),
    ),
    ("train", (*TINY, "run.name=x", "run.stop_at_step=10")),
    ("train", (*TINY, "run.name=x", "run.stop_at_step=20")),
    ("train.evaluate", ("run=runs/x",)),
    ("train.sample", ("run=runs/x", "prompt=The ", "n_tokens=4")),
    ("train.convert.__main__", ("source=runs/x", "out=weights", "to=weights")),
    ("launch", ("data", "out=data/more", "source=text", "source.paths=[texts]", "slurm.partition=cpu")),
]


def watched(folder: str, module: str, words: tuple[str, ...], hidden: dict[str, str]) -> tuple[list[str], str]:
    """(what the command should not have done, everything it printed). Runs in a process of its own."""
    from importlib import import_module

    os.environ.update(hidden)
    os.chdir(folder)
    os.umask(0)  # as careless as it gets
    main = import_module(module if module.count(".") else f"{module}.__main__").main
    sys.argv = [module, *words]
    done = _watch(Path(folder))
    printed, code = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert code in (0, None, 143), printed.getvalue()
    return sorted(done), printed.getvalue()


def _watch(folder: Path) -> set[str]:
    """The set into which goes what should not happen from here on in this process."""
    done: set[str] = set()
    ours = tuple(str(place) for place in (ROOT, *sysconfig.get_paths().values(), Path(sysconfig.__file__).parent))

    def hook(event: str, facts: tuple[Any, ...]) -> None:
        if event in ("pickle.find_class", "os.system"):
            done.add(f"{event} {facts}")
        elif event == "subprocess.Popen" and not _is_ours(facts):
            done.add(f"{event} {facts[0]} {facts[1]}")
        elif event in ("exec", "compile"):
            name = str(getattr(facts[0], "co_filename", "") if event == "exec" else facts[1])
            if name.startswith("/") and not name.startswith(ours):
                done.add(f"{event} {name}")
        elif event in ("socket.bind", "socket.connect") and _host(facts[1]) not in ("127.0.0.1", "::1", "localhost"):
            done.add(f"{event} {facts[1]}")

    def listen() -> None:
        while True:
            done.update(f"listens at {address}" for address in listening() if not address.startswith(LOOPBACK))
            time.sleep(0.05)

    sys.addaudithook(hook)
    threading.Thread(target=listen, daemon=True).start()
    return done


def _is_ours(facts: tuple[Any, ...]) -> bool:
    """Programs that a run asks about itself, and its watchdog."""
    program, words = str(facts[0]), [str(word) for word in facts[1]]
    return Path(program).name in ("git", "scontrol", "sinfo", "squeue") or words[2:4] == ["-m", "train.watch"]


def _host(address: Any) -> str:
    """The path of a Unix socket is as good as this machine."""
    return str(address[0]) if isinstance(address, tuple) else "localhost"


def listening() -> set[str]:
    """Addresses, as /proc writes them, at which this process takes connections; libraries in C are seen too."""
    mine: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(str(descriptor.readlink()))
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in mine:
                found.add(words[1])
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, list[str], str]], dict[str, str]]:
    """A folder in which all commands have run; what each did and printed; the secrets that were in the environment."""
    folder = tmp_path_factory.mktemp("house")
    write_corpus(folder / "texts")
    hidden = {name: secrets.token_hex(16) for name in SECRETS}
    ran = [(module, *run_ranks(watched, 1, str(folder), module, words, hidden)[0]) for module, words in COMMANDS]
    return folder, ran, hidden


def test_no_command_unpickles_runs_foreign_code_or_opens_a_port_to_the_world(house: Any):
    """F22; rules 1 and 8: by audit hooks and the kernel's list of sockets, over data, train, resume, evaluate, sample,
    convert and a Slurm script."""
    assert [(module, done) for module, done, _ in house[1] if done] == []


def test_no_file_and_no_line_holds_a_secret_of_the_environment(house: Any):
    """Rule 3: configuration, summary, events, plan, TensorBoard files, checkpoints, Slurm scripts, the console."""
    folder, ran, hidden = house
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "summary.json", "events.jsonl", "plan.json", "manifest.json", "encode.sh"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    for name, value in hidden.items():
        for module, _, printed in ran:
            assert value not in printed, f"{name} in what {module} printed"
        assert [path for path in files if value.encode() in path.read_bytes()] == [], name


def test_no_file_may_be_changed_by_everybody(house: Any):
    """Rule 9: even where the umask is 0."""
    folder = house[0]
    made = [path for place in ("runs", "data", "weights") for path in [folder / place, *(folder / place).rglob("*")]]
    assert len(made) > 30
    assert [path for path in made if not path.is_symlink() and path.stat().st_mode & 0o002] == []


def test_the_watch_sees_what_it_looks_for(tmp_path: Path):
    """Pickles, foreign code, and ports: each is done once, and noticed."""
    (done,) = run_ranks(misbehave, 1, str(tmp_path))
    assert [word.split()[0] for word in done] == ["compile", "exec", "listens", "pickle.find_class", "socket.bind"]


def misbehave(folder: str) -> list[str]:
    import socket

    done = _watch(Path(folder))
    pickle.loads(pickle.dumps(Path))
    exec(compile("1", f"{folder}/foreign.py", "exec"))
    with socket.socket() as port:
        port.bind(("0.0.0.0", 0))
        port.listen()
        time.sleep(1)
    return sorted(done)


# --- poisoned files ---------------------------------------------------------------------------------------------------


class Poison:
    """Unpickled, it makes the file that it names."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def dataset(workplace: Path, tmp_path: Path) -> Path:
    return shutil.copytree(workplace / "data" / "tiny", tmp_path / "data")


@pytest.mark.parametrize("as_array", [False, True], ids=["a pickle", "an array of objects"])
def test_a_poisoned_file_is_refused_and_never_run(dataset: Path, tmp_path: Path, as_array: bool):
    """F22: as tokenizer, table of bytes, shard, index, sidecar, manifest, and configuration."""
    marker = tmp_path / "marker"
    stream = io.BytesIO()
    if as_array:
        np.save(stream, np.array([Poison(marker)], dtype=object), allow_pickle=True)
    else:
        pickle.dump(Poison(marker), stream)
    poison = stream.getvalue()
    manifest = Manifest.load(dataset)
    shard = manifest.shards[0].name

    def poisoned(name: str) -> Path:
        fresh = tmp_path / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(dataset, fresh)
        (fresh / name).write_bytes(poison)
        return fresh

    with pytest.raises(DataError, match="is not a SentencePiece model"):
        Tokenizer.load(poisoned("tokenizer.model") / "tokenizer.model")
    with pytest.raises(DataError, match="its content was altered"):
        manifest.read(poisoned("token_bytes.npy"), "token_bytes.npy")
    for ending in (".bin", ".idx", ".json"):
        with pytest.raises(DataError):
            ShardReader(poisoned(f"{shard}{ending}") / shard).tokens(0, 1)
        with pytest.raises(DataError, match="damaged"):
            manifest.verify(tmp_path / "fresh")
    with pytest.raises(DataError, match="not JSON"):
        Manifest.load(poisoned("manifest.json"))
    with pytest.raises(ConfigError):
        read_config(TrainConfig, poisoned("config.yaml") / "config.yaml")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Poison(marker)))
    assert marker.exists()  # the poison works


# --- ways out of a folder ---------------------------------------------------------------------------------------------

OUTSIDE = ["../../etc/passwd", "/etc/passwd", "a/b", "..", ".hidden", "a\0b", "a\nb", "", "$(touch x)"]


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_a_manifest_names_plain_files_of_its_own_folder(dataset: Path, name: str):
    """F23: for a shard, and for any other file."""
    whole = json.loads((dataset / "manifest.json").read_text())
    for key in ("shards", "files"):
        tree = json.loads(json.dumps(whole))
        tree[key][0]["name"] = name
        (dataset / "manifest.json").write_text(json.dumps(tree))
        with pytest.raises(DataError, match="not a plain file name of its own folder"):
            Manifest.load(dataset)


@pytest.mark.parametrize("name", ["../model.yaml", "/etc/passwd", "a/b"])
def test_weights_name_plain_files_of_their_own_folder(tmp_path: Path, name: str):
    """F23."""
    facts_of = {"bytes": 1, "sha256": "0"}
    tree = {"schema_version": 1, "files": {name: facts_of}, "tokenizers": []}
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="not a plain file name of its own folder"):
        open_weights(tmp_path, every_byte=True)


def test_a_pipe_or_a_device_is_no_corpus(tmp_path: Path):
    """F23: a pipe would hang the job, a device never ends."""
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(DataError, match="is no plain file"):
            facts(str(path))


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path: Path):
    """F23: in a folder where somebody else may write too, the name can be guessed."""
    import socket

    (tmp_path / "precious").write_text("kept")
    guess = tmp_path / f".new.tmp-{socket.gethostname()}-{os.getpid()}"
    guess.symlink_to(tmp_path / "precious")
    with pytest.raises(DataError), published(tmp_path / "new") as stream:
        stream.write(b"x")
    assert (tmp_path / "precious").read_text() == "kept"
    with published(tmp_path / "new") as stream:  # the link is gone
        stream.write(b"x")
    assert (tmp_path / "new").read_bytes() == b"x"


def test_a_link_under_the_name_of_a_file_is_replaced_not_followed(tmp_path: Path):
    """F23: what a run writes takes the place of a link; what the link named stays."""
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "summary.json").symlink_to(tmp_path / "precious")
    with published(tmp_path / "summary.json") as stream:
        stream.write(b"x")
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "summary.json").is_symlink()


def test_names_for_the_shell_stay_names(tmp_path: Path):
    """F23; rule 4: a Slurm script made of hostile words does what it says, and nothing else."""
    from launch.data_array import _kept  # pyright: ignore[reportPrivateUsage]
    from launch.slurm import BatchJob, script

    words = _kept(("out=a b;touch x", "source.paths=['$(touch x)','`touch x`']", "source=text", "submit=true"))
    from launch.data_config import SlurmConfig

    place = tmp_path / "$(touch y)"
    place.mkdir()
    printer = "import sys; print('|'.join(sys.argv[1:]))"
    job = BatchJob("encode", "name", "title", place, None, (sys.executable, "-c", printer), words, "stage=encode", None,
                   place, place / "encode.sh")  # fmt: skip
    import subprocess

    job.file.write_text(script(job, SlurmConfig()))
    done = subprocess.run(["bash", str(job.file)], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "|".join([*words, "stage=encode"]), done.stdout + done.stderr
    assert {path.name for path in tmp_path.rglob("*")} == {"$(touch y)", "encode.sh"}


def test_an_open_revision_of_the_hub_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Rule 5: a branch may be another text tomorrow; the commit that it is today is told."""
    from data_prep.sources import hugging_face
    from data_prep.sources.config import HuggingFace

    commit = "0123456789abcdef0123456789abcdef01234567"
    files = [f"hf://datasets/owner/name@{commit}/train-0.parquet"]
    monkeypatch.setattr(
        hugging_face, "_opened", lambda source: (None, files)
    )  # what `datasets` answers, without a network
    monkeypatch.setattr(hugging_face, "_shards", lambda *_: iter(()))
    list(hugging_face.shards(HuggingFace("owner/name")))
    assert f"source.revision={commit}" in capsys.readouterr().err
    list(hugging_face.shards(HuggingFace("owner/name", revision=commit)))
    assert capsys.readouterr().err == ""

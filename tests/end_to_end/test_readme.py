"""What the README tells a newcomer to type works, in the order it is told; and the demo, which types it for them."""

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.fit_config import FitChoice
from launch.forecast import seal
from launch.scaling.read_rows import rows_of_runs
from tests.corpus import document, write_corpus
from tests.launch.sweep_folders import MadeSweep
from tests.launch.sweeps import held_out
from tests.runs import cpu_seconds_of_commands, finish, start

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "crisol-data": ["data_prep"],
    "crisol-train": ["train"],
    "crisol-launch": ["launch"],
    "python": [],
    "torchrun": ["torch.distributed.run", "--standalone"],
}
SMALLER = (
    "total_tokens=8192 schedule.warmup_tokens=0 data.seq_len=64 "
    "model.n_layers=1 model.d_model=32 model.n_heads=2 model.d_ff=64"
)
"""what a test adds to each training command, so that the whole page takes a minute"""


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def typed(words: list[str], folder: Path) -> tuple[int, str]:
    """Runs the words of a command line as this interpreter's modules."""
    module, *before = MODULES[words[0]] or [words[2]]
    after = words[3:] if words[0] == "python" else words[1:]
    after += ["tokenizer.vocab_size=400"] if "tokenizer.vocab_size=32768" in after else []
    trains = "train" in (module, *after) and "--cfg" not in after and "--help" not in after
    return finish(start(folder, *before, *after, *(SMALLER.split() if trains else []), module=module), 300)


STOP_WORDS = "It is to be one of them that have it, and with that it ends.\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder / "my" / "texts", n_documents=150)
    for name in ("crawl", "code"):
        (folder / name).mkdir()
        texts = [document(random.Random(f"{name}/{i}")) + STOP_WORDS for i in range(120)]
        (folder / name / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "mmlu.jsonl").write_text(json.dumps({"question": "what " * 20}) + "\n")
    _sweep(folder / "sweeps" / "demo")
    return folder


def _sweep(folder: Path) -> None:
    """As `make sweep` leaves it before its last run, but on a law that is known."""
    MadeSweep(folder).grid().plan()
    rows, _ = rows_of_runs(folder / "runs", "val_loss")
    seal(folder, held_out(folder), rows, FitChoice(resamples=40))


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert {"demo", "test", "check"} <= named
    assert named <= targets


def test_every_command_of_the_readme_works(home: Path):
    lines = [line for line in commands() if not line.startswith("make ")]
    assert len(lines) >= 10
    for line in lines:
        code, printed = typed(shlex.split(line), home)
        assert code == 0, f"{line}\n{printed}"
        assert "Traceback" not in printed, line


def test_the_demo_shows_the_main_job_and_does_nothing_twice(home: Path):
    words = ["total_tokens=140_000", *SMALLER.split()[1:], "evaluation.max_sequences=8"]  # past the step of the stop
    first = finish(start(home, *words, module="launch.demo"), 300)
    assert first[0] == 0, first[1]
    for expected in (
        "stopped as asked",
        "resumed at step",
        "gzip -9",
        "xz",
        "next token after",
        "tensorboard --logdir",
    ):
        assert expected in first[1], expected
    second = finish(start(home, *words, module="launch.demo"), 300)
    assert second[0] == 0, second[1]
    assert "is finished at step" in second[1]
    assert "step      1" not in second[1]


@pytest.mark.parametrize("module", ["train", "data_prep", "launch", "train.sample", "train.evaluate"])
def test_help_answers_within_two_seconds_and_shows_commands_to_paste(module: str):
    started = cpu_seconds_of_commands()
    words = [sys.executable, "-m", module, *(["--help"] if module != "launch" else [])]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"python -m {module}") + done.stdout.count("-m train") >= 3
    assert cpu_seconds_of_commands() - started < 4  # two seconds on an idle machine

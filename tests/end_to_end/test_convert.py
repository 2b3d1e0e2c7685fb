"""A run's weights to Hugging Face, and a run that starts from a Hugging Face folder (continued pretraining)."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.compose import compose
from data_prep.files import DataError, sha256_file
from tests.runs import TINY, finish, outcome, rows, start
from train.__main__ import APP
from train.convert.__main__ import run
from train.convert.command import ConvertCommand, Target
from train.data import TrainBatches
from train.parallel import rank_grid
from train.rows import open_rows
from train.setup import check

transformers = pytest.importorskip("transformers", reason="the reference comes with the test extra")

SHORT = ("run.stop_at_step=4", "checkpoint.every_steps=2")
THEIRS = {
    "vocab_size": 410,  # rows above the tokenizer's 400
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 3e4, "factor": 2.0},
}
MODEL = (
    "model={vocab_size: 410, n_layers: 2, d_model: 32, d_ff: 48, norm_eps: 0.001, tie_embeddings: false, "
    "rope_theta: 30000.0, rope_scaling: {kind: linear, factor: 2.0}}"
)


@pytest.fixture(scope="module")
def hello(workplace: Path) -> Path:
    code, message = outcome(workplace, "run.name=hello", *SHORT)
    assert code == 0, message
    return workplace / "runs" / "hello"


@pytest.fixture(scope="module")
def weights(workplace: Path) -> Path:
    """From a model of transformers with the tokenizer of the data."""
    folder = workplace / "theirs"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**THEIRS)).save_pretrained(folder)
    shutil.copy(workplace / "data" / "tiny" / "tokenizer.model", folder)
    run(ConvertCommand(str(folder), str(workplace / "weights")))
    return workplace / "weights"


@pytest.fixture(scope="module")
def continued(weights: Path, workplace: Path) -> Path:
    """A run that starts from those weights."""
    code, message = outcome(workplace, "run.name=on", f"run.start_from={weights.name}", MODEL, *SHORT)
    assert code == 0, message
    assert "weights of weights" in message
    return workplace / "runs" / "on"


def test_the_command_says_ok_after_transformers_did(hello: Path, workplace: Path):
    code, printed = finish(
        start(workplace, "source=runs/hello", "out=hf", "dtype=bf16", module="train.convert"), timeout_seconds=300
    )
    assert code == 0, printed
    assert printed.splitlines()[-1] == "ok: hf"
    for words in ("step 4", "same ids from AutoTokenizer", "same logits in fp32", "greedy", "in bfloat16"):
        assert words in printed
    auto = transformers.AutoTokenizer.from_pretrained(workplace / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(workplace / "hf")
    ids = auto("The old river", return_tensors="pt")
    assert model(**ids).logits.shape[-1] == 512
    assert model.generation_config.eos_token_id == auto.eos_token_id == 2


def test_an_earlier_step_is_another_model(hello: Path, workplace: Path):
    for step in (2, 4):
        run(ConvertCommand(str(hello), str(workplace / f"step{step}"), to=Target.weights, step=step))
    early, late = ((workplace / f"step{step}" / "model.safetensors").read_bytes() for step in (2, 4))
    assert early != late


def test_a_runs_own_tokenizer_must_lie_beside_it(hello: Path, tmp_path: Path):
    shutil.copytree(hello, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.model").write_bytes(b"\n" + (hello / "tokenizer.model").read_bytes())
    with pytest.raises(DataError, match="tokenizer"):
        run(ConvertCommand(str(tmp_path / "run"), str(tmp_path / "hf")))
    assert not (tmp_path / "hf").exists()


def first_batch(folder: Path, *overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, targets) of the first step of such a run."""
    with contextlib.chdir(folder):
        setup = check(compose(APP, [*TINY, *overrides]), rank_grid())
        batches = TrainBatches(open_rows(setup.phase, setup.corpora, 0, setup.packs), setup.batch, 0)
        parts = list(batches.micro_batches(0))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def test_the_first_loss_is_that_of_the_model_it_starts_from(continued: Path, weights: Path, workplace: Path):
    """fp32 on both sides, sums in another order: 1e-5."""
    event = next(line for line in (continued / "events.jsonl").read_text().splitlines() if "sha" in line)
    assert json.loads(event)["sha256"] == sha256_file(weights / "manifest.json")
    tokens, targets = first_batch(workplace, "run.name=other", MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(workplace / "theirs")
    with torch.no_grad():
        logits = model(tokens).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    found = rows(continued)[0]["loss"]
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert abs(found - np.log(410)) > 0.05  # what fresh weights would give, so that this test can fail


def test_a_run_goes_on_without_the_folder_it_started_from(continued: Path, workplace: Path, tmp_path: Path):
    (tmp_path / "data").symlink_to(workplace / "data")
    shutil.copytree(workplace / "weights", tmp_path / "weights")
    words = ("run.name=on", "run.start_from=weights", MODEL, "checkpoint.every_steps=2")
    assert outcome(tmp_path, *words, "run.stop_at_step=2")[0] == 0
    shutil.rmtree(tmp_path / "weights")
    code, message = outcome(tmp_path, *words, "run.stop_at_step=4")
    assert code == 0, message
    assert "resumed at step 2" in message
    assert [row["loss"] for row in rows(tmp_path / "runs" / "on")] == [row["loss"] for row in rows(continued)]


def test_two_ranks_start_from_the_same_weights(continued: Path, workplace: Path):
    words = ("run.name=ranks", "run.start_from=weights", MODEL, "parallel.zero_stage=3", *SHORT)
    code, message = outcome(workplace, *words, ranks=2)
    assert code == 0, message
    first, second = (rows(run)[0]["loss"] for run in (continued, workplace / "runs" / "ranks"))
    assert second == pytest.approx(first, rel=1e-5)


def test_what_does_not_fit_the_folder_is_refused_before_anything_starts(weights: Path, workplace: Path, tmp_path: Path):
    code, message = outcome(workplace, "run.name=no", "run.start_from=weights")
    assert code == 2
    assert "model.norm_eps is 0.001 there, 1e-05 here" in message
    code, message = outcome(workplace, "run.name=no", "run.start_from=nowhere", MODEL)
    assert code == 3
    assert "nowhere" in message
    code, message = outcome(workplace, "run.name=hello", "run.start_from=weights", *SHORT)
    assert (code, "run.start_from None → 'weights'" in message) == (2, True)
    shutil.copytree(weights, tmp_path / "weights")
    manifest = json.loads((tmp_path / "weights" / "manifest.json").read_text())
    (tmp_path / "weights" / "manifest.json").write_text(json.dumps(manifest | {"tokenizers": ["0" * 64]}))
    code, message = outcome(workplace, "run.name=no", f"run.start_from={tmp_path / 'weights'}", MODEL)
    assert (code, "another tokenizer" in message) == (2, True)
    assert not (workplace / "runs" / "no").exists()

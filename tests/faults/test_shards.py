"""Altered data: no damaged id or boundary is ever trained on, and what no step touches stops nobody.

Flips and truncations are real, on a real dataset of several shards, before the start and while it is read; the stream
is read as a run reads it, and whole runs end with exit code 3 and go on bit for bit once the file is whole again.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.blocks import BLOCK
from data_prep.files import DataError
from data_prep.manifest import Manifest
from data_prep.shards import ShardHead, ShardReader, file_of, shard_writer
from tests.corpus import write_corpus
from tests.faults.jobs import Job
from tests.runs import curve, finish, outcome, start
from train.batch import solve_batch
from train.corpus import load_corpora
from train.data import TrainBatches
from train.data_config import DataConfig
from train.lineage import begin
from train.rows import Packs, PhaseRows, open_rows
from train.stream import TokenStream

STEPS = 6
EVALUATES_LATE = "evaluation.every_steps=100"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/tiny, of several shards; its files have several blocks."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "texts", n_documents=160)
    words = ("source=text", "source.paths=[texts]", "out=data/tiny", "tokenizer.vocab_size=400", "val_fraction=0.1")
    code, printed = finish(start(folder, *words, "task_bytes=90_000", module="data_prep"))
    assert code == 0, printed
    assert len(Manifest.load(folder / "data" / "tiny").shards_of("train")) > 2
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return shutil.copytree(made / "data" / "tiny", tmp_path / "data" / "tiny")


# --- as a run reads


def steps_of(folder: Path, packing: str, between: Callable[[int], object] = lambda step: None) -> Iterator[list]:
    """The rows of each step, as a run reads them, with a look at the boundaries inside. `between` is called before."""
    (corpus,) = load_corpora(DataConfig(folder=str(folder)))
    corpus.token_bytes()
    rows = rows_of(folder, packing)
    plan = solve_batch(global_batch_size=4, micro_batch_size=2, dp_size=1, seq_len=64, total_tokens=10**6)
    batches = TrainBatches(rows, plan, 0)
    for step in range(STEPS):
        between(step)
        yield [part.tolist() for batch in batches.micro_batches(step) for part in batch]


def rows_of(folder: Path, packing: str) -> PhaseRows:
    data = DataConfig(folder=str(folder), seq_len=64, packing=packing, mask_documents=True)  # type: ignore[arg-type]
    (corpus,) = load_corpora(data, look=False)
    packs = Packs(None, say=lambda _: None)
    slots = packs.of(corpus, 64).n_rows * 64 if packing == "best_fit" else corpus.tokens("train")
    return open_rows(begin(data, 4, [corpus], {corpus.digest: slots})[0], [corpus], 0, packs)


def touches(folder: Path, packing: str) -> dict[str, dict[int, int]]:
    """By .bin file: block → the first step that reads a token of it. Computed from the order of the data alone."""
    rows, found = rows_of(folder, packing), {}
    for step in range(STEPS):
        for source, pieces in rows.pieces(np.arange(4 * step, 4 * step + 4)):
            stream = rows.stream(source)
            for position, pairs in pieces:
                for passage in stream.passages(position, pairs + 1) if position >= 0 else ():
                    begins = int(ShardReader(folder / passage.shard).document_starts[passage.document]) + passage.first
                    for block in range(2 * begins // BLOCK, (2 * (begins + passage.tokens) - 1) // BLOCK + 1):
                        found.setdefault(f"{passage.shard}.bin", {}).setdefault(block, step)
    return found


def flip(file: Path, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(bit // 8)
        (byte,) = stream.read(1)
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


@dataclass(frozen=True)
class Damage:
    """One seeded fault: a bit flipped, or bytes cut off at the end, before the start (at step -1) or before a step."""

    file: Path
    bit: int
    lost: int
    at_step: int

    @staticmethod
    def drawn(seed: int, files: Sequence[Path]) -> "Damage":
        rng = random.Random(seed)
        kind = rng.choice([".bin", ".bin", ".idx", ".crc", ".json", "any"])
        file = rng.choice([file for file in files if kind in (file.suffix, "any")])
        size = file.stat().st_size
        lost = rng.choice([0, 0, 1, 2, rng.randint(1, size)])
        return Damage(file, rng.randrange(8 * size), lost, rng.choice([-1, 2]))

    def happen(self, step: int) -> None:
        if step == self.at_step and self.lost:
            os.truncate(self.file, self.file.stat().st_size - self.lost)
        elif step == self.at_step:
            flip(self.file, self.bit)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_of_a_hundred_random_faults_none_reaches_a_batch(own: Path, packing: str):
    """F5, F6: each of 2 x 100 flips and truncations, half of them made while the run is under way, is refused at the
    start or raises, naming its file, at the step that touches it; what no step touches changes and stops nothing."""
    whole = list(steps_of(own, packing))
    first_touch = touches(own, packing)
    files = sorted(file for file in own.glob("**/*") if file.is_file() and file.stat().st_size and file.name[0] != ".")
    n_stopped = 0
    for seed in range(100):
        damage = Damage.drawn(seed, files)
        content = damage.file.read_bytes()
        damage.happen(-1)
        batches, error = until_refused(steps_of(own, packing, damage.happen))
        of_pack = damage.file.parent != own  # one found damaged at the start is made anew
        with damage.file.open("wb" if of_pack and damage.at_step < 0 else "r+b") as stream:
            stream.write(content)
        case = f"seed {seed}, {damage}: {error}"
        assert batches == whole[: len(batches)], case
        assert (len(batches) == STEPS) if error is None else (str(damage.file) in str(error)), case
        assert error is None or len(batches) >= max(damage.at_step, 0), case
        if damage.lost and damage.at_step < 0 and not of_pack:
            assert not batches, case
        elif damage.file.suffix == ".bin" and not damage.lost and not of_pack:
            touched = first_touch.get(damage.file.name, {}).get(damage.bit // 8 // BLOCK, STEPS)
            assert len(batches) == touched or touched < damage.at_step, case
        n_stopped += error is not None
    assert 10 < n_stopped < 95  # about 35 and 50; the order of the data is that of the dataset, which knows its times
    assert list(steps_of(own, packing)) == whole


def until_refused(steps: Iterator[list]) -> tuple[list, DataError | None]:
    batches: list = []
    try:
        for batch in steps:
            batches.append(batch)
    except DataError as error:
        return batches, error
    return batches, None


def test_every_block_of_every_training_file_is_compared(own: Path):
    """F5: reading a whole split, boundaries and all, finds a flip of any bit in .bin, .idx and .crc."""
    (corpus,) = load_corpora(DataConfig(folder=str(own)))
    shard = corpus.manifest.shards_of("train")[0]
    for ending in (".bin", ".idx", ".crc"):
        file = file_of(own / shard.name, ending)
        n_bytes = shard.idx_bytes - 8 * (shard.documents + 1) if ending == ".idx" else file.stat().st_size
        for at in (0, n_bytes // 3, n_bytes - 1):  # the last table of the index is Megatron's alone
            flip(file, 8 * at + at % 8)
            with pytest.raises(DataError, match=file.name):
                read_all(corpus.stream("train"))
            flip(file, 8 * at + at % 8)
    read_all(corpus.stream("train"))


def read_all(stream: TokenStream) -> None:
    stream.read(0, stream.n_tokens)
    list(stream.document_lengths())
    stream.document_starts(0, stream.n_tokens)


# --- whole runs


@pytest.fixture(scope="module")
def undisturbed(made: Path) -> dict[str, list]:
    """The curve of a run that nothing happened to, by packing."""
    for packing in ("concat", "best_fit"):
        code, printed = outcome(made, EVALUATES_LATE, f"run.name={packing}", f"data.packing={packing}")
        assert code == 0, printed
    return {packing: curve(made / "runs" / packing) for packing in ("concat", "best_fit")}


def damaged_all_over(file: Path) -> None:
    """One bit of every block."""
    for at in range(0, file.stat().st_size, BLOCK):
        flip(file, 8 * at + 3)


def cut(n_bytes: int) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, file.stat().st_size // 3 * 2 + n_bytes)


SAVED = "runs/hurt/checkpoints/step-00000010"


def wait_for_damage(rank: int) -> None:
    """A fault that hurts nothing: as soon as there is a checkpoint, the run waits for what is done to its data."""
    micro_batches = TrainBatches.micro_batches

    def patiently(self: TrainBatches, step: int) -> Iterator:
        while Path(SAVED).exists() and not Path("damaged").exists():
            time.sleep(0.005)
        return micro_batches(self, step)

    TrainBatches.micro_batches = patiently


@pytest.mark.parametrize(
    ("packing", "pattern", "damage"),
    [
        ("concat", "train-*.bin", damaged_all_over),
        ("concat", "train-*.bin", cut(0)),
        ("concat", "train-*.bin", cut(1)),
        ("best_fit", "packs/*/starts.bin", damaged_all_over),
    ],
    ids=["flipped", "cut evenly", "cut oddly", "pack"],
)
def test_a_run_whose_data_are_damaged_under_it_stops_and_goes_on_bit_for_bit(
    own: Path, undisturbed: dict[str, list], packing: str, pattern: str, damage: Callable[[Path], None]
):
    """F5, F6: exit code 3, the file named, the last checkpoint valid; no signal kills it."""
    folder = own.parents[1]
    words = (EVALUATES_LATE, "run.name=hurt", f"data.packing={packing}")
    job = Job(folder, *words, ranks=1, fault=wait_for_damage)
    while not (folder / SAVED).exists() and job.is_running:
        time.sleep(0.005)
    whole = {file: file.read_bytes() for file in own.glob(pattern)}
    for file in whole:
        damage(file)
    (folder / "damaged").touch()
    assert job.end() == [3]
    assert any(file.name in job.printed().splitlines()[-1] for file in whole)
    if packing == "concat":
        for file, content in whole.items():
            file.write_bytes(content)
    code, printed = outcome(folder, *words)  # a damaged pack is made anew without being asked
    assert code == 0, printed
    assert "resumed at step" in printed
    assert curve(folder / "runs" / "hurt") == undisturbed[packing]


@pytest.mark.parametrize("name", ["token_bytes.npy", "manifest.json"])
def test_small_files_are_compared_before_the_first_step(own: Path, name: str):
    """F5: the table of bytes that bits per byte are computed with, and the manifest itself."""
    file = own / name
    flip(
        file,
        8 * (file.stat().st_size // 2) if name != "manifest.json" else 8 * file.read_bytes().index(b'"tokens"') + 83,
    )
    code, message = outcome(own.parents[1], EVALUATES_LATE, "run.name=a")
    assert code == 3
    assert str(Path("data/tiny", name)) in message


# --- another tokenizer


@pytest.fixture(scope="module")
def foreign(made: Path) -> Path:
    """A dataset with a tokenizer of the same size, trained on other text."""
    write_corpus(made / "other", n_documents=40, seed=5)
    words = ("source=text", "source.paths=[other]", "out=data/other", "tokenizer.vocab_size=400", "val_fraction=0.1")
    code, printed = finish(start(made, *words, module="data_prep"))
    assert code == 0, printed
    return made / "data" / "other"


def test_a_tokenizer_of_equal_size_does_not_pass_for_the_one_of_the_shards(own: Path, foreign: Path):
    """F20: its model beside our shards, its dataset beside ours, a vocabulary larger than the embedding."""
    folder = own.parents[1]
    mixed = f"data={{folder: null, sources: {{a: {{folder: {own}}}, b: {{folder: {foreign}}}}}}}"
    code, message = outcome(folder, EVALUATES_LATE, "run.name=a", mixed)
    assert (code, "different tokenizers" in message) == (3, True)
    code, message = outcome(folder, EVALUATES_LATE, "run.name=a", "model.vocab_size=384")
    assert (code, "set model.vocab_size=400" in message) == (2, True)
    shutil.copy(foreign / "tokenizer.model", own / "tokenizer.model")
    code, message = outcome(folder, EVALUATES_LATE, "run.name=a")
    assert (code, "tokenizer.model is another tokenizer" in message) == (3, True)
    assert not (folder / "runs").exists()


def test_a_shard_of_another_tokenizer_is_refused_though_all_its_files_have_the_right_sizes(own: Path, tmp_path: Path):
    """F20: the worst exchange: four files that fit each other, each of the size that the manifest tells of."""
    shard = Manifest.load(own).shards_of("train")[0]
    ours = ShardReader(own / shard.name)
    side = ours.sidecar
    head = ShardHead(side.task, side.source, "0" * 64, side.vocab_size, side.eos_id)
    with shard_writer(tmp_path / shard.name, head) as writer:
        for i in range(ours.n_documents):
            ids = ours.document(i)[:-1][::-1]
            writer.add(ids, np.array([len(ids)]), 0)
        writer.text_bytes = side.text_bytes
        writer.spans = list(side.spans)
    for ending in (".bin", ".idx", ".crc", ".json"):
        stranger = file_of(tmp_path / shard.name, ending)
        assert stranger.stat().st_size == file_of(own / shard.name, ending).stat().st_size
        shutil.copy(stranger, file_of(own / shard.name, ending))
    with pytest.raises(DataError, match=rf"{shard.name}\.crc was altered or exchanged"):
        list(steps_of(own, "concat"))
    with pytest.raises(DataError, match="made with another tokenizer"):
        Manifest.load(own).verify(own)


# --- datasets of before there were block checksums


def unsealed(folder: Path) -> None:
    """As an earlier version left it."""
    manifest = Manifest.load(folder)
    for file in folder.glob("*.crc"):
        file.unlink()
    others = tuple(entry for entry in manifest.files if not entry.name.endswith(".crc"))
    vars(manifest)["files"] = others
    manifest.publish(folder)


def test_a_dataset_without_block_checksums_is_refused_with_the_command_that_makes_them(own: Path):
    """F5: nothing is read unchecked; the command verifies first, and leaves the dataset as it would be made now."""
    before = {file.name: file.read_bytes() for file in own.iterdir() if file.is_file()}
    unsealed(own)
    assert not list(own.glob("*.crc"))
    folder = own.parents[1]
    code, message = outcome(folder, EVALUATES_LATE, "run.name=a")
    assert (code, "python -m data_prep stage=seal out=data/tiny" in message) == (3, True)
    code, printed = finish(start(folder, "stage=seal", "out=data/tiny", module="data_prep"))
    assert code == 0, printed
    after = {file.name: file.read_bytes() for file in own.iterdir() if file.is_file() and file.name != ".lock"}
    assert {name: content for name, content in after.items() if name != "manifest.json"} == {
        name: content for name, content in before.items() if name not in ("manifest.json", ".lock")
    }
    assert json.loads(after["manifest.json"])["fingerprint"] == json.loads(before["manifest.json"])["fingerprint"]


def test_a_damaged_dataset_is_not_sealed(own: Path):
    """F5: checksums of altered bytes would make them look whole."""
    unsealed(own)
    victim = min(own.glob("train-*.bin"))
    flip(victim, 77)
    with pytest.raises(DataError, match=rf"{victim.name}: its checksum differs"):
        Manifest.load(own).seal(own)
    with pytest.raises(DataError, match="no block checksums"):
        Manifest.load(own).check(own)

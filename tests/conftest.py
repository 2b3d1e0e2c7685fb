import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus import write_corpus
from tests.runs import finish, start
from tests.slurm_box import Box, Boxes, NoSlurmError

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; what is started here inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset under data/tiny, made by the command itself from generated text."""
    folder = tmp_path_factory.mktemp("workplace")
    write_corpus(folder / "texts")
    code, printed = finish(
        start(
            folder,
            *("source=text", "source.paths=[texts]", "out=data/tiny", "tokenizer.vocab_size=400", "val_fraction=0.1"),
            module="data_prep",
        )
    )
    assert code == 0, printed
    return folder


@pytest.fixture
def here(workplace: Path, tmp_path: Path) -> Path:
    """A fresh folder for runs, with the dataset linked in."""
    (tmp_path / "data").symlink_to(workplace / "data")
    return tmp_path


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boxes]:
    found = Boxes(tmp_path_factory.mktemp("slurm"))
    yield found
    found.stop()


@pytest.fixture
def box(boxes: Boxes) -> Box:
    """A Slurm cluster of which nothing is in use or broken."""
    try:
        return boxes.sound()
    except NoSlurmError as error:
        pytest.skip(f"no Slurm to test against ({error}); tests/install_slurm.sh")

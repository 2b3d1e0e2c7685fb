"""What a job starts, whoever starts it: the words for the ranks, where they run, and the name it goes by."""

import hashlib
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.submit_config import SubmitConfig

ROOT = Path(__file__).resolve().parents[1]
OWN_WORD = re.compile(r"[+~]*((job|slurm|kubernetes|torchrun)([./].*)?|submit)(=.*)?", re.DOTALL)
"""a word of the command line that train would not know"""


@dataclass(frozen=True)
class Job:
    words: tuple[str, ...]
    """of the command line, as they were typed"""
    name: str
    """by which the run's jobs are found again"""
    run: Path
    """the folder of the run"""
    work: Path
    """where the command was typed"""
    python_path: Path | None
    """what PYTHONPATH has to begin with"""

    @staticmethod
    def of(config: SubmitConfig, words: Sequence[str]) -> "Job":
        run = (Path(config.run.folder) / config.run.name).absolute()
        name = f"{config.run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:6]}"
        kept = tuple(word for word in words if not OWN_WORD.fullmatch(word))
        return Job(kept, name, run, Path.cwd(), python_path())


def python_path() -> Path | None:
    """What PYTHONPATH has to begin with in a job that is started where this command was typed; None where it finds the
    project by itself."""
    return None if ROOT in (Path.cwd(), Path(sysconfig.get_path("purelib")).resolve()) else ROOT

"""What a run writes on its way: samples/step-….txt and, after the last step, samples.txt.

The same prompts with the same seed each time, so a run that is killed and taken up writes the same files again; those
of steps that it goes back behind are removed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.files import publish_bytes
from data_prep.tokenizer import Tokenizer
from train.config import TrainConfig
from train.run_folder import RunFolder
from train.sample import SampleCommand, write_sample


def drawn(logits: Callable[..., Any], tokenizer_model: Path, config: TrainConfig, run: str) -> str:
    """The continuation of each prompt. A collective."""
    sample, tokenizer = config.sample, Tokenizer.load(tokenizer_model)
    commands = [
        SampleCommand(run=run, prompt=prompt, n_tokens=sample.n_tokens, temperature=sample.temperature)
        for prompt in sample.prompts
    ]
    return "\n----\n\n".join(write_sample(logits, tokenizer, command, config.data.seq_len) for command in commands)


class Texts:
    """Of one run; on the rank that writes."""

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._last: list[tuple[int, str]] = []

    def publish(self, step: int, text: str, *, is_last: bool) -> None:
        """is_last: of a run that has reached its last step."""
        if is_last:
            self._last = [(step, text)]
        else:
            self._folder.samples.mkdir(exist_ok=True)
        publish_bytes(self._folder.samples_txt if is_last else self._path(step), text.encode())

    def has(self, step: int) -> bool:
        return self._path(step).is_file()

    def forget_after(self, step: int) -> None:
        for found in self._steps():
            if found > step:
                self._path(found).unlink(missing_ok=True)

    def all(self) -> list[tuple[int, str]]:
        """(step, text), in order; of samples.txt only if this process has written it."""
        return [(step, self._path(step).read_text(errors="replace")) for step in self._steps()] + self._last

    def _steps(self) -> list[int]:
        numbers = [path.stem.removeprefix("step-") for path in self._folder.samples.glob("step-*.txt")]
        return sorted(int(number) for number in numbers if number.isdigit())

    def _path(self, step: int) -> Path:
        return self._folder.samples / f"step-{step:08d}.txt"

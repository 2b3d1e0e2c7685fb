"""Text that a trained model writes, and what it thinks comes next.

python -m train.sample run=runs/hello prompt="def "
python -m train.sample run=runs/hello prompt="import " n_tokens=200 temperature=0.7
python -m train.sample run=runs/hello prompt="for i in " table=12
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.compose import App, entry


@dataclass
class SampleCommand:
    run: str
    """the run's folder"""
    prompt: str = "\n"
    n_tokens: int = 100
    temperature: float = 0.8
    """0 takes the likeliest token each time"""
    seed: int = 0
    step: int | None = None
    """which checkpoint; null means the newest"""
    table: int = 8
    """rows of the next-token table"""

    def problems(self) -> list[str]:
        found: list[str] = []
        if not self.prompt:
            found.append("prompt is empty: there is nothing to continue")
        for name in ("n_tokens", "table"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        if self.temperature < 0:
            found.append(f"temperature={self.temperature} must be 0 or more")
        try:
            self.prompt.encode()
        except UnicodeEncodeError:
            found.append("prompt is not UTF-8 text")
        return found


def write_sample(logits, tokenizer, command: SampleCommand, context: int) -> str:
    """The prompt with its continuation, then the likeliest next tokens after the prompt, as text.

    logits: (1, T) int64 to (1, T, V); context: tokens that the model was trained to look back on.
    """
    from model.generate import generate, next_token_probabilities

    prompt = [int(i) for i in tokenizer.encode(command.prompt)]
    ids = generate(
        logits,
        prompt,
        n_tokens=command.n_tokens,
        context=context,
        temperature=command.temperature,
        seed=command.seed,
        stop_id=tokenizer.eos_id,
    )
    text = _text(tokenizer, [*prompt, *ids])
    probabilities = next_token_probabilities(logits, prompt, context)
    likely = probabilities.topk(min(command.table, len(probabilities)))
    rows = [
        f"  {p:6.1%}  {_visible(tokenizer, i)}"
        for p, i in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
    ]
    return f"{text}\n\nnext token after {command.prompt!r}:\n" + "\n".join(rows) + "\n"


def _text(tokenizer, ids: Sequence[int]) -> str:
    """Ids that only the model has (its vocabulary may be padded) stand there as `#id`."""
    runs = itertools.groupby(ids, lambda i: i < tokenizer.vocab_size)
    return "".join(tokenizer.decode(list(run)) if known else "".join(f"#{i}" for i in run) for known, run in runs)


def _visible(tokenizer, token: int) -> str:
    if token >= tokenizer.vocab_size:
        return f"#{token}"
    return repr(tokenizer.decode([token])) if token > 3 else tokenizer.piece(token)


def tokenizer_in(folder: Path):
    """The tokenizer of a dataset or run. Raises DataError if it has none: its ids came from another program."""
    from data_prep.files import DataError
    from data_prep.manifest import TOKENIZER
    from data_prep.tokenizer import Tokenizer

    if not (folder / TOKENIZER).is_file():
        raise DataError(
            f"{folder} has no {TOKENIZER}: its tokens came from another program, with a tokenizer that is no "
            "SentencePiece model, so ids cannot be shown as text here."
        )
    return Tokenizer.load(folder / TOKENIZER)


def run_sample(command: SampleCommand) -> None:
    from data_prep.files import DataError
    from train.parallel import share_cores

    share_cores()
    from train.trained import load_trained

    trained = load_trained(Path(command.run), command.step)
    tokenizer = tokenizer_in(Path(command.run))
    if tokenizer.sha256 != trained.tokenizer_sha256:
        raise DataError(f"{command.run}/tokenizer.model is not the tokenizer that this run was trained with")
    print(f"step {trained.step}, temperature {command.temperature}, seed {command.seed}\n")
    print(write_sample(trained.logits, tokenizer, command, trained.config.data.seq_len), end="")


def main() -> None:
    entry(App("sample", SampleCommand, {}, verbatim=("prompt",)), run_sample)


if __name__ == "__main__":
    main()

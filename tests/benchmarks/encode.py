"""Speed of the stage `encode` from end to end against the bare SentencePiece loop, on one core, in one run.

    python -m tests.benchmarks.encode                                  # the standard library's own sources
    python -m tests.benchmarks.encode corpus/*.jsonl.zst               # JSON lines with a field `text`

Bare: `for text in texts: processor.encode(text)`, the texts in memory already. Ours: read, decompress, parse, split,
encode, prove, write, sync and index. Rounds alternate; the ratio of each round is printed, and their median.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import sentencepiece

from data_prep.config import DataPrepConfig, ModelType, OnBad, Stage, TokenizerConfig
from data_prep.pipeline import prepare
from data_prep.plan import make
from data_prep.slices import Reading, Slice
from data_prep.sources.config import Jsonl, PythonStdlib

ROUNDS = 3


def main() -> None:
    source = Jsonl(paths=sys.argv[1:]) if sys.argv[1:] else PythonStdlib()
    print(f"{'model':<9}{'vocabulary':>11}{'bare MB/s':>11}{'ours MB/s':>11}{'tokens/s':>12}   ratio by round, median")
    for model_type, vocab_size in ((ModelType.bpe, 30_000), (ModelType.unigram, 30_000)):
        with tempfile.TemporaryDirectory() as folder:
            measure(source, model_type, vocab_size, Path(folder))


def measure(source: Jsonl | PythonStdlib, model_type: ModelType, vocab_size: int, folder: Path) -> None:
    config = DataPrepConfig(
        out=str(folder / "trained"),
        source=source,
        tokenizer=TokenizerConfig(model_type=model_type, vocab_size=vocab_size, sample_bytes=16 << 20),
        workers=1,
        stage=Stage.tokenizer,
        on_bad_document=OnBad.skip,
    )
    prepare(config)
    model = str(folder / "trained" / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    texts = [text.decode() for task in make(config).tasks for text in _texts(config, task)]
    n_bytes = sum(len(text.encode()) for text in texts)
    ratios, bare_rates, our_rates, n_tokens = [], [], [], 0
    for i in range(ROUNDS):
        started = time.process_time()
        n_tokens = sum(len(processor.encode(text)) for text in texts)
        bare = time.process_time() - started
        given = TokenizerConfig(model=model)
        ours = DataPrepConfig(
            **{**vars(config), "out": str(folder / str(i)), "tokenizer": given, "stage": Stage.encode}
        )
        prepare(DataPrepConfig(**{**vars(ours), "stage": Stage.tokenizer}))
        started = time.process_time()
        prepare(ours)
        spent = time.process_time() - started
        ratios.append(bare / spent)
        bare_rates.append(n_bytes / 1e6 / bare)
        our_rates.append(n_bytes / 1e6 / spent)
    rate, rounds = statistics.median(our_rates), ", ".join(f"{x:.2f}" for x in ratios)
    print(
        f"{model_type:<9}{vocab_size:>11,}{statistics.median(bare_rates):>11.2f}{rate:>11.2f}"
        f"{n_tokens / n_bytes * rate * 1e6:>12,.0f}   {rounds}; {statistics.median(ratios):.2f}"
    )


def _texts(config: DataPrepConfig, task) -> list[bytes]:
    return list(Slice(task.id, task.source, task, Reading(config.source, config.on_bad_document), None).texts())


if __name__ == "__main__":
    main()

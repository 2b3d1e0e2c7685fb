"""What data preparation can be asked to do: ordinary dataclasses, no heavy imports.

In: nothing. Out: `DataPrepConfig`, whose fields are the keys of the command line (`python -m data_prep KEY=VALUE`).
Each class's `problems()` returns every broken relation as one message: what was asked, the rule, what would work.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum

MINIMUM_VOCABULARY = 262  # 4 control ids, newline, 256 bytes, and at least one character
MAXIMUM_SAMPLE_BYTES = 1 << 30  # the trainer indexes its text with 32-bit positions


class Stage(StrEnum):
    all = "all"
    tokenizer = "tokenizer"
    encode = "encode"  # pyright: ignore[reportAssignmentType]  hides str.encode, which no stage needs
    verify = "verify"


class OnBad(StrEnum):
    error = "error"
    skip = "skip"


class ModelType(StrEnum):
    bpe = "bpe"
    unigram = "unigram"


@dataclass
class PythonStdlib:
    """The Python standard library's own sources without its tests, one file a document. Needs no download."""

    kind: str = "python_stdlib"


@dataclass
class PythonSite:
    """Every .py file of the installed packages, one file a document."""

    kind: str = "python_site"


@dataclass
class TextFiles:
    """Plain UTF-8 text, one file a document."""

    paths: list[str]
    """Files, globs (`**` included), or folders (every file below that is not hidden)."""
    kind: str = "text"

    def problems(self) -> list[str]:
        return _no_paths(self.paths)


@dataclass
class Jsonl:
    """One JSON object a line, one line a document; plain, .gz or .zst."""

    paths: list[str]
    """Files, globs (`**` included), or folders (every .jsonl, .jsonl.gz, .jsonl.zst below)."""
    text_field: str = "text"
    """The key that holds the document's text."""
    kind: str = "jsonl"

    def problems(self) -> list[str]:
        return _no_paths(self.paths)


Source = PythonStdlib | PythonSite | TextFiles | Jsonl


@dataclass
class TokenizerConfig:
    model: str | None = None
    """Path of an existing SentencePiece .model; null trains one on the corpus with the settings below."""
    model_type: ModelType = ModelType.bpe
    """`unigram` encodes about three times faster, but `transformers` silently rebuilds such a model as BPE."""
    vocab_size: int = 4096
    """Ids in all: control symbols, newline and the 256 byte pieces included."""
    sample_bytes: int = 64 << 20
    """Bytes of training text at most; documents beyond that are left out by a seeded draw. Memory: some 20 times it."""
    seed: int = 0
    """Seed of that draw; without effect while the whole corpus fits into `sample_bytes`."""

    def problems(self) -> list[str]:
        if self.model is not None:
            return self._idle_settings()
        found: list[str] = []
        if self.vocab_size < MINIMUM_VOCABULARY:
            found.append(
                f"tokenizer.vocab_size={self.vocab_size} is too small: 4 control symbols, newline, 256 bytes and at "
                f"least one character need {MINIMUM_VOCABULARY}"
            )
        if self.vocab_size > 2**31 - 1:
            found.append(f"tokenizer.vocab_size={self.vocab_size} is too large: ids are stored in at most 31 bits")
        if not 1 <= self.sample_bytes <= MAXIMUM_SAMPLE_BYTES:
            found.append(
                f"tokenizer.sample_bytes={self.sample_bytes} must lie in 1 ... {MAXIMUM_SAMPLE_BYTES} (1 GiB): the "
                "trainer holds the sample in memory"
            )
        return found

    def _idle_settings(self) -> list[str]:
        """A given model is not trained: settings of training beside it would be ignored, so they are refused."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        return [
            f"tokenizer.{name}={getattr(self, name)} has no effect together with tokenizer.model={self.model}; "
            "drop one of the two"
            for name in defaults
            if name != "model" and getattr(self, name) != defaults[name]
        ]


@dataclass
class DataPrepConfig:
    out: str
    """Folder of the finished dataset; made when it is missing, and other files in it are left alone."""
    source: Source
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    stage: Stage = Stage.all
    """`tokenizer` stops after the tokenizer, `encode` expects it, `verify` checks every checksum of a dataset."""
    val_fraction: float = 0.02
    """Share of the documents held out, chosen by the hash of their text; 0 holds out nothing."""
    task_bytes: int = 256 << 20
    """Input bytes (as stored) in one task, which makes one shard of each split; a larger single file is one task."""
    on_bad_document: OnBad = OnBad.error
    """`error` stops at the first document that cannot be read; `skip` leaves it out and counts it by reason."""

    def problems(self) -> list[str]:
        found: list[str] = []
        if not self.out:
            found.append("out is empty; pass the folder that is to hold the dataset: out=data/NAME")
        if not 0 <= self.val_fraction < 1:
            found.append(f"val_fraction={self.val_fraction} must lie in 0 ... 1, 1 excluded; 0.02 holds out 2 %")
        if self.task_bytes < 1:
            found.append(f"task_bytes={self.task_bytes} must be at least 1; 268_435_456 is 256 MiB")
        return found


def _no_paths(paths: list[str]) -> list[str]:
    if paths and all(paths):
        return []
    return ["source.paths names nothing; pass at least one file, glob or folder: source.paths=[corpus/]"]

"""What decontamination can be asked to do. Imports nothing heavy; the fields are keys below `decontaminate.`."""

from dataclasses import dataclass, field
from pathlib import PurePath

TEXT_SUFFIX = ".txt"
JSONL_SUFFIX = ".jsonl"


@dataclass
class DecontaminateConfig:
    files: list[str] = field(default_factory=list)
    """Evaluation files: .jsonl, one item a line, or .txt, one item a file. None: nothing is searched for."""
    fields: list[str] = field(default_factory=lambda: ["text"])
    """Of a JSONL item, the keys that hold text, or a list of texts; each text is searched for by itself."""
    ngram: int = 13
    """Words that have to agree in a row."""
    min_words: int = 8
    """A text of at least so many words, but fewer than `ngram`, is searched for as a whole; a shorter one is not."""
    min_matches: int = 1
    """Different n-grams of evaluation texts that a document has to contain to be removed."""
    max_source_loss: float = 0.05
    """The brake: stop, and publish nothing, when a source loses more than this share of its documents: then the
    evaluation files hold phrases that everybody uses."""

    def problems(self) -> list[str]:
        found: list[str] = []
        strange = [name for name in self.files if PurePath(name).suffix not in (TEXT_SUFFIX, JSONL_SUFFIX)]
        if strange:
            found.append(f"decontaminate.files: {strange[0]} is neither {JSONL_SUFFIX} nor {TEXT_SUFFIX}")
        names = [PurePath(name).name for name in self.files]
        if len(set(names)) < len(names):
            found.append("decontaminate.files: two files have the same name, by which the report would call them")
        if not self.fields:
            found.append("decontaminate.fields is empty; name the keys of an item that hold text, such as [question]")
        if not 2 <= self.ngram <= 100:
            found.append(f"decontaminate.ngram={self.ngram} must lie in 2 ... 100; 13 is that of GPT-3")
        if not 1 <= self.min_words <= self.ngram:
            found.append(f"decontaminate.min_words={self.min_words} must lie in 1 ... decontaminate.ngram={self.ngram}")
        if self.min_matches < 1:
            found.append(f"decontaminate.min_matches={self.min_matches} must be at least 1")
        if not 0 <= self.max_source_loss <= 1:
            found.append(f"decontaminate.max_source_loss={self.max_source_loss} must lie in 0 ... 1; 1 switches it off")
        return found

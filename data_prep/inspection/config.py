"""What `stage=inspect` can be asked: ordinary dataclasses, no heavy imports."""

import re
from dataclasses import dataclass

PLACE = re.compile(r"(.+):(\d+)")


@dataclass
class InspectConfig:
    documents: int = 5
    """How many documents, drawn by `seed` over the whole dataset, are decoded."""
    seed: int = 0
    """Seed of the drawn documents and of the sample that token frequencies are counted on."""
    sample_tokens: int = 16_000_000
    """Tokens of the train split that frequencies are counted on, at most; a smaller split is counted whole."""
    excerpt_tokens: int = 200
    """Tokens decoded of one document."""
    document: str = ""
    """`SHARD:N`, the N-th document of a shard, from 0."""
    offset: str = ""
    """`SPLIT:POSITION`, the document that holds this token of a split, from 0 in the order of the manifest."""
    page: str = ""
    """Where the HTML page goes, say report/inspect.html; empty writes none."""

    def problems(self) -> list[str]:
        found = [
            f"inspect.{name}={getattr(self, name)} must be at least {least}"
            for name, least in (("documents", 0), ("seed", 0), ("sample_tokens", 1), ("excerpt_tokens", 1))
            if getattr(self, name) < least
        ]
        if self.document and not PLACE.fullmatch(self.document):
            found.append(f"inspect.document={self.document} must be SHARD:N, say train-0123456789abcdef:7")
        if self.offset and not PLACE.fullmatch(self.offset):
            found.append(f"inspect.offset={self.offset} must be SPLIT:POSITION, say train:1000000")
        if self.page and not self.page.endswith(".html"):
            found.append(f"inspect.page={self.page} must end in .html")
        return found

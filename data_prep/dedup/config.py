"""What deduplication can be asked to do. Imports nothing heavy; the fields are keys below `dedup.`."""

from dataclasses import dataclass

LARGEST_SEED = 2**63 - 1
LEAST_MEMORY = 1 << 26
LEAST_CHANCE = 0.5


@dataclass
class NoDedup:
    """Every document is kept."""

    kind: str = "none"


@dataclass
class ExactDedup:
    """Of documents with the same bytes, the first in corpus order is kept."""

    max_source_loss: float = 0.7
    """The brake: stop, and publish nothing, when a source loses more than this share of its documents or bytes. The
    largest honest share known to us is 0.64 (CommonCrawl part of RedPajama, by SlimPajama, Cerebras 2023)."""
    max_cluster_share: float = 0.01
    """The brake: stop when more than this share of all documents is removed in favour of one. The largest cluster of
    C4 is 0.0007 of it (Lee et al. 2022). Clusters of fewer than 100 documents never stop anything."""
    memory_bytes: int = 1 << 29
    """What one process may hold of the corpus' tables at a time; decides into how many jobs they are divided, never
    the result."""
    kind: str = "exact"

    def problems(self) -> list[str]:
        return _brake_problems(self.max_source_loss, self.max_cluster_share) + _memory_problems(self.memory_bytes)


@dataclass
class MinHashDedup:
    """Exact duplicates, then near-duplicates: candidates by MinHash-LSH (Broder 1997; Indyk and Motwani 1998), each
    verified by its true Jaccard similarity. A document goes only if one that stays is that similar to it.
    """

    ngram: int = 5
    """Words in a shingle: documents are compared as sets of word n-grams."""
    bands: int = 14
    """Groups of MinHash values; documents that agree on a whole group are candidates. 14 × 8 as in FineWeb."""
    rows: int = 8
    """MinHash values in a band. A pair of similarity J is found with probability 1 - (1 - J^rows)^bands."""
    seed: int = 0
    """Chooses the bands × rows hash functions; signatures of another seed are not re-used."""
    min_jaccard: float = 0.8
    """Least true Jaccard similarity of near-duplicates. 0.8 is the threshold of Lee et al. 2022 and of SlimPajama, and
    14 × 8 finds such pairs with probability 0.92 or more; at 0.7 it would be 0.56, and chance would decide."""
    max_bucket: int = 128
    """Up to so many documents with an equal band are all compared with each other; in a larger group each is compared
    with the 16 best (longest) only."""
    max_source_loss: float = 0.7
    """As in `exact`."""
    max_cluster_share: float = 0.01
    """As in `exact`."""
    memory_bytes: int = 1 << 29
    """As in `exact`."""
    kind: str = "minhash"

    def chance(self, jaccard: float) -> float:
        """Probability that a pair of this similarity becomes a candidate (Leskovec et al. 2014, section 3.4)."""
        return 1 - (1 - jaccard**self.rows) ** self.bands

    def problems(self) -> list[str]:
        found = _brake_problems(self.max_source_loss, self.max_cluster_share) + _memory_problems(self.memory_bytes)
        for name, low, high in (("ngram", 1, 100), ("bands", 1, 256), ("rows", 1, 64), ("max_bucket", 2, 10_000)):
            if not low <= getattr(self, name) <= high:
                found.append(f"dedup.{name}={getattr(self, name)} must lie in {low} ... {high}")
        if not 0 <= self.seed <= LARGEST_SEED:
            found.append(f"dedup.seed={self.seed} must lie in 0 ... {LARGEST_SEED}")
        if not 0 < self.min_jaccard <= 1:
            found.append(f"dedup.min_jaccard={self.min_jaccard} must lie in 0 ... 1, 0 excluded")
        if not found and self.chance(self.min_jaccard) < LEAST_CHANCE:
            found.append(
                f"dedup.min_jaccard={self.min_jaccard} with {self.bands} bands of {self.rows} rows finds only "
                f"{self.chance(self.min_jaccard):.0%} of the pairs that are just as similar; to find at least "
                f"{LEAST_CHANCE:.0%}, raise dedup.bands, lower dedup.rows, or raise dedup.min_jaccard"
            )
        return found


DedupConfig = NoDedup | ExactDedup | MinHashDedup

DEDUPS: dict[str, type] = {"none": NoDedup, "exact": ExactDedup, "minhash": MinHashDedup}


def _brake_problems(max_source_loss: float, max_cluster_share: float) -> list[str]:
    shares = {"max_source_loss": max_source_loss, "max_cluster_share": max_cluster_share}
    return [
        f"dedup.{name}={share} is a share of the corpus and must lie in 0 ... 1; 1 switches this brake off"
        for name, share in shares.items()
        if not 0 <= share <= 1
    ]


def _memory_problems(memory_bytes: int) -> list[str]:
    if memory_bytes >= LEAST_MEMORY:
        return []
    return [f"dedup.memory_bytes={memory_bytes} must be at least {LEAST_MEMORY} (64 MiB)"]

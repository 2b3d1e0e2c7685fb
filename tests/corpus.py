"""A small corpus that is the same everywhere: sentences from a seeded grammar, with indentation, digits and rare
signs.
"""

import random
from pathlib import Path

NOUNS = [
    "river",
    "stone",
    "lantern",
    "harbour",
    "copper",
    "winter",
    "orchard",
    "signal",
    "engine",
    "mountain",
    "letter",
]
VERBS = ["carries", "finds", "leaves", "watches", "mends", "turns", "keeps", "answers", "crosses", "forgets"]
ADJECTIVES = ["old", "quiet", "narrow", "bright", "heavy", "distant", "green", "hollow", "patient", "sudden"]


def write_corpus(folder: Path, n_documents: int = 60, seed: int = 0) -> Path:
    """`n_documents` text files of one to three kilobytes each below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_documents):
        (folder / f"{seed:02d}-{i:04d}.txt").write_text(document(random.Random(f"{seed}/{i}")))
    return folder


def document(rng: random.Random) -> str:
    lines: list[str] = []
    for _ in range(rng.randint(20, 50)):
        noun, verb, other = rng.choice(NOUNS), rng.choice(VERBS), rng.choice(NOUNS)
        line = f"{'    ' * rng.randint(0, 2)}The {rng.choice(ADJECTIVES)} {noun} {verb} the {other}"
        if rng.random() < 0.2:
            line += f" {rng.randint(0, 999)} times"
        lines.append(line + rng.choice([".", ".", ";", " —", "…"]))
    return "\n".join(lines) + "\n"

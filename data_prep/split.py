"""Which documents are held out: a pure function of the text, so adding data never moves a document, and copies of
one text always fall on the same side."""

import hashlib


def is_held_out(utf8: bytes, val_fraction: float) -> bool:
    """True for about `val_fraction` of all texts: the first 64 bits of the SHA-256 of the text, as a number in 0-1."""
    return int.from_bytes(hashlib.sha256(utf8).digest()[:8]) / 2**64 < val_fraction

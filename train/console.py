"""What is said on the way: words that may get lost, and never stop anything. No torch."""

import contextlib
import sys
from typing import TextIO


def tell(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Prints, to standard output if nothing else is given. A console that is gone, or a full disk under it, never stops
    training."""
    with contextlib.suppress(OSError, ValueError):
        print(text, end=end, file=stream or sys.stdout, flush=True)

"""Names of nodes as Slurm writes them together: "n[1-3,07],gpu-a[1-2]" → n1, n2, n3, n07, gpu-a1, gpu-a2. No torch.

What `scontrol show hostnames` says, without asking the controller.
"""

import itertools
import re

_PART = re.compile(r"\[[^\]]*\]|[^,\[\]]+")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def hosts_of(text: str) -> list[str]:
    """Raises ValueError for what Slurm would not write."""
    return [name for word in _words(text) for name in _expanded(word)]


def _words(text: str) -> list[str]:
    """Cut at commas outside brackets."""
    words = re.findall(r"(?:\[[^\]]*\]|[^,\[\]])+", text)
    if ",".join(words) != text:
        raise ValueError(f"{text!r} is no list of nodes")
    return words


def _expanded(word: str) -> list[str]:
    choices = [_numbers(part[1:-1]) if part.startswith("[") else [part] for part in _PART.findall(word)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _numbers(text: str) -> list[str]:
    """Of "1-3,07", with as many digits as the first of a range has."""
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"[{text}] is no range of nodes")
        first, last = match[1], match[2] or match[1]
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found

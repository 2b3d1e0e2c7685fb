"""A user's block list of addresses: in the URL of a document, out the entry that blocks it, or None.

Every look-up is in a set: the host and each domain above it, the page, each word of the URL.
"""

import re
from pathlib import Path

from data_prep.clean.outcome import Dropped
from data_prep.files import DataError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_WORDS = re.compile(r"[^\W_]+")


class BlockList:
    """Read from a file: domains (with a dot), pages (with a slash), words; `#` begins a comment, case is ignored."""

    def __init__(self, path: str):
        self.domains: set[str] = set()
        self.pages: set[str] = set()
        self.words: set[str] = set()
        for entry in _entries(path):
            if "/" in entry:
                self.pages.add(_page(entry))
            elif "." in entry:
                self.domains.add(_ascii(entry.strip(".")))
            else:
                self.words.add(entry)

    def blocks(self, url: str) -> Dropped | None:
        page = _page(url)
        labels = host_of(page).split(".")
        for i in range(len(labels)):
            if (domain := ".".join(labels[i:])) in self.domains:
                return Dropped("url_blocked_domain", domain)
        if page in self.pages:
            return Dropped("url_blocked_page", page)
        if self.words and (hit := self.words.intersection(_WORDS.findall(page))):
            return Dropped("url_blocked_word", min(hit))
        return None


def host_of(page: str) -> str:
    """The host of an address without scheme, as ASCII: no user, no port, no dot at the end."""
    authority = re.split(r"[/?#]", page, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    host = host if host.endswith("]") else re.sub(r":\d*\Z", "", host)
    return _ascii(host.rstrip("."))


def _page(url: str) -> str:
    """Lower case, without scheme, fragment and slash at the end: http and https are the same page."""
    return _SCHEME.sub("", url.strip().lower(), count=1).partition("#")[0].rstrip("/")


def _ascii(host: str) -> str:
    """An international name in the form that DNS stores (xn--...); what has no such form stays."""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


def _entries(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the block list {path} cannot be read ({error}); it must be a UTF-8 text file with one domain, page or "
            "word a line; see clean.url_block_list.path"
        ) from None
    bare = (re.sub(r"(?:^|\s)#.*", "", line).strip().lower() for line in lines)
    return [entry for entry in bare if entry]

"""Decides over one document: in its UTF-8 and its URL, out `Kept` with the text to store, or `Dropped` with a reason.

The order is fixed, and the first rule that fails gives the reason:

 1. URL block list                              drops
 2. Unicode form, line ends, control characters alter the text
 3. `empty`: nothing but white space            drops
 4. language                                    drops
 5. Gopher repetition, Gopher quality           drop
 6. C4                                          removes lines, drops
 7. RefinedWeb                                  removes lines, drops
 8. FineWeb                                     drops
 9. masking of personal data                    alters the text
10. `empty` again, if anything was altered      drops

It is FineWeb's order (§3, and examples/fineweb.py of datatrove). A decision depends on the document and the
configuration alone, never on other documents.
"""

import importlib.metadata
from collections import Counter
from pathlib import Path

from conf.check import digest, to_tree
from data_prep.clean.c4 import c4
from data_prep.clean.characters import with_policies
from data_prep.clean.config import CleanConfig, Detector
from data_prep.clean.fineweb import fineweb
from data_prep.clean.gopher import gopher_quality
from data_prep.clean.language import Recogniser
from data_prep.clean.outcome import Dropped, Kept, View
from data_prep.clean.pii import masked
from data_prep.clean.refinedweb import refinedweb
from data_prep.clean.repetition import gopher_repetition
from data_prep.clean.urls import BlockList
from data_prep.files import DataError, sha256_file

RULES_VERSION = 1  # raised with every change of these files that can change a decision or a text


class Cleaner:
    """Picklable: what it holds beside the configuration is loaded again in the process that receives it.

    Raises ConfigError when a package that the configuration needs is missing, DataError for a file that is.
    """

    def __init__(self, config: CleanConfig):
        self.config = config
        self._idle = config == CleanConfig()
        path = config.url_block_list.path
        self._block_list = BlockList(path) if path else None
        self._recogniser = Recogniser(config.language) if config.language.enabled else None

    def __reduce__(self) -> tuple[type["Cleaner"], tuple[CleanConfig]]:
        return Cleaner, (self.config,)

    def clean(self, utf8: bytes, url: str) -> Kept | Dropped:
        """`utf8` must be valid. A document that no rule altered is returned as the same bytes."""
        if self._idle:
            return Kept(utf8)
        changes: Counter[str] = Counter()
        if self._block_list:
            if url and (blocked := self._block_list.blocks(url)):
                return blocked
            changes.update({} if url else {"url_missing": 1})
        original = utf8.decode()
        text = self._judged(original, changes)
        if isinstance(text, Dropped):
            return text
        text = masked(text, self.config.pii, changes)
        if not text or text.isspace():
            return Dropped("empty", f"nothing is left of {len(utf8)} bytes")
        if text == original:
            return Kept(utf8, dict(changes))
        result = text.encode()
        changes.update({"documents_altered": 1, "net_bytes_removed": len(utf8) - len(result)})
        return Kept(result, dict(changes))

    def _judged(self, text: str, changes: Counter[str]) -> str | Dropped:
        """Steps 2 to 8."""
        config = self.config
        text = with_policies(text, config, changes)
        if not text or text.isspace():
            return Dropped("empty", "the text holds nothing but white space")
        if self._recogniser and (refused := self._recogniser.refuses(text)):
            return refused
        view = View(text, config.words)
        if config.gopher_repetition.enabled and (broken := gopher_repetition(view, config.gopher_repetition)):
            return broken
        if config.gopher_quality.enabled and (broken := gopher_quality(view, config.gopher_quality)):
            return broken
        left: str | Dropped = text
        if config.c4.enabled:
            left = c4(text, config.c4, changes)
        if config.refinedweb.enabled and not isinstance(left, Dropped):
            left = refinedweb(left, config.refinedweb, changes)
        if config.fineweb.enabled and not isinstance(left, Dropped):
            view = view if left is text else View(left, config.words)
            return fineweb(view, config.fineweb) or left
        return left


def fingerprint(config: CleanConfig) -> str:
    """64 hex digits that differ whenever decisions may: of the settings, of the *content* of the files that they name
    (wherever those lie), and of the version of the language detector.
    """
    tree = to_tree(config)
    if (path := config.url_block_list.path) is not None:
        tree["url_block_list"]["path"] = _content(path)
    if config.language.model is not None:
        tree["language"]["model"] = _content(config.language.model)
    if config.language.enabled and config.language.detector is Detector.resiliparse:
        tree["resiliparse"] = importlib.metadata.version("resiliparse")
    return digest({"rules": RULES_VERSION, "clean": tree})


def _content(path: str) -> str:
    try:
        return sha256_file(Path(path))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); clean.url_block_list or clean.language names it"
        ) from None

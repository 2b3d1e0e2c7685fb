"""Which language a text is written in: in a text, out None if it is one to keep, else the reason to drop it.

Two detectors: resiliparse's built-in one (a rank: distance between profiles of letters), or a fastText model of the
user's (a probability). The heavy import happens when the detector is built.
"""

import importlib
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from data_prep.clean.config import Detector, Language
from data_prep.clean.outcome import Dropped, above, below
from data_prep.files import DataError

_NO_CUTOFF = 2**31 - 1


class Recogniser:
    def __init__(self, rules: Language):
        self.rules = rules
        match rules.detector:
            case Detector.resiliparse:
                lang = _imported("resiliparse.parse.lang", "pip install 'crisol[clean]'", rules)
                _refuse_unknown(rules.keep, lang.supported_langs())
                self._detect = lang.detect_fast
            case Detector.fasttext:
                self._model = _fasttext_model(rules)

    def refuses(self, text: str) -> Dropped | None:
        if self.rules.detector is Detector.resiliparse:
            found, rank = self._detect(text, cutoff=_NO_CUTOFF)
            unsure = above("language_unsure", rank, self.rules.max_rank, f"{found} at rank")
        else:
            labels, scores = self._model.predict(text.replace("\n", " "), k=1)
            found = labels[0].removeprefix("__label__") if labels else "unknown"
            score = float(scores[0]) if labels else 0.0
            unsure = below("language_unsure", score, self.rules.min_score, f"{found} with score")
        if found in self.rules.keep:
            return unsure
        return Dropped("language_other", f"{found}, not {' or '.join(self.rules.keep)}")


def _refuse_unknown(codes: list[str], known: list[str]) -> None:
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise ConfigError(
            [
                f"clean.language.keep={unknown} is unknown to resiliparse, so it would drop every such document; "
                f"it knows {' '.join(sorted(known))}"
            ]
        )


def _fasttext_model(rules: Language) -> Any:
    fasttext = _imported("fasttext", "pip install fasttext-numpy2-wheel", rules)
    if not Path(str(rules.model)).is_file():
        raise DataError(f"there is no fastText model {rules.model}; see clean.language.model")
    try:
        return fasttext.load_model(str(rules.model))
    except ValueError as error:
        raise DataError(f"{rules.model} is not a fastText model ({error}); see clean.language.model") from None


def _imported(name: str, remedy: str, rules: Language) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            [
                f"clean.language.detector={rules.detector} needs the package {package}, which cannot be imported "
                f"({error}): {remedy}, or turn it off with clean.language.enabled=false"
            ]
        ) from None

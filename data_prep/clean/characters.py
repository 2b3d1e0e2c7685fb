"""Characters before any rule looks at them: Unicode form, line ends, control characters.

In: a text and the three policies of `CleanConfig`. Out: the text, and in `changes` how much was altered.
Line ends: Unicode Standard §5.8 (CRLF, CR, VT, FF, NEL, LS, PS). Control characters: general category Cc.
"""

import re
import unicodedata
from collections import Counter

from data_prep.clean.config import CleanConfig, ControlCharacters, Newlines, UnicodeForm

_OTHER_LINE_ENDS = "\r\v\f\x85\u2028\u2029"
_LINE_END = re.compile(f"\r\n|[{_OTHER_LINE_ENDS}]")
_CONTROLS = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")  # all of Cc but tab and line ends


def with_policies(text: str, config: CleanConfig, changes: Counter[str]) -> str:
    if config.unicode is not UnicodeForm.none:
        text = _in_form(text, config.unicode, changes)
    if config.newlines is Newlines.lf and any(end in text for end in _OTHER_LINE_ENDS):
        text, n = _LINE_END.subn("\n", text)
        changes["newlines_converted"] += n
    if config.control_characters is ControlCharacters.remove:
        text, n = _CONTROLS.subn("", text)
        if n:  # a key means that something was altered
            changes["control_characters_removed"] += n
    return text


def _in_form(text: str, wanted: UnicodeForm, changes: Counter[str]) -> str:
    form = "NFC" if wanted is UnicodeForm.nfc else "NFKC"
    if text.isascii() or unicodedata.is_normalized(form, text):
        return text
    changes["documents_normalized"] += 1
    return unicodedata.normalize(form, text)

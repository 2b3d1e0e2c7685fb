"""Text from anywhere, made harmless: it can move no cursor, end no tag, turn no page around, nor hide."""

import html
import re

# C0 but tab and newline, C1, soft hyphen, marks that turn the direction or cannot be seen, tags, halves of surrogate
# pairs, non-characters; but not the joiners U+200C and U+200D, which belong to the spelling of many scripts
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    r"""Control characters, direction marks and half characters by number: `\x1b`, `\u202e`."""
    return UNSAFE.sub(lambda found: _number(ord(found[0])), text)


def _number(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown(text: str) -> str:
    """For a page: escaped; characters without a shape, or with power over others, as a small mark with their number."""
    return UNSAFE.sub(lambda found: f'<i class="mark">U+{ord(found[0]):04X}</i>', html.escape(text))

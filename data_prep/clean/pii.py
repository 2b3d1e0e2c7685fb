"""Masks e-mail and public IP addresses: in a text, out the text with each replaced by an address for documentation.

FineWeb §3.7 masks the same two kinds. Every search is bounded around a rare character, so that time is linear in the
text whatever it holds: 64 characters before an `@` and 253 after it are all that RFC 5321 §4.5.3.1 allows.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

from data_prep.clean.config import Pii

EMAIL = "email@example.com"  # RFC 2606 §3
IPV4 = "192.0.2.1"  # RFC 5737: TEST-NET-1
IPV6 = "2001:db8::1"  # RFC 3849

_LOCAL_CHARACTERS = 64
_DOMAIN_CHARACTERS = 253
_LOCAL_END = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_][\w-]{0,61}[^\W_]")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,35}+(?![\w:])")  # 2000::/3, the global addresses


def masked(text: str, rules: Pii, changes: Counter[str]) -> str:
    if rules.emails and "@" in text:
        text = _without_emails(text, changes)
    if rules.public_ips:
        text = _IPV4.sub(_masking("pii_ips", IPV4, changes), text)
        text = _IPV6.sub(_masking("pii_ips", IPV6, changes), text)
    return text


def _without_emails(text: str, changes: Counter[str]) -> str:
    parts: list[str] = []
    done = 0  # text before it is in `parts`
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1, at + 1 + _DOMAIN_CHARACTERS)
        local = _local_part(text[max(done, at - _LOCAL_CHARACTERS) : at]) if domain else ""
        if domain and local:
            parts += [text[done : at - len(local)], EMAIL]
            done = domain.end()
            changes["pii_emails"] += 1
        at = text.find("@", max(done, at + 1))
    return "".join(parts) + text[done:]


def _local_part(before: str) -> str:
    """The longest end of `before` that can name a mailbox, begun by a letter or digit (quotes and brackets stay)."""
    match = _LOCAL_END.search(before)
    return match[0].lstrip("!#$%&'*+/=?^`{|}~-") if match else ""


def _masking(key: str, replacement: str, changes: Counter[str]) -> Callable[[re.Match[str]], str]:
    def mask(match: re.Match[str]) -> str:
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:  # 999.1.1.1, 2001:1:2
            return match[0]
        if not public:
            return match[0]
        changes[key] += 1
        return replacement

    return mask

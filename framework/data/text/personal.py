"""Personal data in text: e-mail and IP addresses are replaced, as in FineWeb (2406.17557, section 3.7)."""

from __future__ import annotations

import ipaddress
import re

EMAIL, ADDRESS = "email@example.com", "192.0.2.1"  # names and numbers that are reserved for examples (RFC 2606, 5737)
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_ADDRESS = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]\d|\d)")


def scrub(text: str) -> str:
    """Return the text with e-mail addresses and public IPv4 addresses replaced by ones that belong to nobody."""
    if "@" in text:
        text = _EMAIL.sub(EMAIL, text)
    return _ADDRESS.sub(_scrubbed, text)


def _scrubbed(match: re.Match[str]) -> str:
    try:
        public = ipaddress.IPv4Address(match[0]).is_global
    except ValueError:  # 1.2.3.400, 01.2.3.4: version numbers and the like
        return match[0]
    return ADDRESS if public else match[0]

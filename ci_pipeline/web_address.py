"""Which addresses are followed, and may become links: https anywhere, http on this machine alone."""

from __future__ import annotations

from urllib.parse import urlsplit

LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


def is_web(url: object) -> bool:
    """Whether this is such an address."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        return bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
        )
    except ValueError:
        return False

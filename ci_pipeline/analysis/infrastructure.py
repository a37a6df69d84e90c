"""Errors that are about the machines rather than about the change."""

from __future__ import annotations

import re

INFRASTRUCTURE = {
    "out of memory": r"OutOfMemory|out of memory|MemoryError|Cannot allocate memory",
    "too many requests": r"\b429\b|Too Many Requests|[Rr]ate.?limit",
    "network": r"Connection(?:Error|Reset|Refused)|Connection (?:reset|refused|aborted|timed out)"
    r"|Connect(?:ion)?Timeout|ReadTimeout|RemoteDisconnected|Max retries exceeded|name resolution"
    r"|Name or service not known|SSLError"
    r"|\b50[234] (?:Server Error|Bad Gateway|Service Unavailable|Gateway)",
    "no disk space": r"No space left on device|Disk quota exceeded",
    "hardware or driver": r"uncorrectable ECC|CUDA-capable device|driver version is insufficient|Xid|NCCL error"
    r"|hipErrorNoDevice|CUDA error: (?:unknown error|all CUDA-capable devices are busy)",
    "killed": r"SIGKILL|signal 9\b|worker '?\w+'? crashed",
}
"""What an error that mentions one of these is probably about."""

_ANY = re.compile("|".join(f"({pattern})" for pattern in INFRASTRUCTURE.values()))


def infrastructure(error: str) -> str:
    """The key of `INFRASTRUCTURE` that an error mentions first, or ""."""
    found = _ANY.search(error)
    return list(INFRASTRUCTURE)[found.lastindex - 1] if found and found.lastindex else ""

"""Answers that come in two pieces: small servers send the head, and their system holds back the body until the head is
acknowledged. Ours would put that off by 40 ms, for every answer on a connection that is kept.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


def acknowledge(connection: socket.socket | None) -> None:
    """Acknowledge what has arrived; called when the head of an answer is read. Only Linux knows how."""
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def acknowledge_head(response: httpx2.Response) -> None:
    """The same as a response hook of httpx2: those run before the body is read."""
    if stream := response.extensions.get("network_stream"):
        acknowledge(stream.get_extra_info("socket"))

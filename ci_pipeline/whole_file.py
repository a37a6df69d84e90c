"""Files that others read while they are written, or that a killed process may have been writing."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_whole(path: str | Path, content: bytes, *, durable: bool = False) -> None:
    """A reader sees the old file or the new one, never a part. `durable`: also when the machine loses power."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
    part = f"{folder}/.{name}.{uuid4().hex}.part"
    with open(part, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(part, path)

"""What was delivered, and what still has to be: JSON files below one folder, or below one prefix of a bucket."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ci_pipeline.whole_file import write_whole


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a delivery.

    `pending`: it is kept, and goes out with the next `deliver_pending`. `superseded`: a newer attempt of the CI run is
    already there. `url`: where a person finds it; a path in the outbox.
    """

    where: Literal["slack", "hub", "warehouse", "outbox", "pending", "superseded"]
    url: str = ""
    detail: str = ""  # one line for a person
    commit: str = ""  # of the Hub

    def about(self, what: str) -> str:
        """One line for a person: `files: hub https://… (detail)`."""
        return " ".join(filter(None, (f"{what}:", self.where, self.url, self.detail and f"({self.detail})")))


class Ledger:
    """Entries by name, each a JSON object that is there whole or not at all.

    `root` is a path, or `s3://<bucket>/<prefix>` where several machines deliver. Names are made of parts joined by "/",
    see `name_of`.
    """

    def __init__(self, root: str) -> None:
        from ci_pipeline.sources.raw_store import filesystem

        self._fs, self._root = filesystem(root)
        self._local = self._fs.type_name == "local"

    def read(self, name: str) -> dict[str, Any] | None:
        try:
            with self._fs.open_input_file(self._path(name)) as file:
                return json.loads(file.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, entry: dict[str, Any]) -> None:
        """Safe against being killed, and locally against the machine losing power."""
        path, data = self._path(name), json.dumps(entry, ensure_ascii=False, indent=1).encode()
        if not self._local:
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        write_whole(path, data, durable=True)

    def remove(self, name: str) -> None:
        """Removing what is not there is no error."""
        if self._fs.get_file_info(self._path(name)).is_file:
            self._fs.delete_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        """All entries below a folder, the one that changed least recently first."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(f"{self._root}/{folder}".rstrip("/"), recursive=True, allow_not_found=True)
        found = [info for info in self._fs.get_file_info(selector) if info.path.endswith(".json")]
        found = sorted((info.mtime_ns, str(info.path)) for info in found)
        return [path[len(self._root) + 1 : -len(".json")] for _, path in found]

    @contextmanager
    def lock(self, name: str) -> Generator[None]:
        """Only one process of this machine at a time; ends with the process, however that ends.

        A bucket has no locks: there, one task per CI run (Dagster's run key) is what keeps writers apart.
        """
        if not self._local:
            yield
            return
        import fcntl

        path = Path(f"{self._root}/{name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}.json"


def name_of(*parts: str | int) -> str:
    """A name from parts that other people chose: no part leaves its folder."""
    return "/".join(quote(str(part), safe="@ ").replace(".", "%2E") or "%00" for part in parts)

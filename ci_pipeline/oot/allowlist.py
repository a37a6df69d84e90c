"""Which repositories may report, at which level: a YAML file at a path or an address, read again as it ages."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import httpx2
import yaml

log = logging.getLogger(__name__)

Level = Literal["L1", "L2", "L3", "L4"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
_MAX_BYTES = 1_000_000


class AllowlistError(ValueError):
    """The allowlist cannot be read or is wrong. The text is one line that names the place and the reason."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One repository. `devices` are the labels of L3, `oncalls` those who look after it (L3, L4)."""

    repo: str
    level: Level
    devices: tuple[str, ...] = ()
    oncalls: tuple[str, ...] = ()


class Allowlist:
    """The entries in the file's order; GitHub's repository names do not mind case, nor does `find`."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries

    def find(self, repo: str) -> Entry | None:
        return self._entries.get(repo.lower())

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


def parse_allowlist(text: str, name: str = "allowlist") -> Allowlist:
    """Read the YAML of an allowlist.

    Raises:
        AllowlistError: something in it is malformed or listed twice; the line is named.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise AllowlistError(f"{name}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    return Allowlist(_Reader(name).read(root))


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: dict[str, Entry] = {}
        self.lines: dict[str, int] = {}

    def read(self, root: yaml.Node | None) -> dict[str, Entry]:
        levels: set[str] = set()
        for key, value in self.pairs(root, "levels L1 to L4") if root else ():
            level = self.text(key, "a level")
            if level not in ("L1", "L2", "L3", "L4"):
                raise self.error(key, f"{level!r} is not a level, write L1, L2, L3 or L4")
            if level in levels:
                raise self.error(key, f"{level} is there twice")
            levels.add(level)
            if self.empty(value):
                continue
            if level in ("L1", "L2"):
                for item in self.items(value, f"{level} is a list of repositories"):
                    self.add(item, cast(Level, level))
            elif level == "L3":
                devices: set[str] = set()
                for device_key, repos in self.pairs(value, "L3 is a mapping of devices"):
                    device = self.text(device_key, "a device")
                    if device in devices:
                        raise self.error(device_key, f"device {device} is there twice")
                    devices.add(device)
                    for repo, oncalls in self.pairs(repos, f"{device} is a mapping of repositories to on-calls"):
                        self.add(repo, "L3", device, self.oncalls(oncalls))
            else:
                for item in self.items(value, "L4 is a list of `repository: on-calls`"):
                    for repo, oncalls in self.pairs(item, "an L4 entry is `repository: on-calls`"):
                        self.add(repo, "L4", "", self.oncalls(oncalls))
        return self.entries

    def add(self, node: yaml.Node, level: Level, device: str = "", oncalls: tuple[str, ...] = ()) -> None:
        repo = self.text(node, "a repository")
        if not _REPOSITORY.fullmatch(repo):
            raise self.error(node, f"{repo!r} is not a repository, write owner/name")
        known = self.entries.get(repo.lower())
        # A backend of two devices is listed under both.
        if known and not (level == known.level == "L3" and device not in known.devices):
            raise self.error(node, f"{repo} is listed twice, first in line {self.lines[repo.lower()]} ({known.level})")
        devices = (device,) if device else ()
        if known:
            devices, oncalls = known.devices + devices, tuple(dict.fromkeys(known.oncalls + oncalls))
        self.entries[repo.lower()] = Entry(repo, level, devices, oncalls)
        self.lines.setdefault(repo.lower(), node.start_mark.line + 1)

    def oncalls(self, node: yaml.Node) -> tuple[str, ...]:
        """`[a, b]` or `"a, b"`."""
        if self.empty(node):
            return ()
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.text(item, "an on-call") for item in node.value)
        return tuple(filter(None, (part.strip() for part in self.text(node, "on-calls").split(","))))

    def text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or self.empty(node):
            raise self.error(node, f"{what} must be a word")
        return cast(str, node.value).strip()

    def items(self, node: yaml.Node, rule: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, rule)
        return node.value

    def pairs(self, node: yaml.Node, rule: str) -> list[tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, rule)
        return node.value

    def empty(self, node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and (node.tag == "tag:yaml.org,2002:null" or not node.value)

    def error(self, node: yaml.Node, reason: str) -> AllowlistError:
        return AllowlistError(f"{self.name} line {node.start_mark.line + 1}: {reason}")


def read_allowlist(location: str) -> Allowlist:
    """Read an allowlist at a path or an http(s) address.

    Raises:
        AllowlistError: it cannot be had, or is wrong.
    """
    try:
        if location.startswith(("http://", "https://")):
            response = httpx2.get(location, timeout=5.0, follow_redirects=True)
            response.raise_for_status()
            data = response.content
        else:
            data = Path(location).read_bytes()
        if len(data) > _MAX_BYTES:
            raise AllowlistError(f"{location}: larger than {_MAX_BYTES} bytes")
        if not data.strip():  # as a file is for a moment while somebody writes it
            raise AllowlistError(f"{location}: is empty, write {{}} if nobody may report")
        return parse_allowlist(data.decode(), location)
    except httpx2.HTTPStatusError as error:
        raise AllowlistError(f"{location}: the answer is {error.response.status_code}") from None
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, UnicodeDecodeError) as error:
        raise AllowlistError(f"{location}: {getattr(error, 'strerror', None) or error}") from None


class AllowlistCache:
    """The allowlist of a deployment, read again every `ttl` seconds; the last good copy stays when that fails.

    Raises:
        AllowlistError: at the start, when there is no good copy yet.
    """

    def __init__(self, location: str, ttl: float) -> None:
        self.location = location
        self._ttl = max(0.1, ttl)
        self._closed = threading.Event()
        self._allowlist = read_allowlist(location) if location else Allowlist({})
        if location:
            threading.Thread(target=self._keep_fresh, name="oot-allowlist", daemon=True).start()

    def current(self) -> Allowlist:
        """The copy at hand."""
        return self._allowlist

    def close(self) -> None:
        self._closed.set()

    def _keep_fresh(self) -> None:
        while not self._closed.wait(self._ttl):
            try:
                self._allowlist = read_allowlist(self.location)
            except AllowlistError as error:
                log.warning("Allowlist not read again, the last good copy stays: %s", error)

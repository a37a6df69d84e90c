"""Where messages and Hub files go while there is no token: a folder, laid out like the services themselves."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ci_pipeline.publish.hub import dataset_card
from ci_pipeline.publish.ledger import name_of
from ci_pipeline.publish.mrkdwn import to_markdown
from ci_pipeline.publish.slack import Blocks, Metadata
from ci_pipeline.whole_file import write_whole


class SlackOutbox:
    """Messages as `<folder>/slack/<channel>/<run id>/<test job>/…json`, and all of a thread in its `thread.md`.

    Has the methods of `SlackClient`. A message's `ts` is the path of its file, so a reader can open what it names.
    """

    where: Literal["slack", "outbox"] = "outbox"

    def __init__(self, folder: Path) -> None:
        self._root = folder.absolute() / "slack"

    def channel_id(self, channel: str) -> str:
        return channel

    def post(
        self, channel: str, text: str, blocks: Blocks, thread_ts: str | None = None, metadata: Metadata | None = None
    ) -> str:
        payload: Mapping[str, Any] = (metadata or {}).get("event_payload", {})
        if thread_ts:
            folder = self._path(thread_ts).parent
            number = 1 + max((int(path.name.partition("-")[0]) for path in folder.glob("[0-9]*.json")), default=0)
            path = folder / f"{number:04d}-{_slug(str(payload.get('key', 'reply')))}.json"
        else:
            names = (payload["run_id"], payload["test_job"]) if "run_id" in payload else (f"{time.time():.6f}",)
            path = self._root / name_of(channel.lstrip("#"), *names) / "main.json"
        ts = str(path.relative_to(self._root))
        self._write(ts, channel, text, blocks, metadata)
        return ts

    def update(self, channel: str, ts: str, text: str, blocks: Blocks, metadata: Metadata | None = None) -> None:
        self._write(ts, channel, text, blocks, metadata)

    def delete(self, channel: str, ts: str) -> None:
        self._path(ts).unlink(missing_ok=True)
        self._draw(self._path(ts).parent)

    def upload(self, channel: str, thread_ts: str, name: str, title: str, content: str) -> str:
        path = self._path(thread_ts).parent / "files" / _slug(name)
        write_whole(path, content.encode())
        return str(path.relative_to(self._root))

    def delete_file(self, channel: str, file_id: str) -> None:
        self._path(file_id).unlink(missing_ok=True)

    def messages(self, channel: str, thread_ts: str | None = None, oldest: float = 0.0) -> Iterator[dict[str, Any]]:
        if thread_ts is None:
            for path in self._root.glob(f"{name_of(channel.lstrip('#'))}/**/main.json"):
                yield self._read(path)
            return
        folder = self._path(thread_ts).parent
        yield from map(self._read, _messages(folder))
        for path in sorted(folder.glob("files/*")):
            yield {"ts": "", "files": [{"id": str(path.relative_to(self._root)), "name": path.name}]}

    def url(self, channel: str, ts: str) -> str:
        return str(self._path(ts).with_name("thread.md"))

    def _path(self, ts: str) -> Path:
        return self._root / ts

    def _read(self, path: Path) -> dict[str, Any]:
        return json.loads(path.read_bytes()) | {"ts": str(path.relative_to(self._root))}

    def _write(self, ts: str, channel: str, text: str, blocks: Blocks, metadata: Metadata | None) -> None:
        path = self._path(ts)
        is_new_reply = path.name != "main.json" and not path.exists()
        message = {"channel": channel, "text": text, "blocks": list(blocks), "metadata": metadata}
        write_whole(path, json.dumps(message, ensure_ascii=False, indent=1).encode())
        if is_new_reply:
            with path.with_name("thread.md").open("a", encoding="utf-8") as page:
                page.write(f"\n---\n\n{to_markdown(blocks) or text}")
        else:
            self._draw(path.parent)

    def _draw(self, folder: Path) -> None:
        messages = map(self._read, _messages(folder))
        pages = [to_markdown(message["blocks"]) or message["text"] for message in messages]
        write_whole(folder / "thread.md", "\n---\n\n".join(pages).encode())


class HubOutbox:
    """Files as `<folder>/hub/<dataset>/<path>`."""

    where: Literal["hub", "outbox"] = "outbox"

    def __init__(self, folder: Path) -> None:
        self._root = folder.absolute() / "hub"

    def upload(self, files: Mapping[str, bytes], *, repo_id: str, message: str) -> str:
        """There are no commits here; "" where one would be named."""
        for path, content in {"README.md": dataset_card(repo_id), **files}.items():
            write_whole(self._root / repo_id / path, content)
        return ""

    def url(self, repo_id: str, commit: str) -> str:
        return str(self._root / repo_id)


def _messages(folder: Path) -> list[Path]:
    """The files of a thread's messages, the main one first."""
    return [*folder.glob("main.json"), *sorted(folder.glob("[0-9]*.json"))]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)[:80].lstrip(".") or "-"

"""Plays Slack's Web API: channels, threads, edits, metadata, file uploads; its limits and its errors."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from ci_pipeline_tests.servers.base import Request, Response, Server

Message = dict[str, Any]


class SlackServer(Server):
    """`api_url` goes to the client. `pace`: messages per second and channel that Slack accepts; 0 is no limit."""

    def __init__(self, channels: tuple[str, ...] = ("ci",), pace: float = 0.0, page: int = 200) -> None:
        super().__init__()
        self.ids = {name: f"C0000000{number}" for number, name in enumerate(channels, 1)}
        self.posted: dict[str, list[Message]] = {id: [] for id in self.ids.values()}
        self.files: dict[str, dict[str, Any]] = {}
        self.content: dict[str, bytes] = {}  # of files, by id
        self.denied_scopes: set[str] = set()  # methods that answer missing_scope
        self.scopes = "chat:write,files:write,channels:read,channels:history,groups:read"
        self.left: set[str] = set()  # ids of channels that the bot is not in
        self.pace = pace
        self.page = page
        self._next_post: dict[str, float] = {}
        self._ts = 0

    @property
    def api_url(self) -> str:
        return f"{self.url}/api/"

    def channel(self, name: str = "ci") -> list[Message]:
        return self.posted[self.ids[name]]

    def calls(self, method: str) -> list[dict[str, Any]]:
        return [_arguments(request) for request in self.requests if request.path == f"/api/{method}"]

    def handle(self, request: Request) -> Response:
        with self._lock:
            if request.path.startswith("/upload/"):
                self.content[request.path.removeprefix("/upload/")] = request.body
                return Response(body=b"OK")
            method = request.path.removeprefix("/api/")
            arguments = _arguments(request)
            if request.headers.get("authorization") != "Bearer xoxb-test":
                return _refused("invalid_auth")
            if method in self.denied_scopes:
                return _refused("missing_scope")
            answer = getattr(self, "_" + method.replace(".", "_"))(arguments)
            return answer if isinstance(answer, Response) else Response(body={"ok": True, **answer})

    def _auth_test(self, arguments: dict[str, Any]) -> Any:
        return Response(200, {"ok": True, "team": "Acme", "user": "ci-bot"}, {"X-OAuth-Scopes": self.scopes})

    def _chat_postMessage(self, arguments: dict[str, Any]) -> Any:
        channel = self.ids.get(arguments["channel"].lstrip("#"), arguments["channel"])
        if channel not in self.posted:
            return _refused("channel_not_found")
        if error := refusal(arguments):
            return _refused(error)
        if self.pace:
            now = time.monotonic()
            if now < self._next_post.get(channel, 0.0):
                return Response(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "1"})
            self._next_post[channel] = now + 1 / self.pace - 0.05
        message = {"ts": self._new_ts(), "bot_id": "B1", **_content(arguments)}
        if thread_ts := arguments.get("thread_ts"):
            if not any(known["ts"] == thread_ts for known in self.posted[channel]):
                return _refused("thread_not_found")
            message["thread_ts"] = thread_ts
        self.posted[channel].append(message)
        return {"channel": channel, "ts": message["ts"], "message": message}

    def _chat_update(self, arguments: dict[str, Any]) -> Any:
        if arguments["channel"] not in self.posted:
            return _refused("channel_not_found")  # names do not do here
        message = self._message(arguments["channel"], arguments["ts"])
        if message is None:
            return _refused("message_not_found")
        if error := refusal(arguments):
            return _refused(error)
        message |= {"edited": {"ts": self._new_ts()}, **_content(arguments)}
        return {"channel": arguments["channel"], "ts": message["ts"]}

    def _chat_delete(self, arguments: dict[str, Any]) -> Any:
        message = self._message(arguments["channel"], arguments["ts"])
        if message is None:
            return _refused("message_not_found")
        self.posted[arguments["channel"]].remove(message)
        return {"ts": arguments["ts"]}

    def _chat_getPermalink(self, arguments: dict[str, Any]) -> Any:
        if self._message(arguments["channel"], arguments["message_ts"]) is None:
            return _refused("message_not_found")
        ts = arguments["message_ts"].replace(".", "")
        return {"permalink": f"https://example.slack.com/archives/{arguments['channel']}/p{ts}"}

    def _conversations_list(self, arguments: dict[str, Any]) -> Any:
        if "private_channel" in arguments["types"] and "groups:read" not in self.scopes:
            return Response(body={"ok": False, "error": "missing_scope", "needed": "groups:read"})
        return self._paged("channels", [{"id": id, "name": name} for name, id in self.ids.items()], arguments)

    def _conversations_info(self, arguments: dict[str, Any]) -> Any:
        id = arguments["channel"]
        if id not in self.posted:
            return _refused("channel_not_found")  # names do not do here
        return {"channel": {"id": id, "is_member": id not in self.left}}

    def _conversations_history(self, arguments: dict[str, Any]) -> Any:
        if arguments["channel"] not in self.posted:
            return _refused("channel_not_found")
        oldest = float(arguments.get("oldest") or 0)
        found = [m for m in reversed(self.posted[arguments["channel"]]) if float(m["ts"]) > oldest]
        return self._paged("messages", [_shown(m, arguments) for m in found if "thread_ts" not in m], arguments)

    def _conversations_replies(self, arguments: dict[str, Any]) -> Any:
        if self._message(arguments["channel"], arguments["ts"]) is None:
            return _refused("thread_not_found")
        found = [m for m in self.posted[arguments["channel"]] if arguments["ts"] in (m["ts"], m.get("thread_ts"))]
        return self._paged("messages", [_shown(m, arguments) for m in found], arguments)

    def _files_getUploadURLExternal(self, arguments: dict[str, Any]) -> Any:
        id = f"F{len(self.files):08d}"
        self.files[id] = {"id": id, "name": arguments["filename"], "size": int(arguments["length"])}
        return {"upload_url": f"{self.url}/upload/{id}", "file_id": id}

    def _files_completeUploadExternal(self, arguments: dict[str, Any]) -> Any:
        asked = json.loads(arguments["files"])
        if any(len(self.content.get(file["id"], b"")) != self.files[file["id"]]["size"] for file in asked):
            return _refused("upload_incomplete")
        files = [self.files[file["id"]] | {"title": file.get("title")} for file in asked]
        message: Message = {"ts": self._new_ts(), "bot_id": "B1", "text": "", "files": files}
        message["thread_ts"] = arguments["thread_ts"]
        self.posted[arguments["channel_id"]].append(message)
        return {"files": files}

    def _files_delete(self, arguments: dict[str, Any]) -> Any:
        if self.files.pop(arguments["file"], None) is None:
            return _refused("file_not_found")
        for messages in self.posted.values():
            messages[:] = [m for m in messages if [f["id"] for f in m.get("files", ())] != [arguments["file"]]]
        return {}

    def _message(self, channel: str, ts: str) -> Message | None:
        return next((m for m in self.posted.get(channel, ()) if m["ts"] == ts), None)

    def _new_ts(self) -> str:
        self._ts += 1
        return f"{time.time():.0f}.{self._ts:06d}"

    def _paged(self, name: str, items: list[Any], arguments: dict[str, Any]) -> dict[str, Any]:
        start = int(arguments.get("cursor") or 0)
        size = min(int(arguments.get("limit") or 100), self.page)
        after = str(start + size) if start + size < len(items) else ""
        return {name: items[start : start + size], "response_metadata": {"next_cursor": after}}


def _arguments(request: Request) -> dict[str, Any]:
    return request.json() if request.body[:1] == b"{" else request.form()


def _content(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in ("text", "blocks", "metadata") if name in arguments}


def _shown(message: Message, arguments: dict[str, Any]) -> Message:
    asked = str(arguments.get("include_all_metadata", "")).lower() in ("1", "true")
    return message if asked else {name: value for name, value in message.items() if name != "metadata"}


def _refused(error: str) -> Response:
    return Response(body={"ok": False, "error": error})


def refusal(arguments: dict[str, Any]) -> str:
    """Slack's word for what is wrong with a message, or ""."""
    blocks = arguments.get("blocks") or []
    if not blocks and not arguments.get("text"):
        return "no_text"
    if len(arguments.get("text") or "") > 40_000:
        return "msg_too_long"
    if len(blocks) > 50 or any(not _valid(block) for block in blocks):
        return "invalid_blocks"
    if sum(_length(block) for block in blocks) > 12_000:
        return "msg_blocks_too_long"
    return ""


def _valid(block: dict[str, Any]) -> bool:
    text = block.get("text")
    limit = {"header": 150, "section": 3000}.get(block["type"], 0)
    buttons = [*block.get("elements", ()), *filter(None, [block.get("accessory")])]
    return (
        (not limit or (isinstance(text, dict) and 0 < len(text["text"]) <= limit))
        and (block["type"] != "header" or text["type"] == "plain_text")
        and len(block.get("elements", ())) <= {"actions": 25, "context": 10}.get(block["type"], 0)
        and all(
            re.match("https?://", button["url"]) and len(button["url"]) <= 3000 and len(button["text"]["text"]) <= 75
            for button in buttons
            if button["type"] == "button"
        )
        and all(0 < len(e["text"]) <= 3000 for e in block.get("elements", ()) if e["type"] == "mrkdwn")
    )


def _length(value: Any) -> int:
    if isinstance(value, dict):
        return sum(len(v) if k == "text" and isinstance(v, str) else _length(v) for k, v in value.items())
    return sum(map(_length, value)) if isinstance(value, list) else 0

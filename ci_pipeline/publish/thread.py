"""A Slack thread, and its delivery: what is new is posted, what changed is edited, what is the same is left alone."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, Protocol

from ci_pipeline.model import CiRun
from ci_pipeline.publish.ledger import Delivered, Ledger, name_of
from ci_pipeline.publish.mrkdwn import escape
from ci_pipeline.publish.slack import EVENT_TYPE, Blocks, Metadata, SlackRefused, SlackUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlackMessage:
    """`key` says which message of its thread it is; processed again, the message of the same key is edited.

    `text` is what notifications show, and what is posted alone where Slack refuses the blocks.
    """

    key: str
    text: str
    blocks: Blocks = ()


@dataclass(frozen=True, slots=True)
class SlackFile:
    """A text file in a thread. Its name is its key."""

    name: str
    title: str
    content: str


@dataclass(frozen=True, slots=True)
class SlackThread:
    """One main message, its replies in order, and files."""

    main: SlackMessage
    replies: Sequence[SlackMessage] = ()
    files: Sequence[SlackFile] = ()


class Slack(Protocol):
    """What delivery needs of Slack: `SlackClient`, or `SlackOutbox` where there is no token.

    A message is known by its channel and its `ts`. A channel is known by its name or its id.
    """

    where: Literal["slack", "outbox"]

    def channel_id(self, channel: str) -> str: ...

    def post(
        self, channel: str, text: str, blocks: Blocks, thread_ts: str | None = None, metadata: Metadata | None = None
    ) -> str: ...

    def update(self, channel: str, ts: str, text: str, blocks: Blocks, metadata: Metadata | None = None) -> None: ...

    def delete(self, channel: str, ts: str) -> None: ...

    def upload(self, channel: str, thread_ts: str, name: str, title: str, content: str) -> str: ...

    def delete_file(self, channel: str, file_id: str) -> None: ...

    def messages(
        self, channel: str, thread_ts: str | None = None, oldest: float = 0.0
    ) -> Iterable[Mapping[str, Any]]: ...

    def url(self, channel: str, ts: str) -> str: ...


def deliver(
    thread: SlackThread, run: CiRun, test_job: str, channel: str, *, slack: Slack, ledger: Ledger, down: str = ""
) -> Delivered:
    """Bring a thread to Slack so that each of its messages is there once, however often this is called or killed.

    The thread is kept in the ledger until all of it is out. An older attempt of the run never overwrites a newer one.
    `down`: why Slack could not be had a moment ago; then it is not asked again now.

    Raises:
        SlackRefused: Slack said no, and a person has to act; the thread is kept.
    """
    name = name_of(run.repository, run.run_id, test_job, channel)
    kept, record = f"{slack.where}/pending/{name}", f"{slack.where}/sent/{name}"
    with ledger.lock(record):
        interrupted, sent = ledger.read(kept), ledger.read(record)
        newest = max((entry["run_attempt"] for entry in (interrupted, sent) if entry), default=0)
        if newest > run.run_attempt:
            url = sent["url"] if sent else ""
            return Delivered("superseded", url, f"attempt {newest} of the CI run is already reported")
        pending = {
            "repository": run.repository,
            "run_id": run.run_id,
            "run_attempt": run.run_attempt,
            "run_created_at": run.created_at.timestamp() if run.created_at else None,
            "test_job": test_job,
            "channel": channel,
            "thread": asdict(thread),
        }
        ledger.write(kept, pending)
        if down:
            return Delivered("pending", detail=down)
        try:
            return _Delivery(name, pending, slack, ledger).send(look_first=interrupted is not None)
        except SlackUnavailable as unavailable:
            log.warning("%s; the report is kept for later", unavailable)
            return Delivered("pending", detail=str(unavailable))


def deliver_pending(*, slack: Slack, ledger: Ledger) -> list[Delivered]:
    """Deliver what is kept, oldest first; ends early when Slack is still not available."""
    delivered: list[Delivered] = []
    folder = f"{slack.where}/pending/"
    for kept in ledger.names(folder):
        name = kept.removeprefix(folder)
        with ledger.lock(f"{slack.where}/sent/{name}"):
            pending = ledger.read(kept)
            if pending is None:
                continue  # another process was faster
            try:
                delivered.append(_Delivery(name, pending, slack, ledger).send(look_first=True))
            except SlackUnavailable as unavailable:
                return [*delivered, Delivered("pending", detail=str(unavailable))]
            except SlackRefused as refused:
                log.error("%s; its thread is kept", refused)
                delivered.append(Delivered("pending", detail=str(refused)))
    return delivered


_IDENTITY = ("repository", "run_id", "test_job")


class _Delivery:
    """One thread on its way. `messages`: what is in Slack, `{"id": ts or file id, "hash": of its content}` by key."""

    def __init__(self, name: str, pending: dict[str, Any], slack: Slack, ledger: Ledger) -> None:
        self.name, self.pending, self.slack, self.ledger = name, pending, slack, ledger
        sent = ledger.read(f"{slack.where}/sent/{name}")
        self.channel: str = sent["channel_id"] if sent else pending["channel"]
        self.messages: dict[str, dict[str, str]] = sent["messages"] if sent else {}
        self.url: str = sent["url"] if sent else ""
        self.wanted: set[str] = set()
        self.counts = {"posted": 0, "edited": 0, "removed": 0}

    def send(self, *, look_first: bool) -> Delivered:
        """Bring Slack to what the thread says. `look_first`: an earlier delivery was cut off, nobody knows where."""
        thread = self.pending["thread"]
        if look_first:
            self.messages = {**self._found_in_slack(), **self.messages}

        main = self._say(thread["main"], None)
        for reply in thread["replies"]:
            self._say(reply, main)
        for file in thread["files"]:
            self._attach(file, main)
        for key in self.messages.keys() - self.wanted:
            self._remove(key)

        if not self.url:
            self.url = self.slack.url(self.channel, main)
        self._record()
        self.ledger.remove(f"{self.slack.where}/pending/{self.name}")
        said = ", ".join(f"{count} {what}" for what, count in self.counts.items() if count)
        return Delivered(self.slack.where, self.url, f"{self.pending['channel']}: {said or 'nothing changed'}")

    def _say(self, message: Mapping[str, Any], thread_ts: str | None) -> str:
        """Post a message, or edit it where it is known; its `ts`."""
        key: str = message["key"] if thread_ts else "main"
        self.wanted.add(key)
        known, digest = self.messages.get(key), _hash([message["text"], message["blocks"]])
        if known and known["hash"] == digest:
            return known["id"]
        metadata = self._metadata(key, digest)
        if known:
            try:
                self.slack.update(self.channel, known["id"], message["text"], message["blocks"], metadata)
                self.counts["edited"] += 1
                self._remember(key, known["id"], digest)
                return known["id"]
            except SlackRefused as refused:
                if refused.reason not in ("message_not_found", "cant_update_message", "edit_window_closed"):
                    raise
                log.warning("%s; posting it anew", refused)
                if key == "main":
                    self.messages, self.url = {}, ""  # its thread went with it
        ts = self.slack.post(self.channel, message["text"], message["blocks"], thread_ts, metadata)
        self.channel = self.slack.channel_id(self.channel)
        self.counts["posted"] += 1
        self._remember(key, ts, digest)
        return ts

    def _attach(self, file: Mapping[str, str], thread_ts: str) -> None:
        """Upload a file; Slack cannot edit one, so the new one replaces the old."""
        key = _file_key(file["name"])
        known, digest = self.messages.get(key), _hash(file["content"])
        self.wanted.add(key)
        if known and known["hash"] == digest:
            return
        try:
            file_id = self.slack.upload(self.channel, thread_ts, file["name"], file["title"], file["content"])
        except SlackRefused as refused:
            log.warning("%s; the thread says so", refused)
            text = (
                f"⚠️ {escape(file['title'])}: the file {escape(file['name'])} could not be attached ({refused.reason})"
            )
            self._say({"key": f"no {key}", "text": text, "blocks": []}, thread_ts)
            return
        self.counts["edited" if known else "posted"] += 1
        self._remember(key, file_id, digest)
        if known and known["id"] != file_id:
            self._delete(key, known["id"])

    def _remove(self, key: str) -> None:
        self._delete(key, self.messages.pop(key)["id"])
        self.counts["removed"] += 1
        self._record()

    def _delete(self, key: str, id: str) -> None:
        try:
            (self.slack.delete_file if key.startswith(_file_key("")) else self.slack.delete)(self.channel, id)
        except SlackRefused as refused:
            log.warning("%s; it stays in the thread", refused)

    def _found_in_slack(self) -> dict[str, dict[str, str]]:
        """Our messages of this thread, by their metadata; files by their names."""
        since: float = self.pending["run_created_at"] or time.time() - 7 * 24 * 3600
        try:
            history = islice(self.slack.messages(self.channel, None, since), 5000)
            main = self.messages.get("main") or next((sent for key, sent in map(self._ours, history) if key), None)
            if main is None:
                return {}
            found = {"main": main}
            names = {file["name"] for file in self.pending["thread"]["files"]}
            for message in self.slack.messages(self.channel, main["id"]):
                key, sent = self._ours(message)
                found |= {key: sent} if key else {}
                ours = (file for file in message.get("files", ()) if file.get("name") in names)
                found |= {_file_key(file["name"]): {"id": file["id"], "hash": ""} for file in ours}
            return found
        except SlackRefused as refused:
            log.warning("Cannot look what went out before, so messages may be there twice: %s", refused)
            return {}

    def _ours(self, message: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """The key of a message of this thread, and what to remember of it; "" for anybody else's."""
        payload: dict[str, Any] = (message.get("metadata") or {}).get("event_payload") or {}
        ours = all(payload.get(name) == self.pending[name] for name in _IDENTITY)
        return payload.get("key", "") if ours else "", {"id": message["ts"], "hash": payload.get("hash", "")}

    def _metadata(self, key: str, digest: str) -> Metadata:
        payload = {name: self.pending[name] for name in (*_IDENTITY, "run_attempt")}
        return {"event_type": EVENT_TYPE, "event_payload": payload | {"key": key, "hash": digest}}

    def _remember(self, key: str, id: str, digest: str) -> None:
        self.messages[key] = {"id": id, "hash": digest}
        self._record()

    def _record(self) -> None:
        record = {
            "run_attempt": self.pending["run_attempt"],
            "channel_id": self.channel,
            "url": self.url,
            "messages": self.messages,
        }
        self.ledger.write(f"{self.slack.where}/sent/{self.name}", record)


def _file_key(name: str) -> str:
    return f"file:{name}"


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:32]

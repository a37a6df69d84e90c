"""Delivers a thread to Slack, once: posts what is new, edits what changed, leaves alone what is the same."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Literal

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

if TYPE_CHECKING:
    from slack_sdk.http_retry.handler import RetryHandler
    from slack_sdk.http_retry.response import HttpResponse
    from slack_sdk.http_retry.state import RetryState

log = logging.getLogger(__name__)

Blocks = Sequence[Mapping[str, Any]]
Metadata = Mapping[str, Any]

EVENT_TYPE = "ci_pipeline_report"
"""Marks our messages in a channel: `metadata.event_type`; `metadata.event_payload` says which message it is."""

TEXT_LIMIT = 12_000
"""Characters of a message's own text. Slack admits 40,000 and recommends less."""

TIMEOUT = 30
"""Seconds that Slack may be silent."""

PATIENCE = 120
"""Seconds that one 429 may ask us to wait."""

TRIES = 5

TIRING = 45
"""Seconds after which two tries are enough: Slack takes long to say nothing."""

DOWN = 60
"""Seconds for which one try is enough, where Slack was given up before."""

CLOCKS = 3600
"""Seconds by which Slack's clock may be behind ours."""

SCOPES = ("chat:write", "files:write", "channels:read", "channels:history")
"""What the bot may do. For private channels, `groups:…` in place of `channels:…`."""

_BLOCKS_REFUSED = {"invalid_blocks", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long", "too_many_blocks"}
_TEMPORARY = {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "ratelimited", "rate_limited"}

_SDK_LOG = logging.Logger("slack_sdk", logging.CRITICAL)  # what it calls an error is tried again, and told by us


class SlackError(RuntimeError):
    """A message did not go out. The text is one line that says why."""


class SlackUnavailable(SlackError):
    """Slack cannot be reached or is not well: later, the same call may succeed."""


class SlackRefused(SlackError):
    """Slack said no: a wrong token, an unknown channel, a message that is gone. `reason` is Slack's word for it."""

    def __init__(self, method: str, reason: str, subject: str, needed: str = "") -> None:
        hint = f"the bot needs {needed}" if needed else _HINTS.get(reason, "")
        super().__init__(f"Slack refused {method} for {subject}: {reason}{hint and f': {hint}'}")
        self.reason = reason


_HINTS = {
    "invalid_auth": "check CI_SLACK_BOT_TOKEN",
    "not_authed": "check CI_SLACK_BOT_TOKEN",
    "account_inactive": "check CI_SLACK_BOT_TOKEN",
    "token_revoked": "check CI_SLACK_BOT_TOKEN",
    "channel_not_found": "check SLACK_REPORT_CHANNEL, and invite the bot",
    "not_in_channel": "invite the bot to the channel",
    "missing_scope": f"the bot needs {', '.join(SCOPES)}",
}


class SlackClient:
    """Slack's Web API. Waits as long as a 429 says, tries server errors again, and never posts a message twice.

    Raises:
        SlackUnavailable: Slack stayed unreachable.
        SlackRefused: Slack said no.
    """

    where: Literal["slack", "outbox"] = "slack"

    def __init__(self, token: str, api_url: str) -> None:
        from slack_sdk.http_retry.builtin_handlers import ConnectionErrorRetryHandler, ServerErrorRetryHandler

        from ci_pipeline.publish.keep_alive import KeepAliveClient

        rate_limit = _rate_limit_handler()
        # After a lost answer nobody knows whether the message went out: only calls that may be repeated are.
        self._once = KeepAliveClient(token, api_url, timeout=TIMEOUT, retry_handlers=[rate_limit], logger=_SDK_LOG)
        self._web = KeepAliveClient(
            token,
            api_url,
            timeout=TIMEOUT,
            logger=_SDK_LOG,
            retry_handlers=[
                rate_limit,
                ServerErrorRetryHandler(max_retry_count=3),
                ConnectionErrorRetryHandler(max_retry_count=3),
            ],
        )
        self._retrying = Retrying(
            retry=retry_if_exception_type(SlackUnavailable),
            wait=wait_exponential_jitter(initial=1, max=20),
            stop=self._gives_up,
            before_sleep=lambda state: log.warning(
                "%s: trying again in %.0f s", state.outcome and state.outcome.exception(), state.upcoming_sleep
            ),
            reraise=True,
        )
        self._ids: dict[str, str] = {}  # of channels, by name
        self._down_until = 0.0  # as time.monotonic() has it

    def who(self) -> tuple[str, list[str]]:
        """The bot and its workspace, and which of `SCOPES` it lacks. Asks once."""
        answer = self._answer(self._once.auth_test)
        said = next((value for name, value in answer.headers.items() if name.lower() == "x-oauth-scopes"), None)
        granted = SCOPES if said is None else re.split(r",\s*", said.replace("groups:", "channels:"))
        who = f"@{answer.get('user')} in {answer.get('team')}"
        return who, [scope for scope in SCOPES if scope not in granted]

    def is_in(self, channel: str) -> bool:
        """Whether the bot is in a channel, as it must be. It is in none that does not exist."""
        try:
            answer = self._call(self._web.conversations_info, channel=self.channel_id(channel))
        except SlackRefused as refused:
            if refused.reason != "channel_not_found":
                raise
            return False
        return bool((answer.get("channel") or {}).get("is_member", True))  # of a direct message it does not say

    def post(
        self, channel: str, text: str, blocks: Blocks, thread_ts: str | None = None, metadata: Metadata | None = None
    ) -> str:
        """Post a message; its `ts`. Where an answer was lost, the message is looked for before it is sent again."""
        metadata = metadata or {"event_type": EVENT_TYPE, "event_payload": {"key": uuid.uuid4().hex}}
        began = time.time() - CLOCKS
        for attempt in self._retrying:
            with attempt:
                if attempt.retry_state.attempt_number > 1 and (ts := self._find(channel, thread_ts, metadata, began)):
                    return ts
                answer = self._with_blocks(
                    self._once.chat_postMessage, channel, text, blocks, thread_ts=thread_ts, metadata=metadata
                )
                self._ids[_name(channel)] = str(answer.get("channel") or channel)
                return _held("chat.postMessage", channel, answer, "ts")
        raise AssertionError("unreachable")

    def update(self, channel: str, ts: str, text: str, blocks: Blocks, metadata: Metadata | None = None) -> None:
        """Edit a message in place."""
        channel = self.channel_id(channel)
        self._with_blocks(self._web.chat_update, channel, text, blocks, ts=ts, metadata=metadata)

    def delete(self, channel: str, ts: str) -> None:
        """Delete a message; one that is gone already is no error."""
        self._unless_gone(self._web.chat_delete, channel=self.channel_id(channel), ts=ts)

    def upload(self, channel: str, thread_ts: str, name: str, title: str, content: str) -> str:
        """Put a text file into a thread; its id. Where an answer was lost, the file is looked for first."""
        channel, data = self.channel_id(channel), content.encode(errors="backslashreplace")
        for attempt in self._retrying:
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    for message in self.messages(channel, thread_ts):
                        for file in message.get("files", ()):
                            if file.get("name") == name and file.get("size", len(data)) == len(data):
                                return str(file["id"])
                answer = self._call(
                    self._once.files_upload_v2,
                    channel=channel,
                    thread_ts=thread_ts,
                    filename=name,
                    title=title,
                    content=data,
                )
                return _held("files.upload", channel, answer.get("file") or {}, "id")
        raise AssertionError("unreachable")

    def delete_file(self, channel: str, file_id: str) -> None:
        """Delete a file, and with it the message that shared it."""
        self._unless_gone(self._web.files_delete, file=file_id)

    def url(self, channel: str, ts: str) -> str:
        """Where a person reads a message; "" where Slack does not say."""
        try:
            answer = self._call(self._web.chat_getPermalink, channel=self.channel_id(channel), message_ts=ts)
            return str(answer.get("permalink") or "")
        except SlackError as error:
            log.info("No link to the message: %s", error)
            return ""

    def messages(self, channel: str, thread_ts: str | None = None, oldest: float = 0.0) -> Iterator[dict[str, Any]]:
        """Messages of a channel (newest first) or of a thread (oldest first), as Slack spells them."""
        call = self._web.conversations_replies if thread_ts else self._web.conversations_history
        arguments = {"ts": thread_ts} if thread_ts else {}
        cursor: str | None = None
        while cursor != "":
            answer = self._call(
                call,
                channel=self.channel_id(channel),
                oldest=f"{oldest:.6f}",
                include_all_metadata=True,
                limit=200,
                cursor=cursor,
                **arguments,
            )
            yield from answer.get("messages", ())
            cursor = str((answer.get("response_metadata") or {}).get("next_cursor") or "")

    def channel_id(self, channel: str) -> str:
        """The id of a channel: posting takes its name, everything else wants its id. Where no id is known, its name."""
        if re.fullmatch(r"[CDG][A-Z0-9]{7,}", channel):
            return channel
        if _name(channel) not in self._ids:
            try:
                self._list_channels("public_channel,private_channel")
            except SlackRefused as refused:
                if refused.reason != "missing_scope":
                    raise
                self._list_channels("public_channel")  # for the others the bot would need groups:read
        return self._ids.get(_name(channel), channel)

    def _list_channels(self, types: str) -> None:
        cursor: str | None = None
        while cursor != "":
            answer = self._call(
                self._web.conversations_list, types=types, exclude_archived=True, limit=1000, cursor=cursor
            )
            self._ids |= {_name(str(known["name"])): str(known["id"]) for known in answer.get("channels", ())}
            cursor = str((answer.get("response_metadata") or {}).get("next_cursor") or "")

    def _find(self, channel: str, thread_ts: str | None, metadata: Metadata, oldest: float) -> str:
        """The `ts` of the message that carries this metadata, or ""."""
        try:
            for message in self.messages(channel, thread_ts, oldest):
                if (message.get("metadata") or {}).get("event_payload") == metadata["event_payload"]:
                    return str(message["ts"])
        except SlackRefused as refused:
            log.warning("Cannot look whether the message went out, so it may be posted twice: %s", refused)
        return ""

    def _with_blocks(
        self, call: Callable[..., Any], channel: str, text: str, blocks: Blocks, **arguments: Any
    ) -> dict[str, Any]:
        """Send text and blocks; where Slack refuses the blocks, their text alone: a report must not be lost to them."""
        try:
            return self._call(call, channel=channel, text=text, blocks=blocks or None, **arguments)
        except SlackRefused as refused:
            if refused.reason not in _BLOCKS_REFUSED or not blocks:
                raise
            log.warning("%s; sending its text without blocks", refused)
            return self._call(call, channel=channel, text=plain_text(text, blocks), **arguments)

    def _unless_gone(self, call: Callable[..., Any], **arguments: Any) -> None:
        try:
            self._call(call, **arguments)
        except SlackRefused as refused:
            if refused.reason not in ("message_not_found", "file_not_found", "file_deleted"):
                raise

    def _gives_up(self, state: RetryCallState) -> bool:
        now = time.monotonic()
        tries = 1 if now < self._down_until else 2 if now > state.start_time + TIRING else TRIES
        if state.attempt_number < tries:
            return False
        self._down_until = now + DOWN
        return True

    def _call(self, call: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        return self._answer(call, **arguments).data

    def _answer(self, call: Callable[..., Any], **arguments: Any) -> Any:
        """slack_sdk's answer, headers and all."""
        from slack_sdk.errors import SlackApiError, SlackClientError

        method = call.__name__.replace("_", ".", 1)
        subject = str(arguments.get("channel", "this token"))
        try:
            answer = call(**arguments)
        except SlackApiError as error:
            status: int = error.response.status_code
            said: dict[str, Any] = error.response.data or {}
            reason = str(said.get("error", "no reason given"))
            if status == 429 or status >= 500 or reason in _TEMPORARY or not re.fullmatch(r"\w+", reason):
                raise SlackUnavailable(f"Slack is not available for {method}: HTTP {status}, {reason[:200]}") from error
            raise SlackRefused(method, reason, subject, str(said.get("needed", ""))) from error
        except (OSError, HTTPException, SlackClientError) as error:
            raise SlackUnavailable(f"Slack cannot be reached for {method}: {error}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SlackRefused(method, f"its answer is not understood: {error!r}", subject) from error
        self._down_until = 0.0
        return answer


def _name(channel: str) -> str:
    """A channel's name with its `#`, which people leave out."""
    return f"#{channel.lstrip('#')}"


def _held(method: str, subject: str, answer: Mapping[str, Any], key: str) -> str:
    if not answer.get(key):
        raise SlackRefused(method, f"its answer holds no {key}", subject)
    return str(answer[key])


def _rate_limit_handler() -> RetryHandler:
    """Waits exactly as long as Slack says; slack_sdk's own adds up to a second, which doubles a thread's time."""
    from slack_sdk.http_retry.builtin_handlers import RateLimitErrorRetryHandler

    class Handler(RateLimitErrorRetryHandler):
        def _can_retry(self, *, response: HttpResponse | None = None, **others: Any) -> bool:
            return response is not None and response.status_code == 429 and _retry_after(response) <= PATIENCE

        def prepare_for_next_attempt(
            self, *, state: RetryState, response: HttpResponse | None = None, **others: Any
        ) -> None:
            assert response is not None
            state.next_attempt_requested = True
            time.sleep(_retry_after(response))
            state.increment_current_attempt()

    return Handler(max_retry_count=20)


def _retry_after(response: HttpResponse) -> float:
    """Seconds."""
    said = next((value for name, value in response.headers.items() if name.lower() == "retry-after"), ["1"])
    return float(said[0]) if said[0].isdigit() else 1.0


def plain_text(text: str, blocks: Blocks) -> str:
    """A message without blocks: its own text, then what its blocks say."""
    said = [str((block.get("text") or {}).get("text", "")) for block in blocks]
    return "\n\n".join(part for part in (text, *said) if part)[:TEXT_LIMIT]

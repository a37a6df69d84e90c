"""The client against a server that plays Slack."""

import socket
import socketserver
import threading
import time

import pytest

from ci_pipeline.publish.slack import SlackClient, SlackRefused, SlackUnavailable
from ci_pipeline_tests.servers.base import Response
from ci_pipeline_tests.servers.slack import SlackServer

SECTION = [{"type": "section", "text": {"type": "mrkdwn", "text": "*one* failure"}}]


def test_a_message_goes_to_a_channel_by_its_name(slack: SlackClient, slack_server: SlackServer):
    ts = slack.post("#ci", "one failure", SECTION)
    assert [(m["ts"], m["text"], m["blocks"]) for m in slack_server.channel()] == [(ts, "one failure", SECTION)]


def test_a_bot_that_may_not_list_private_channels_finds_the_others(slack: SlackClient, slack_server: SlackServer):
    slack_server.scopes = "channels:read"
    assert slack.channel_id("#ci") == slack_server.ids["ci"]
    assert [(call["types"], call["exclude_archived"]) for call in slack_server.calls("conversations.list")] == [
        ("public_channel,private_channel", "1"),
        ("public_channel", "1"),
    ]


def test_a_channel_may_be_named_without_its_hash_and_is_looked_up_once(slack: SlackClient, slack_server: SlackServer):
    assert [slack.channel_id(name) for name in ("ci", "#ci", "ci")] == [slack_server.ids["ci"]] * 3
    assert len(slack_server.calls("conversations.list")) == 1


def test_a_list_that_does_not_speak_of_a_next_page_is_at_its_end(slack: SlackClient, slack_server: SlackServer):
    slack_server.fail("conversations.list", status=200, body={"ok": True, "channels": [{"name": "x", "id": "C7"}]})
    assert slack.channel_id("#x") == "C7"
    slack_server.fail("conversations.history", status=200, body={"ok": True, "messages": [{"ts": "1.1"}]})
    assert list(slack.messages("#x")) == [{"ts": "1.1"}]
    assert len(slack_server.requests) == 2


def test_what_slack_does_not_say_of_the_bot_is_not_held_against_it(slack: SlackClient, slack_server: SlackServer):
    slack_server.fail("auth.test", status=200, body={"ok": True, "user": "bot", "team": "Acme"})
    assert slack.who() == ("@bot in Acme", [])
    slack_server.fail("conversations.info", status=200, body={"ok": True, "channel": {"id": "D00000001"}})
    assert slack.is_in("D00000001") is True


def test_a_thread_goes_out_on_one_connection(slack: SlackClient, slack_server: SlackServer):
    ts = slack.post("#ci", "one failure", SECTION)
    for _ in range(3):
        slack.post("#ci", "reply", SECTION, thread_ts=ts)
    assert slack_server.connections == 1


def test_a_connection_that_was_long_unused_is_not_trusted(
    slack: SlackClient, slack_server: SlackServer, monkeypatch: pytest.MonkeyPatch
):
    slack.post("#ci", "one failure", SECTION)
    monkeypatch.setattr("ci_pipeline.publish.keep_alive.IDLE", 0.0)
    slack.post("#ci", "another", SECTION)
    assert slack_server.connections == 2


def test_behind_a_proxy_slack_is_asked_through_it(slack_server: SlackServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", slack_server.url)
    SlackClient("xoxb-test", "http://slack.invalid/api/").post("#ci", "one failure", SECTION)
    assert slack_server.requests[0].headers["host"] == "slack.invalid"
    assert [m["text"] for m in slack_server.channel()] == ["one failure"]


@pytest.mark.usefixtures("short_waits")
def test_the_token_is_never_sent_in_the_clear_where_the_address_is_https(slack_server: SlackServer):
    with pytest.raises(SlackUnavailable, match="SSL"):
        SlackClient("xoxb-test", slack_server.api_url.replace("http:", "https:")).post("#ci", "one failure", SECTION)
    assert slack_server.requests == []


def test_an_answer_in_two_pieces_is_acknowledged_at_once(slack: SlackClient, slack_server: SlackServer):
    slack_server.in_two_pieces = True
    start = time.monotonic()
    for _ in range(30):
        slack.post("#ci", "one failure", SECTION)
    assert time.monotonic() - start < 30 * 0.03  # Linux acknowledges after 0.04


@pytest.mark.usefixtures("short_waits")
def test_a_connection_that_slack_closed_in_between_is_opened_again(slack: SlackClient, slack_server: SlackServer):
    slack.post("#ci", "one failure", SECTION)
    slack_server.fail("chat.postMessage", cut=True, after=True)
    slack.post("#ci", "another", SECTION)
    slack.post("#ci", "a third", SECTION)
    assert [m["text"] for m in slack_server.channel()] == ["one failure", "another", "a third"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (502, b"<html>"),
        (502, b"<html>\xe9"),
        (502, b'{"ok": fal'),
        (502, b""),
        (500, b'{"error": "oops"}'),
        (200, b"<html>"),
    ],
)
def test_a_gateway_that_answers_in_slacks_place_is_slack_being_away(
    slack: SlackClient, slack_server: SlackServer, status: int, body: bytes
):
    slack_server.handle = lambda request: Response(status, body)
    with pytest.raises(SlackUnavailable, match=f"HTTP {status}"):
        slack.update("C00000001", "1.1", "text", SECTION)


def test_after_a_429_it_waits_exactly_as_long_as_slack_says(slack: SlackClient, slack_server: SlackServer):
    slack_server.fail("chat.postMessage", status=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    slack.post("#ci", "text", SECTION)
    assert 1 <= time.monotonic() - start < 1.5
    assert len(slack_server.channel()) == 1


def test_a_429_that_asks_for_an_hour_is_not_waited_for(slack: SlackClient, slack_server: SlackServer):
    slack_server.fail("chat.update", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(SlackUnavailable, match="HTTP 429"):
        slack.update("C00000001", "1.1", "text", SECTION)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "soon"}], ids=str)
def test_after_a_429_that_does_not_say_how_long_to_wait_it_is_tried_again(
    slack: SlackClient, slack_server: SlackServer, headers: dict
):
    slack_server.fail("chat.postMessage", status=429, headers=headers)
    slack.post("#ci", "text", SECTION)
    assert len(slack_server.channel()) == 1


@pytest.mark.usefixtures("short_waits")
def test_a_429_that_never_ends_is_given_up(slack: SlackClient, slack_server: SlackServer):
    slack_server.fail("chat.update", status=429, headers={"Retry-After": "1"}, times=99)
    with pytest.raises(SlackUnavailable, match="HTTP 429"):
        slack.update("C00000001", "1.1", "text", SECTION)
    assert len(slack_server.requests) == 1 + 20


@pytest.mark.parametrize(("body", "holds"), [({"ok": True}, "holds no ts"), ([1], "not understood")])
def test_an_answer_that_slack_would_not_give_is_not_asked_for_again(
    slack: SlackClient, slack_server: SlackServer, body: object, holds: str
):
    slack_server.fail("", status=200, body=body, times=9)
    with pytest.raises(SlackRefused, match=holds):
        slack.post("#ci", "one failure", SECTION)
    with pytest.raises(SlackRefused, match="not understood"):
        slack.upload("C00000001", "1.1", "failures.txt", "All failures", "text")
    assert len(slack_server.requests) == 2


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 503}, id="server error"),
        pytest.param({"status": 500, "after": True}, id="server error after it was posted"),
        pytest.param({"cut": True, "after": True}, id="answer cut off"),
        pytest.param({"status": 502, "after": True}, id="bad gateway after it was posted"),
        *(
            pytest.param({"status": 200, "body": {"ok": False, "error": error}}, id=error)
            for error in ("internal_error", "fatal_error", "service_unavailable", "request_timeout", "ratelimited")
        ),
    ],
)
def test_a_lost_answer_never_posts_twice(slack: SlackClient, slack_server: SlackServer, fault: dict):
    slack_server.fail("chat.postMessage", **fault)
    ts = slack.post("#ci", "text", SECTION)
    assert [m["ts"] for m in slack_server.channel()] == [ts]


@pytest.mark.usefixtures("short_waits")
def test_a_lost_answer_in_a_thread_never_posts_twice(slack: SlackClient, slack_server: SlackServer):
    slack_server.page = 2
    main = slack.post("#ci", "main", SECTION)
    for _ in range(3):
        slack.post("#ci", "same text", SECTION, thread_ts=main)
    slack_server.fail("chat.postMessage", status=504, after=True)
    slack.post("#ci", "same text", SECTION, thread_ts=main)
    assert len(slack_server.channel()) == 5


@pytest.mark.usefixtures("short_waits")
def test_a_message_is_looked_for_among_the_latest_alone(slack: SlackClient, slack_server: SlackServer):
    slack_server.channel().extend({"ts": f"{1_700_000_000 + n}.000001", "text": "of last year"} for n in range(1000))
    slack_server.channel().append({"ts": f"{time.time():.0f}.000001", "text": "somebody's"})
    slack_server.fail("chat.postMessage", status=503)
    slack.post("#ci", "text", SECTION)
    assert len(slack_server.channel()) == 1002
    assert len(slack_server.calls("conversations.history")) == 1


@pytest.mark.usefixtures("short_waits")
def test_without_the_right_to_look_a_message_is_rather_posted_twice_than_lost(
    slack: SlackClient, slack_server: SlackServer, caplog: pytest.LogCaptureFixture
):
    slack_server.denied_scopes = {"conversations.history", "conversations.list"}
    slack_server.fail("chat.postMessage", status=503)
    slack.post("#ci", "text", SECTION)
    assert len(slack_server.channel()) == 1
    assert "channels:history" in caplog.text


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param([{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}], id="section too long"),
        pytest.param(SECTION * 51, id="too many blocks"),
        pytest.param([{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 2500}}] * 5, id="too long in all"),
    ],
)
def test_blocks_that_slack_refuses_go_out_as_text(slack: SlackClient, slack_server: SlackServer, blocks: list):
    ts = slack.post("#ci", "12 failures", blocks)
    slack.update("#ci", ts, "13 failures", blocks)
    [message] = slack_server.channel()
    assert message["text"].startswith("13 failures\n\n")
    assert blocks[0]["text"]["text"][:100] in message["text"]


@pytest.mark.parametrize("error", ["invalid_blocks_format", "msg_too_long", "too_many_blocks"])
def test_what_slack_calls_too_long_goes_out_as_text(slack: SlackClient, slack_server: SlackServer, error: str):
    slack_server.fail("chat.postMessage", status=200, body={"ok": False, "error": error})
    slack.post("#ci", "1 failure", [{"type": "divider"}, *SECTION])
    [message] = slack_server.channel()
    assert (message["text"], "blocks" in message) == ("1 failure\n\n*one* failure", False)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": "not_authed"}, "not_authed: check CI_SLACK_BOT_TOKEN"),
        ({"error": "account_inactive"}, "account_inactive: check CI_SLACK_BOT_TOKEN"),
        ({"error": "token_revoked"}, "token_revoked: check CI_SLACK_BOT_TOKEN"),
        ({"error": "invalid_auth"}, "invalid_auth: check CI_SLACK_BOT_TOKEN"),
        ({"error": "channel_not_found"}, "channel_not_found: check SLACK_REPORT_CHANNEL, and invite the bot"),
        ({"error": "not_in_channel"}, "not_in_channel: invite the bot to the channel"),
        ({"error": "missing_scope", "needed": "groups:write"}, "missing_scope: the bot needs groups:write"),
        (
            {"error": "missing_scope"},
            "missing_scope: the bot needs chat:write, files:write, channels:read, channels:history",
        ),
        ({"error": "restricted_action"}, "restricted_action"),
    ],
)
def test_what_a_person_must_mend_is_said_in_one_line(
    slack: SlackClient, slack_server: SlackServer, answer: dict, said: str
):
    slack_server.fail("chat.postMessage", status=200, body={"ok": False, **answer})
    with pytest.raises(SlackRefused) as refused:
        slack.post("#ci", "text", SECTION)
    assert str(refused.value) == f"Slack refused chat.postMessage for #ci: {said}"


def test_a_bot_that_may_not_list_channels_edits_what_it_posted(slack: SlackClient, slack_server: SlackServer):
    slack_server.denied_scopes = {"conversations.list"}
    slack.update("#ci", slack.post("#ci", "before", SECTION), "after", SECTION)
    assert slack_server.channel()[0]["text"] == "after"


def test_where_slack_does_not_say_where_a_message_is_nothing_is_said(slack: SlackClient, slack_server: SlackServer):
    ts = slack.post("#ci", "text", SECTION)
    assert slack.url("#ci", ts) == f"https://example.slack.com/archives/C00000001/p{ts.replace('.', '')}"
    assert slack.url("#ci", "1.1") == ""
    slack_server.fail("chat.getPermalink", status=200, body={"ok": True})
    assert slack.url("#ci", ts) == ""


@pytest.mark.usefixtures("short_waits")
def test_nobody_listening_is_one_line(caplog: pytest.LogCaptureFixture):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(SlackUnavailable, match="cannot be reached"):
            SlackClient("t", f"http://127.0.0.1:{unused.getsockname()[1]}/api/").post("#ci", "text", SECTION)
    assert {record.name for record in caplog.records} == {"ci_pipeline.publish.slack"}


def test_a_server_that_speaks_another_language_is_slack_being_away():
    class Ssh(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Ssh) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        with pytest.raises(SlackUnavailable, match=r"cannot be reached for chat\.update: SSH"):
            SlackClient("t", f"http://127.0.0.1:{server.server_address[1]}/api/").update("C00000001", "1.1", "x", [])
        server.shutdown()


@pytest.mark.usefixtures("short_waits")
def test_a_slack_that_takes_long_to_say_nothing_is_asked_twice(
    slack_server: SlackServer, monkeypatch: pytest.MonkeyPatch
):
    slack_server.fail("chat.postMessage", status=503, times=99)
    for seconds, times in ((45.0, 5), (0.0, 2)):
        monkeypatch.setattr("ci_pipeline.publish.slack.TIRING", seconds)
        slack_server.requests.clear()
        with pytest.raises(SlackUnavailable, match="503"):
            SlackClient("xoxb-test", slack_server.api_url).post("C00000001", "text", SECTION)
        assert len(slack_server.calls("chat.postMessage")) == times


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("fault", [{"status": 503, "times": 3}, {"cut": True, "after": True}], ids=str)
def test_an_edit_is_tried_again(slack: SlackClient, slack_server: SlackServer, fault: dict):
    ts = slack.post("#ci", "before", SECTION)
    slack_server.fail("chat.update", **fault)
    metadata = {"event_type": "report", "event_payload": {"hash": "of what it says now"}}
    slack.update("#ci", ts, "after", SECTION, metadata)
    assert [(m["text"], m["metadata"]) for m in slack_server.channel()] == [("after", metadata)]


@pytest.mark.usefixtures("short_waits")
def test_a_slack_that_is_down_is_found_out_once(slack: SlackClient, slack_server: SlackServer):
    def requests_in_vain() -> int:
        before = len(slack_server.requests)
        with pytest.raises(SlackUnavailable, match="503"):
            slack.post("C00000001", "text", SECTION)
        return len(slack_server.requests) - before

    slack_server.fail(status=503, times=1000)
    assert requests_in_vain() > 4
    assert requests_in_vain() == 1
    slack_server.faults.clear()
    slack.post("C00000001", "it is back", SECTION)
    slack_server.fail("chat.postMessage", status=503, times=2)
    slack.post("C00000001", "tried again", SECTION)
    assert [m["text"] for m in slack_server.channel()] == ["it is back", "tried again"]


def test_an_edit_finds_the_channels_id_on_the_last_page(slack_server: SlackServer):
    slack_server.ids |= {f"other-{n}": f"C1000{n:04d}" for n in range(5)} | {"late": "C20000000"}
    slack_server.posted["C20000000"] = []
    slack_server.page = 2
    ts = SlackClient("xoxb-test", slack_server.api_url).post("#late", "before", SECTION)
    SlackClient("xoxb-test", slack_server.api_url).update("#late", ts, "after", SECTION)
    assert slack_server.channel("late")[0]["text"] == "after"


def test_what_is_gone_need_not_be_deleted_and_what_may_not_be_deleted_is_told(
    slack: SlackClient, slack_server: SlackServer
):
    ts = slack.post("#ci", "text", SECTION)
    for _ in range(2):
        slack.delete("#ci", ts)
        assert slack_server.channel() == []
    slack_server.denied_scopes = {"chat.delete"}
    with pytest.raises(SlackRefused, match="missing_scope"):
        slack.delete("#ci", ts)


@pytest.mark.usefixtures("short_waits")
def test_a_file_is_in_the_thread_once_although_an_answer_was_lost(slack: SlackClient, slack_server: SlackServer):
    main = slack.post("#ci", "main", SECTION)
    slack_server.fail("files.completeUploadExternal", status=500, after=True)
    file_id = slack.upload("#ci", main, "failures.txt", "All failures", "tests/test_a.py::test_ü\n")
    [_, shared] = slack_server.channel()
    assert [(f["id"], f["title"]) for f in shared["files"]] == [(file_id, "All failures")]
    assert slack_server.content[file_id].decode() == "tests/test_a.py::test_ü\n"
    slack.delete_file("#ci", file_id)
    slack.delete_file("#ci", file_id)
    assert len(slack_server.channel()) == 1


def test_a_file_goes_to_the_host_that_slack_names(slack: SlackClient, slack_server: SlackServer):
    slack_server.url = slack_server.url.replace("127.0.0.1", "localhost")
    slack.upload("#ci", slack.post("#ci", "main", SECTION), "failures.txt", "All failures", "text")
    [upload] = [request for request in slack_server.requests if request.path.startswith("/upload/")]
    assert upload.headers["host"].startswith("localhost:")


@pytest.mark.usefixtures("short_waits")
def test_an_older_file_of_the_same_name_is_not_taken_for_the_new_one(slack: SlackClient, slack_server: SlackServer):
    main = slack.post("#ci", "main", SECTION)
    old = slack.upload("#ci", main, "failures.txt", "All failures", "one\n")
    slack_server.fail("files.completeUploadExternal", status=500)
    new = slack.upload("#ci", main, "failures.txt", "All failures", "one\ntwo\n")
    assert (new != old, slack_server.content[new]) == (True, b"one\ntwo\n")


@pytest.mark.usefixtures("short_waits")
def test_a_file_that_somebody_deleted_is_not_taken_for_ours(slack: SlackClient, slack_server: SlackServer):
    main = slack.post("#ci", "main", SECTION)
    slack.post("#ci", "shared a file", SECTION, thread_ts=main)
    slack_server.channel()[-1]["files"] = [{"id": "F9", "mode": "tombstone"}]
    slack_server.fail("files.completeUploadExternal", status=500)
    assert slack.upload("#ci", main, "failures.txt", "All failures", "test_\udce9\n") != "F9"
    assert slack_server.content["F00000001"] == b"test_\\udce9\n"

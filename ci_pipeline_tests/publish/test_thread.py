"""Delivery of threads: each message once, whatever happens."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ci_pipeline.model import CiRun
from ci_pipeline.publish.ledger import Delivered, Ledger
from ci_pipeline.publish.outbox import SlackOutbox
from ci_pipeline.publish.slack import SlackClient, SlackRefused
from ci_pipeline.publish.thread import Slack, SlackFile, SlackMessage, SlackThread, deliver, deliver_pending
from ci_pipeline_tests.servers.base import Request, Response
from ci_pipeline_tests.servers.slack import SlackServer


def message(key: str, text: str = "") -> SlackMessage:
    text = text or f"about {key}"
    return SlackMessage(key, text, [{"type": "section", "text": {"type": "mrkdwn", "text": text}}])


THREAD = SlackThread(
    main=message("main", "2 failures"),
    replies=[message("models_bert"), message("models_vit")],
    files=[SlackFile("failures.txt", "All failures", "tests/test_a.py::test_1\n")],
)


@pytest.fixture(params=["slack", "outbox"])
def either(request: pytest.FixtureRequest, slack: SlackClient, tmp_path: Path) -> Slack:
    return slack if request.param == "slack" else SlackOutbox(tmp_path / "outbox")


def texts(slack: Slack, channel: str = "#ci") -> list[str]:
    """What a person sees: the threads of a channel, oldest first; of files their names."""
    mains = list(slack.messages(channel))[::-1]
    return [
        m["text"] if not m.get("files") else m["files"][0]["name"]
        for main in mains
        for m in slack.messages(channel, main["ts"])
    ]


def test_a_thread_goes_out_in_order(either: Slack, ledger: Ledger, run: CiRun):
    delivered = deliver(THREAD, run, "run_models_gpu", "#ci", slack=either, ledger=ledger)
    assert texts(either) == ["2 failures", "about models_bert", "about models_vit", "failures.txt"]
    assert delivered.where == either.where
    assert delivered.detail == "#ci: 4 posted"
    assert delivered.url


def test_the_same_thread_again_changes_nothing(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    first = deliver(THREAD, run, "run_models_gpu", "#ci", slack=slack, ledger=ledger)
    before = len(slack_server.requests)
    again = deliver(THREAD, run, "run_models_gpu", "#ci", slack=slack, ledger=ledger)
    assert (again.url, again.detail) == (first.url, "#ci: nothing changed")
    assert len(slack_server.requests) == before


def test_processed_again_the_thread_is_edited(either: Slack, ledger: Ledger, run: CiRun):
    deliver(THREAD, run, "run_models_gpu", "#ci", slack=either, ledger=ledger)
    changed = SlackThread(
        main=message("main", "3 failures"),
        replies=[message("models_bert", "now 2"), message("models_t5")],
        files=[SlackFile("failures.txt", "All failures", "other\n")],
    )
    delivered = deliver(changed, run, "run_models_gpu", "#ci", slack=either, ledger=ledger)
    assert sorted(texts(either)) == sorted(["3 failures", "now 2", "about models_t5", "failures.txt"])
    assert delivered.detail == "#ci: 1 posted, 3 edited, 1 removed"
    again = deliver(changed, run, "run_models_gpu", "#ci", slack=either, ledger=ledger)
    assert again.detail == "#ci: nothing changed"


def test_a_later_attempt_edits_the_message_and_an_earlier_one_does_not(either: Slack, ledger: Ledger, run: CiRun):
    second = replace(run, run_attempt=2)
    deliver(THREAD, run, "run_models_gpu", "#ci", slack=either, ledger=ledger)
    green = SlackThread(message("main", "green"))
    newest = deliver(green, second, "run_models_gpu", "#ci", slack=either, ledger=ledger)
    late = deliver(THREAD, run, "run_models_gpu", "#ci", slack=either, ledger=ledger)
    assert late == Delivered("superseded", newest.url, "attempt 2 of the CI run is already reported")
    assert texts(either) == ["green"]


@pytest.mark.parametrize("posted", [True, False])
def test_an_earlier_attempt_does_not_replace_a_later_one_that_is_still_kept(
    either: Slack, ledger: Ledger, run: CiRun, posted: bool
):
    url = deliver(THREAD, run, "models", "#ci", slack=either, ledger=ledger).url if posted else ""
    later = SlackThread(message("main", "green"))
    deliver(later, replace(run, run_attempt=2), "models", "#ci", slack=either, ledger=ledger, down="HTTP 503")
    superseded = deliver(THREAD, run, "models", "#ci", slack=either, ledger=ledger)
    assert (superseded.where, superseded.url) == ("superseded", url)
    assert [d.where for d in deliver_pending(slack=either, ledger=ledger)] == [either.where]
    assert texts(either) == ["green"]


def test_other_jobs_runs_and_channels_have_threads_of_their_own(either: Slack, ledger: Ledger, run: CiRun):
    thread = SlackThread(message("main", "one"))
    for other_run, job in (
        (run, "a"),
        (run, "b"),
        (replace(run, run_id=2), "a"),
        (replace(run, repository="x/y"), "c"),
    ):
        deliver(thread, other_run, job, "#ci", slack=either, ledger=ledger)
    assert texts(either) == ["one"] * 4


def test_a_message_that_somebody_deleted_is_posted_anew_with_its_thread(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    deliver(THREAD, run, "run_models_gpu", "#ci", slack=slack, ledger=ledger)
    slack_server.channel().clear()
    changed = replace(THREAD, main=message("main", "3 failures"))
    deliver(changed, run, "run_models_gpu", "#ci", slack=slack, ledger=ledger)
    assert texts(slack) == ["3 failures", "about models_bert", "about models_vit", "failures.txt"]


def test_a_reply_that_somebody_deleted_is_posted_anew_and_nothing_else(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    del slack_server.channel()[1]
    changed = replace(THREAD, replies=[message("models_bert", "now 2"), message("models_vit")])
    assert deliver(changed, run, "models", "#ci", slack=slack, ledger=ledger).detail == "#ci: 1 posted"
    assert sorted(texts(slack)) == sorted(["2 failures", "now 2", "about models_vit", "failures.txt"])


@pytest.mark.parametrize("reason", ["cant_update_message", "edit_window_closed"])
def test_a_reply_that_may_not_be_edited_is_posted_anew(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun, reason: str
):
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    slack_server.fail("chat.update", status=200, body={"ok": False, "error": reason})
    changed = replace(THREAD, replies=[message("models_bert", "now 2"), message("models_vit")])
    assert deliver(changed, run, "models", "#ci", slack=slack, ledger=ledger).detail == "#ci: 1 posted"
    assert texts(slack)[-1] == "now 2"


def test_an_edit_that_slack_refuses_for_another_reason_posts_nothing(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    slack_server.fail("chat.update", status=200, body={"ok": False, "error": "is_archived"})
    with pytest.raises(SlackRefused, match="is_archived"):
        deliver(replace(THREAD, main=message("main", "green")), run, "models", "#ci", slack=slack, ledger=ledger)
    assert len(slack_server.channel()) == 4


def test_a_reply_that_may_not_be_deleted_stays_and_holds_up_nothing(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    slack_server.fail("chat.delete", status=200, body={"ok": False, "error": "cant_delete_message"})
    fewer = replace(THREAD, replies=[message("models_vit")])
    assert deliver(fewer, run, "models", "#ci", slack=slack, ledger=ledger).where == "slack"
    assert ledger.names("slack/pending") == []
    assert "about models_bert" in texts(slack)


@pytest.mark.usefixtures("short_waits")
def test_while_slack_is_down_threads_are_kept_and_go_out_later_in_order_and_once(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    slack_server.fail(status=503, times=1000)
    for run_id in (7, 5, 6):
        thread = replace(THREAD, main=message("main", f"run {run_id}"))
        kept = deliver(thread, replace(run, run_id=run_id), "models", "#ci", slack=slack, ledger=ledger)
        assert kept.where == "pending"
        assert "503" in kept.detail
    [pending] = deliver_pending(slack=slack, ledger=ledger)
    assert (pending.where, "503" in pending.detail) == ("pending", True)

    slack_server.faults.clear()
    assert [d.where for d in deliver_pending(slack=slack, ledger=ledger)] == ["slack"] * 3
    assert deliver_pending(slack=slack, ledger=ledger) == []
    assert [t for t in texts(slack) if t.startswith("run")] == ["run 7", "run 5", "run 6"]
    assert len(slack_server.channel()) == 3 * 4


def test_a_thread_that_comes_while_slack_is_known_to_be_down_is_kept_unasked(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    kept = deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger, down="HTTP 503")
    assert (kept.where, kept.detail) == ("pending", "HTTP 503")
    assert not slack_server.requests
    assert [d.where for d in deliver_pending(slack=slack, ledger=ledger)] == ["slack"]
    assert texts(slack) == ["2 failures", "about models_bert", "about models_vit", "failures.txt"]


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("processed_again", [True, False])
def test_slack_going_down_in_the_middle_of_a_thread_costs_nothing(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun, processed_again: bool
):
    slack.post("#ci", "somebody else's message", [])
    deliver(SlackThread(THREAD.main), run, "models", "#ci", slack=slack, ledger=ledger)
    slack_server.fail("chat.postMessage", status=500, after=True)
    slack_server.fail("conversations.replies", status=500, times=100)
    assert deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger).where == "pending"
    slack_server.faults.clear()
    if processed_again:
        delivered = deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    else:
        [delivered] = deliver_pending(slack=slack, ledger=ledger)
    assert delivered.detail == "#ci: 2 posted"
    assert texts(slack)[1:] == ["2 failures", "about models_bert", "about models_vit", "failures.txt"]


def test_what_slack_refuses_is_kept_until_a_person_has_mended_it(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    with pytest.raises(SlackRefused, match="#new: channel_not_found"):
        deliver(THREAD, run, "models", "#new", slack=slack, ledger=ledger)
    deliver(THREAD, run, "other", "#ci", slack=slack, ledger=ledger)
    [pending] = deliver_pending(slack=slack, ledger=ledger)
    assert (pending.where, "channel_not_found" in pending.detail) == ("pending", True)
    slack_server.ids["new"], slack_server.posted["C00000009"] = "C00000009", []
    assert [d.where for d in deliver_pending(slack=slack, ledger=ledger)] == ["slack"]
    assert len(slack_server.channel("new")) == 4


def test_a_channel_that_was_renamed_keeps_its_threads(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    slack_server.ids["renamed"] = slack_server.ids.pop("ci")
    changed = replace(THREAD, main=message("main", "3 failures"))
    later = SlackClient("xoxb-test", slack_server.api_url)
    assert deliver(changed, run, "models", "#ci", slack=later, ledger=ledger).detail == "#ci: 1 edited"
    assert slack_server.channel("renamed")[0]["text"] == "3 failures"


def test_what_several_processes_find_is_delivered_by_one(slack_server: SlackServer, ledger: Ledger, run: CiRun):
    def client() -> SlackClient:
        return SlackClient("xoxb-test", slack_server.api_url)

    deliver(THREAD, run, "models", "#ci", slack=client(), ledger=ledger, down="HTTP 503")
    slack_server.fail("chat.postMessage", delay=0.3)
    with ThreadPoolExecutor(3) as pool:
        again = pool.submit(deliver, THREAD, run, "models", "#ci", slack=client(), ledger=ledger)
        found = [pool.submit(deliver_pending, slack=client(), ledger=ledger) for _ in range(2)]
        assert again.result().where == "slack"
        assert sum(len(each.result()) for each in found) <= 1
    assert len(slack_server.channel()) == 4


def test_what_went_to_the_outbox_goes_to_slack_once_there_is_a_token(
    slack: SlackClient, ledger: Ledger, run: CiRun, tmp_path: Path
):
    deliver(THREAD, run, "models", "#ci", slack=SlackOutbox(tmp_path), ledger=ledger)
    assert deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger).detail == "#ci: 4 posted"


def test_after_an_interruption_a_persons_file_stays_in_the_thread(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    deliver(SlackThread(THREAD.main), run, "models", "#ci", slack=slack, ledger=ledger)
    slack.upload("#ci", slack_server.channel()[0]["ts"], "notes.txt", "What I found", "a person's")
    slack_server.fail("files.getUploadURLExternal", status=401, body={"ok": False, "error": "invalid_auth"})
    slack_server.fail("chat.postMessage", status=401, body={"ok": False, "error": "invalid_auth"}, times=9)
    with pytest.raises(SlackRefused, match="CI_SLACK_BOT_TOKEN"):
        deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    slack_server.faults.clear()
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    assert "notes.txt" in texts(slack)


def test_a_file_that_may_not_be_attached_costs_nothing_else_and_is_attached_when_it_may(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    slack_server.denied_scopes = {"files.getUploadURLExternal"}
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    assert texts(slack)[-1] == "⚠️ All failures: the file failures.txt could not be attached (missing_scope)"
    slack_server.denied_scopes.clear()
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger)
    assert texts(slack) == ["2 failures", "about models_bert", "about models_vit", "failures.txt"]


def test_after_an_interruption_a_thread_goes_out_though_the_history_may_not_be_read(
    slack: SlackClient, slack_server: SlackServer, ledger: Ledger, run: CiRun
):
    deliver(THREAD, run, "models", "#ci", slack=slack, ledger=ledger, down="HTTP 503")
    slack_server.denied_scopes = {"conversations.history"}
    assert [d.detail for d in deliver_pending(slack=slack, ledger=ledger)] == ["#ci: 4 posted"]


class StallingServer(SlackServer):
    """Does what the request with this number asks for, and then never answers."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.stalled = threading.Event()
        self.released = threading.Event()

    def handle(self, request: Request) -> Response:
        answer = super().handle(request)
        if len(self.requests) == self.number:
            self.stalled.set()
            self.released.wait(30)
        return answer


DELIVER = """
import sys
from ci_pipeline.model import CiRun
from ci_pipeline.publish.ledger import Ledger
from ci_pipeline.publish.slack import SlackClient
from ci_pipeline.publish.thread import deliver
from ci_pipeline_tests.publish.test_thread import THREAD
deliver(THREAD, CiRun("acme/widgets", 1), "models", "#ci",
        slack=SlackClient("xoxb-test", sys.argv[1]), ledger=Ledger(sys.argv[2]))
"""


@pytest.mark.parametrize("at_request", range(1, 8))
def test_killed_at_any_moment_and_started_again_everything_is_there_once(at_request: int, tmp_path: Path):
    # The requests of a delivery: main, two replies, three of the file, the permalink.
    with StallingServer(at_request) as server:
        assert isinstance(server, StallingServer)
        command = [sys.executable, "-c", DELIVER, server.api_url, str(tmp_path)]
        process = subprocess.Popen(command)
        assert server.stalled.wait(30)
        process.kill()
        process.wait(10)
        server.released.set()
        assert subprocess.run(command, timeout=60, check=False).returncode == 0
        names = [m["metadata"]["event_payload"]["key"] if "metadata" in m else "file" for m in server.channel()]
        assert sorted(names) == ["file", "main", "models_bert", "models_vit"]
        assert not any("edited" in m for m in server.channel())


def test_two_processes_deliver_a_thread_once(slack_server: SlackServer, tmp_path: Path):
    command = [sys.executable, "-c", DELIVER, slack_server.api_url, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(slack_server.channel()) == 4


def test_the_outbox_is_laid_out_for_readers(ledger: Ledger, run: CiRun, tmp_path: Path):
    outbox = SlackOutbox(tmp_path)
    hostile = replace(run, repository="../../x")
    thread = SlackThread(
        SlackMessage(
            "main",
            "1 failure",
            [
                {"type": "header", "text": {"type": "plain_text", "text": "1 failure"}},
                {"type": "section", "text": {"type": "mrkdwn", "text": "*in* <https://x.test/1|bert> &lt;b&gt;"}},
            ],
        ),
        [message("../../../etc/passwd", "reply")],
    )
    delivered = deliver(thread, hostile, "../job", "#../ci", slack=outbox, ledger=ledger)
    page = Path(delivered.url)
    assert page.read_text() == "## 1 failure\n\n**in** [bert](https://x.test/1) \\<b>\n\n---\n\nreply\n"
    assert page.is_relative_to(tmp_path / "slack")
    assert {p.parent for p in page.parent.iterdir()} == {page.parent}
    assert json.loads((page.parent / "main.json").read_text())["text"] == "1 failure"
    assert not (tmp_path.parent / "etc").exists()


def test_the_outbox_shows_a_thread_as_it_is_now(ledger: Ledger, run: CiRun, tmp_path: Path):
    outbox = SlackOutbox(tmp_path)
    first = SlackThread(message("main", "2 failures"), [message(key) for key in "abcd"])
    deliver(first, run, "models", "#ci", slack=outbox, ledger=ledger)
    second = SlackThread(message("main", "1 failure"), [message("b", "now 2"), *(message(key) for key in "cde")])
    page = Path(deliver(second, run, "models", "#ci", slack=outbox, ledger=ledger).url)
    assert page == tmp_path / "slack" / "ci" / str(run.run_id) / "models" / "thread.md"
    assert page.read_text().split("\n\n---\n\n") == ["1 failure", "now 2", "about c", "about d", "about e\n"]
    replies = ["0002-b.json", "0003-c.json", "0004-d.json", "0005-e.json"]
    assert sorted(path.name for path in page.parent.iterdir()) == [*replies, "main.json", "thread.md"]
    assert json.loads(page.with_name("main.json").read_bytes())["channel"] == "#ci"

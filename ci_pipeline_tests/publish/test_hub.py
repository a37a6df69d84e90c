"""Uploads against a server that plays the Hub."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ci_pipeline.publish import hub
from ci_pipeline.publish.ledger import Ledger
from ci_pipeline.publish.outbox import HubOutbox
from ci_pipeline_tests.servers.base import Response
from ci_pipeline_tests.servers.hub import HubServer

FILES = {
    "2025-11-10/ci_results_models/model_results.json": b'{"a": 1}',
    "2025-11-10/ci_results_models/x.parquet": b"PAR1",
}


def upload(server: HubServer, files: Mapping[str, bytes | Path] = FILES, repo_id: str = "acme/ci", **options) -> str:
    return hub.upload(files, repo_id=repo_id, message="CI results", endpoint=server.url, token="hf_test", **options)


def test_all_files_go_up_in_one_commit(hub_server: HubServer):
    commit = upload(hub_server)
    assert hub_server.repos["acme/ci"] == FILES
    assert hub_server.commits["acme/ci"] == ["CI results"]
    assert commit == hub_server.head("acme/ci")


def test_a_file_may_be_named_by_where_it_is(hub_server: HubServer, tmp_path: Path):
    (tmp_path / "results.json").write_bytes(b'{"a": 1}')
    upload(hub_server, {"day/results.json": tmp_path / "results.json", "day/errors.json": b"[]"})
    assert hub_server.repos["acme/ci"] == {"day/results.json": b'{"a": 1}', "day/errors.json": b"[]"}


def test_a_file_that_is_gone_is_named(hub_server: HubServer, tmp_path: Path):
    with pytest.raises(hub.HubRefused, match=r"1 files not uploaded to .* '[^']*/gone.json' is not a file"):
        upload(hub_server, {"day/results.json": tmp_path / "gone.json"})


def test_an_upload_asks_the_hub_for_nothing_else(hub_server: HubServer, tmp_path: Path):
    call = f"repo_id='acme/ci', message='CI results', endpoint='{hub_server.url}', token='hf_test'"
    code = f"from ci_pipeline.publish import hub; hub.upload({{'a.txt': b'a'}}, {call})"
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    env |= {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert [request.path.rpartition("/acme/ci/")[2] for request in hub_server.requests] == [
        "preupload/main",
        "commit/main",
    ]


def test_the_same_files_again_make_no_new_commit(hub_server: HubServer):
    assert upload(hub_server) == upload(hub_server)
    assert len(hub_server.commits["acme/ci"]) == 1


def test_a_dataset_that_is_missing_is_created(hub_server: HubServer):
    upload(hub_server, repo_id="acme/new")
    assert hub_server.repos["acme/new"] == FILES


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 412}, id="conflict"),
        pytest.param({"status": 409}, id="another conflict"),
        pytest.param({"status": 503, "times": 3}, id="server error"),
        pytest.param({"status": 429, "headers": {"Retry-After": "2"}}, id="rate limit"),
        pytest.param({"status": 429, "headers": {"RateLimit": '"api";r=0;t=3'}}, id="rate limit of the Hub's own"),
        pytest.param({"status": 502, "after": True}, id="answer lost"),
        pytest.param({"cut": True, "after": True}, id="answer cut off"),
    ],
)
@pytest.mark.parametrize("at", ["/commit/", "/preupload/"])
def test_what_passes_is_tried_again_and_committed_once(hub_server: HubServer, at: str, fault: dict):
    hub_server.fail(at, **fault)
    upload(hub_server)
    assert hub_server.repos["acme/ci"] == FILES
    assert len(hub_server.commits["acme/ci"]) == 1


def test_a_rate_limit_longer_than_our_patience_is_not_waited_for(hub_server: HubServer):
    hub_server.fail("/preupload/", status=429, headers={"Retry-After": "290"}, times=9)
    start = time.monotonic()
    with pytest.raises(hub.HubUnavailable, match="HTTP 429"):
        upload(hub_server, patience=5)
    assert time.monotonic() - start < 2


def test_a_wrong_token_is_refused_in_one_line(hub_server: HubServer):
    with pytest.raises(hub.HubRefused, match="HTTP 401") as refused:
        hub.upload(FILES, repo_id="acme/ci", message="m", endpoint=hub_server.url, token="hf_wrong")
    assert "\n" not in str(refused.value)


@pytest.fixture
def client(hub_server: HubServer) -> hub.HubClient:
    return hub.HubClient("hf_test", hub_server.url, patience=1)


def test_the_dataset_gets_a_card_that_a_person_may_replace(client: hub.HubClient, hub_server: HubServer):
    client.upload(FILES, repo_id="acme/ci", message="m")
    files = hub_server.repos["acme/ci"]
    assert b'data_files: "**/test_outcomes.parquet"' in files["README.md"]
    files["README.md"] = hub.CARD_MARK.encode() + b"an older one of ours"
    client.upload(FILES, repo_id="acme/ci", message="m")
    assert files["README.md"] == hub.dataset_card("acme/ci")
    files["README.md"] = b"a person's"
    client.upload({"x": b"y"}, repo_id="acme/ci", message="m")
    assert files["README.md"] == b"a person's"


def test_a_dataset_that_is_missing_is_created_with_its_card(client: hub.HubClient, hub_server: HubServer):
    commit = client.upload(FILES, repo_id="acme/new", message="m")
    assert hub_server.repos["acme/new"] == {**FILES, "README.md": hub.dataset_card("acme/new")}
    assert client.url("acme/new", commit) == f"{hub_server.url}/datasets/acme/new/tree/{hub_server.head('acme/new')}"


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": True}])
def test_a_card_that_cannot_be_read_is_left_alone(client: hub.HubClient, hub_server: HubServer, fault: dict):
    hub_server.fail("README.md", **fault)
    client.upload(FILES, repo_id="acme/ci", message="m")
    assert hub_server.repos["acme/ci"] == FILES


@pytest.mark.usefixtures("short_waits")
def test_a_card_that_is_refused_does_not_cost_the_files(client: hub.HubClient, hub_server: HubServer):
    hub_server.fail("/api/validate-yaml", status=404)
    client.upload(FILES, repo_id="acme/ci", message="CI results")
    assert hub_server.repos["acme/ci"] == FILES


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"null", b'{"files": []}'])
def test_an_answer_that_is_no_commit_is_told_as_what_it_is(hub_server: HubServer, answer: bytes):
    hub_server.handle = lambda request: Response(200, answer)
    with pytest.raises(hub.HubRefused, match="the Hub's answer is not understood"):
        upload(hub_server)


def test_a_hub_that_cannot_be_reached_is_one_line(hub_server: HubServer, caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub_server.fail(cut=True, times=100)
    with pytest.raises(hub.HubUnavailable, match="files not uploaded to"):
        upload(hub_server, patience=0)
    assert not caplog.messages


def test_while_the_hub_is_down_uploads_are_kept_and_made_later_in_order_and_once(
    client: hub.HubClient, hub_server: HubServer, ledger: Ledger
):
    hub_server.fail(status=503, times=1000)
    for key, content in (("7-1/models", b"7"), ("5-1/models", b"old"), ("5-1/models", b"5"), ("6-1/models", b"6")):
        kept = hub.deliver(
            {f"{key}.json": content}, repo_id="acme/ci", message=f"{key} {content}", key=key, hub=client, ledger=ledger
        )
        assert kept.where == "pending"
    assert [d.where for d in hub.deliver_pending(hub=client, ledger=ledger)] == ["pending"]

    hub_server.faults.clear()
    assert [d.where for d in hub.deliver_pending(hub=client, ledger=ledger)] == ["hub"] * 3
    assert hub.deliver_pending(hub=client, ledger=ledger) == []
    assert hub_server.commits["acme/ci"] == ["7-1/models b'7'", "5-1/models b'5'", "6-1/models b'6'"]
    assert hub_server.repos["acme/ci"]["5-1/models.json"] == b"5"


def test_an_upload_that_is_refused_does_not_hold_up_the_others(
    client: hub.HubClient, hub_server: HubServer, ledger: Ledger
):
    hub_server.fail("/commit/", status=400, body={"error": "bad path"}, times=2)  # with and without the card
    refused = hub.deliver(FILES, repo_id="acme/ci", message="m", key="1-1/models", hub=client, ledger=ledger)
    assert (refused.where, "bad path" in refused.detail) == ("pending", True)
    hub_server.fail("/preupload/", status=400, body={"error": "bad path"}, times=2)
    ledger.write("hub/pending/other", {"repo_id": "acme/ci", "message": "m", "files": {"a": "YQ=="}})
    assert [d.where for d in hub.deliver_pending(hub=client, ledger=ledger)] == ["pending", "hub"]


@pytest.mark.usefixtures("short_waits")
def test_what_is_uploaded_later_never_overwrites_what_is_newer(
    client: hub.HubClient, hub_server: HubServer, ledger: Ledger
):
    first = {"2025-11-10/a.json": b"attempt 1", "2025-11-10/b.json": b"attempt 1"}
    hub_server.fail(status=503, times=1000)
    hub.deliver(first, repo_id="acme/ci", message="1", key="5-1", hub=client, ledger=ledger)
    hub_server.faults.clear()
    second = {"2025-11-10/a.json": b"attempt 2"}
    hub.deliver(second, repo_id="acme/ci", message="2", key="5-2", hub=client, ledger=ledger)
    hub.deliver_pending(hub=client, ledger=ledger)
    files = hub_server.repos["acme/ci"]
    assert (files["2025-11-10/a.json"], files["2025-11-10/b.json"]) == (b"attempt 2", b"attempt 1")


@pytest.mark.usefixtures("short_waits")
def test_an_upload_of_which_all_is_newer_elsewhere_is_made_no_more(
    client: hub.HubClient, hub_server: HubServer, ledger: Ledger
):
    hub_server.fail(status=503, times=1000)
    hub.deliver(FILES, repo_id="acme/ci", message="1", key="5-1", hub=client, ledger=ledger)
    hub_server.faults.clear()
    hub.deliver(FILES, repo_id="acme/ci", message="2", key="5-2", hub=client, ledger=ledger)
    assert hub.deliver_pending(hub=client, ledger=ledger) == []


def test_an_upload_that_is_under_way_is_over_before_a_newer_one_begins(
    client: hub.HubClient, hub_server: HubServer, ledger: Ledger
):
    def attempt(number: int) -> str:
        files = {"2025-11-10/a.json": b"attempt %d" % number}
        key, message = f"5-{number}", str(number)
        return hub.deliver(files, repo_id="acme/ci", message=message, key=key, hub=client, ledger=ledger).where

    hub_server.fail("/commit/", delay=1.0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt, 1)
        while not (first.done() or any("/commit/" in request.path for request in hub_server.requests)):
            time.sleep(0.01)
        assert (attempt(2), first.result(), hub_server.commits["acme/ci"]) == ("hub", "hub", ["1", "2"])


def test_what_two_processes_find_is_uploaded_by_one(client: hub.HubClient, hub_server: HubServer, ledger: Ledger):
    ledger.write("hub/pending/1-1", {"repo_id": "acme/ci", "message": "m", "files": {"a": "YQ=="}})
    hub_server.fail("/commit/", delay=0.5)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(hub.deliver_pending, hub=client, ledger=ledger) for _ in range(2)]
        assert sorted(len(found.result()) for found in both) == [0, 1]
    assert hub_server.commits["acme/ci"] == ["m"]


def test_an_upload_that_its_process_did_not_survive_is_made_later(
    client: hub.HubClient, hub_server: HubServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as killed:
        killed.setattr(client, "upload", lambda files, **about: exit(137))
        with pytest.raises(SystemExit):
            hub.deliver(FILES, repo_id="acme/ci", message="m", key="1-1", hub=client, ledger=ledger)
    assert [delivered.where for delivered in hub.deliver_pending(hub=client, ledger=ledger)] == ["hub"]
    assert FILES.items() <= hub_server.repos["acme/ci"].items()


@pytest.mark.usefixtures("short_waits")
def test_what_another_dataset_is_owed_stays(client: hub.HubClient, hub_server: HubServer, ledger: Ledger):
    hub_server.fail(status=503, times=1000)
    hub.deliver(FILES, repo_id="acme/other", message="m", key="1-1", hub=client, ledger=ledger)
    hub_server.faults.clear()
    hub.deliver(FILES, repo_id="acme/ci", message="m", key="2-1", hub=client, ledger=ledger)
    hub.deliver_pending(hub=client, ledger=ledger)
    assert FILES.items() <= hub_server.repos["acme/other"].items()


def test_without_a_token_the_files_go_to_the_outbox(tmp_path: Path, ledger: Ledger):
    outbox = HubOutbox(tmp_path / "outbox")
    delivered = hub.deliver(FILES, repo_id="acme/ci", message="m", key="1-1/models", hub=outbox, ledger=ledger)
    assert delivered.where == "outbox"
    written = {str(p.relative_to(delivered.url)): p.read_bytes() for p in Path(delivered.url).rglob("*") if p.is_file()}
    assert written == {**FILES, "README.md": hub.dataset_card("acme/ci")}


def test_runs_that_go_to_the_outbox_side_by_side_do_not_disturb_one_another(tmp_path: Path):
    outbox = HubOutbox(tmp_path / "outbox")

    def upload_run(run: int) -> str:
        return outbox.upload({f"{run}/results.json": b"{}"}, repo_id="acme/ci", message="m")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(upload_run, range(200))) == {""}
    names = [p.name for p in Path(outbox.url("acme/ci", "")).rglob("*") if p.is_file()]
    assert sorted(names) == ["README.md", *["results.json"] * 200]

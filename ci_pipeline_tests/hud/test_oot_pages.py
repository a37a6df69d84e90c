"""The pages of out-of-tree CI, over rows that really went through the replication into a real warehouse."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from ci_pipeline.hud.app import create_app, create_server
from ci_pipeline.hud.metrics import Metrics
from ci_pipeline.hud.oot_backends import Step, Tally
from ci_pipeline.hud.oot_pages import percent, rate_kind, seconds, trend_text
from ci_pipeline.oot import replication
from ci_pipeline.oot.lifecycle import Step as JobStep
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Message
from ci_pipeline.profile import load_profile
from ci_pipeline.sample import oot as sample
from ci_pipeline.services import Services
from ci_pipeline.settings import load_oot_settings, load_settings
from ci_pipeline.warehouse import oot
from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded
from ci_pipeline_tests.hud.oot_rows import HOSTILE, NOW, job, put

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

UPSTREAM = "huggingface/transformers"
CINDER = "cinder-ai/torch-cinder"


def app_at(home: Path, url: str) -> TestClient:
    settings = load_settings(CI_PIPELINE_HOME=home, CI_PIPELINE_WAREHOUSE_URL=url)
    return TestClient(create_app(settings, load_profile("transformers")), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, embedded_warehouse: Embedded) -> TestClient:
    """The pages over the sample's callbacks."""
    home = tmp_path_factory.mktemp("home")
    url = embedded_warehouse.url.removesuffix("default") + "oot_sample"
    client = connect(url)
    migrate(client)
    with closing(SqliteStore(home / "oot.sqlite")) as store:
        assert sample.feed(store, UPSTREAM) > 100
        assert sample.feed(store, UPSTREAM) == 0
        replication.replicate_all(store, client)
    return app_at(home, url)


@pytest.fixture
def client(tmp_path: Path, warehouse: Client, warehouse_url: str) -> Iterator[TestClient]:
    """The pages over the test's own warehouse."""
    with app_at(tmp_path, warehouse_url) as client:
        yield client


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def api(client: TestClient, path: str, **query: object) -> Any:
    response = client.get(f"/api{path}", params={name: str(value) for name, value in query.items()})
    assert response.status_code == 200, response.text
    return response.json()


# --- /oot -----------------------------------------------------------------------------------------------------------


def test_the_worst_backend_is_first(sampled: TestClient) -> None:
    rates = [backend["tally"]["pass_rate"] for backend in api(sampled, "/oot", days=30)["backends"]]
    assert len(rates) == 3
    assert rates == sorted(rates)
    page = sampled.get("/oot?days=30").text
    assert page.index(CINDER) < page.index("aurora-chips/torch-aurora")


def test_what_has_not_completed_has_no_pass_rate_and_is_last(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job(conclusion=""), job("org/passed"))
    backends = [row["downstream_repo"] for row in api(client, "/oot")["backends"]]
    assert backends == ["org/passed", "org/backend"]
    assert "org/backend – L2" in text(client.get("/oot").text)
    assert "org/backend ◆ L2 ● 1 running" in text(client.get("/oot/org/backend").text)


@pytest.mark.parametrize("event_type", ["nightly", "periodic"])
def test_nightlies_are_apart_from_pull_requests(warehouse: Client, client: TestClient, event_type: str) -> None:
    put(warehouse, job(), job(event_type=event_type, pr_number=0, delivery_id="night", conclusion="failure"))
    [of_prs] = api(client, "/oot")["backends"]
    [of_nights] = api(client, "/oot", view="nightlies")["backends"]
    assert (of_prs["tally"]["success"], of_prs["tally"]["failure"]) == (1, 0)
    assert (of_nights["tally"]["success"], of_nights["tally"]["failure"]) == (0, 1)
    assert [row["pr_number"] for row in api(client, "/oot/org/backend")["commits"]] == [7]
    nights = {"view": "nightlies", "conclusion": "failure"}
    assert [row["pr_number"] for row in api(client, "/oot/org/backend", **nights)["commits"]] == [0]
    assert api(client, "/oot/org/backend", conclusion="failure")["commits"] == []


def test_a_backend_has_the_level_and_the_last_run_of_its_newest_jobs(warehouse: Client, client: TestClient) -> None:
    yesterday = (NOW - NOW.replace(hour=0, minute=0, second=0)) / timedelta(hours=1) + 24
    put(warehouse, job(hours_ago=yesterday - 12, conclusion="", check_run_id="5", downstream_repo_level="L4"))
    put(
        warehouse,
        job(hours_ago=yesterday - 12, conclusion="", check_run_id="4"),
        job(hours_ago=yesterday - 10),
        job(hours_ago=yesterday - 8, check_run_id="2", downstream_repo_level="L1"),
        job(hours_ago=yesterday + 8, check_run_id="3", downstream_repo_level="L3"),
    )
    [backend] = api(client, "/oot")["backends"]
    assert backend["level"] == "L2"
    assert datetime.fromisoformat(backend["last_at"]) == NOW - timedelta(hours=yesterday - 10, minutes=-10)


def test_the_page_of_a_backend_is_about_no_other(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job("org/another", conclusion="failure"), job())
    for filters in ({}, {"job": "test"}):
        found = api(client, "/oot/org/backend", **filters)
        assert (found["health"]["downstream_repo"], found["health"]["tally"]["total"]) == ("org/backend", 1)
        assert [commit["tally"]["failure"] for commit in found["commits"]] == [0]


def test_many_backends_are_on_several_pages(warehouse: Client, client: TestClient) -> None:
    put(warehouse, *(job(f"org/b{n:03}", conclusion="failure" if n == 70 else "success") for n in range(101)))
    first, second, beyond = (api(client, "/oot", page=page) for page in (1, 2, 9))
    assert [row["downstream_repo"] for row in first["backends"]][:3] == ["org/b070", "org/b000", "org/b001"]
    assert [row["downstream_repo"] for row in second["backends"]] == ["org/b100"]
    assert (len(first["backends"]), second["pages"], beyond) == (100, 2, second)
    assert "Page 1 of 2" in text(client.get("/oot").text)


def test_jobs_count_in_the_window_in_which_they_began(warehouse: Client, client: TestClient) -> None:
    put(warehouse, *(job(hours_ago=hours, check_run_id=str(hours)) for hours in (2, 50, 24 * 20, 24 * 60)))
    totals = {days: api(client, "/oot", days=days)["backends"][0]["tally"]["total"] for days in (1, 7, 30)}
    assert totals == {1: 1, 7: 2, 30: 3}


def test_a_job_that_arrives_twice_counts_once(warehouse: Client, client: TestClient) -> None:
    for _ in range(3):
        put(warehouse, job(conclusion="failure"))
    [backend] = api(client, "/oot")["backends"]
    assert backend["tally"]["failure"] == backend["tally"]["total"] == 1


def test_a_job_that_was_given_up_and_then_completed_counts_as_completed(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job(conclusion=""))
    assert api(client, "/oot")["backends"][0]["tally"]["running"] == 1
    put(warehouse, job(conclusion="timed_out", minutes=360), version=2)
    oot.count_hours(warehouse)
    assert api(client, "/oot")["backends"][0]["tally"]["timed_out"] == 1
    put(warehouse, job(conclusion="success", minutes=400), version=3)
    oot.count_hours(warehouse)
    tally = api(client, "/oot")["backends"][0]["tally"]
    assert tally == {
        "running": 0, "success": 1, "failure": 0, "timed_out": 0, "other": 0, "total": 1, "pass_rate": 1.0
    }  # fmt: skip


def test_a_late_in_progress_does_not_win_over_completed(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job(), version=5)
    put(warehouse, job(conclusion=""), version=4)
    assert api(client, "/oot")["backends"][0]["tally"]["running"] == 0
    assert api(client, "/pr/7")["backends"][0]["commit"]["cells"][0]["newest"]["state"] == "success"


def test_averages_leave_out_what_was_not_measured(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        job(minutes=10, queue_time=30.0),
        job(minutes=20, check_run_id="2"),
        job(conclusion="", check_run_id="3"),
        job(conclusion="timed_out", minutes=360, check_run_id="4"),  # by us, whenever it really ended
    )
    [backend] = api(client, "/oot")["backends"]
    assert backend["average_duration"] == 900
    assert backend["average_queue_time"] == 30


def test_the_trend_has_a_step_for_every_day(sampled: TestClient) -> None:
    backend = api(sampled, "/oot", days=30)["backends"][0]
    assert len(backend["trend"]) == 31
    assert sum(step["tally"]["total"] for step in backend["trend"]) == backend["tally"]["total"]
    assert '<path class="' in sampled.get("/oot").text


def test_new_jobs_are_on_the_page_at_once(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job())
    assert api(client, "/oot")["backends"][0]["tally"]["total"] == 1
    put(warehouse, job(check_run_id="2"))
    deadline = time.monotonic() + 5
    while api(client, "/oot")["backends"][0]["tally"]["total"] != 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_jobs_are_counted_before_a_page_asks(tmp_path: Path, warehouse: Client) -> None:
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        sample.feed(store, UPSTREAM)
        cursor = ""
        while (done := replication.replicate(store, warehouse, cursor)).rows:
            cursor = done.cursor
    arrived, counted = oot.arrived(warehouse)
    assert arrived == counted is not None


def test_old_data_says_since_when(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job())
    assert "Nothing has arrived since" not in client.get("/oot").text
    # An arrival of three hours ago.
    warehouse.command("ALTER TABLE oot_workflow_job DROP PROJECTION newest", settings={"mutations_sync": 1})
    warehouse.command("TRUNCATE TABLE oot_workflow_job")
    warehouse.command("ALTER TABLE oot_workflow_job MODIFY COLUMN _inserted_at MATERIALIZED now64(9) - INTERVAL 3 HOUR")
    put(warehouse, job())
    assert "Nothing has arrived since" in text(client.get("/oot").text)
    assert api(client, "/oot")["stale"] is True


def test_a_warehouse_without_jobs_says_how_they_come(client: TestClient) -> None:
    assert "POST /github/callback" in text(client.get("/oot").text)
    assert client.get("/oot/nobody/nothing").status_code == 404
    assert "No out-of-tree backend has reported" in text(client.get("/pr/1").text)


# --- /oot/{org}/{repo} ----------------------------------------------------------------------------------------------


def test_the_matrix_has_pull_requests_and_jobs(sampled: TestClient) -> None:
    page = text(sampled.get(f"/oot/{CINDER}").text)
    for number in sample.PULL_REQUESTS:
        assert f"#{number}" in page
    assert "test (core)" in page
    found = api(sampled, f"/oot/{CINDER}")
    assert found["columns"] == [["Out-of-tree CI", "build"], ["Out-of-tree CI", "test (core)"]]
    assert [commit["pr_number"] for commit in found["commits"]] == list(sample.PULL_REQUESTS)


def test_a_retry_is_shown_and_the_newest_attempt_counts(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        job(conclusion="failure", hours_ago=3),
        job(run_attempt=2, check_run_id="2", hours_ago=1),
        # A clock that is wrong does not make an old attempt the newest.
        job(run_attempt=1, check_run_id="3", conclusion="failure", hours_ago=-5),
    )
    [commit] = api(client, "/oot/org/backend")["commits"]
    [cell] = commit["cells"]
    assert cell["newest"]["run_attempt"] == 2
    assert len(cell["earlier"]) == 2
    assert commit["tally"]["pass_rate"] == 1.0
    assert "↻2" in client.get("/oot/org/backend").text


def test_a_new_run_counts_over_the_retries_of_an_old_one(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        job(run_attempt=3, hours_ago=5),
        job(run_id="1", check_run_id="2", conclusion="failure", hours_ago=6, minutes=300),
    )
    [commit] = api(client, "/oot/org/backend")["commits"]
    assert commit["cells"][0]["newest"]["state"] == "failure"


@pytest.mark.parametrize("late", [1, 2])
def test_a_run_is_as_new_as_the_latest_of_its_attempts(warehouse: Client, client: TestClient, late: int) -> None:
    put(
        warehouse,
        job(run_id="1", run_attempt=late, check_run_id="1", hours_ago=1),
        job(run_id="1", run_attempt=3 - late, check_run_id="2", hours_ago=5),
        job(run_id="2", check_run_id="3", hours_ago=3),
    )
    [commit] = api(client, "/oot/org/backend")["commits"]
    [cell] = commit["cells"]
    executions = [(of["run_id"], of["run_attempt"]) for of in (cell["newest"], *cell["earlier"])]
    assert executions == [("1", 2), ("1", 1), ("2", 1)]


def test_a_job_that_does_not_say_when_it_began_took_what_the_relay_measured(
    warehouse: Client, client: TestClient
) -> None:
    put(warehouse, job(started_at=None, execution_time=42.0))
    [commit] = api(client, "/oot/org/backend")["commits"]
    assert commit["cells"][0]["newest"]["duration"] == 42.0


def test_jobs_of_one_name_in_two_workflows_are_two(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job(), job(workflow_name="Other", check_run_id="2", conclusion="failure"))
    found = api(client, "/oot/org/backend")
    assert found["columns"] == [["CI", "test"], ["Other", "test"]]
    assert [cell["newest"]["state"] for cell in found["commits"][0]["cells"]] == ["success", "failure"]


def test_an_id_that_was_given_twice_shows_both_jobs_each_as_it_is_now(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job(conclusion=""))
    put(warehouse, job(), job(job_name="other", conclusion="failure"), version=2)
    path = "/oot/org/backend/jobs/delivery-1/1"
    assert {(of["job"]["job_name"], of["job"]["state"]) for of in api(client, path)} == {
        ("test", "success"),
        ("other", "failure"),
    }
    for elsewhere in ("/oot/org/backend/jobs/delivery-2/1", "/oot/org/another/jobs/delivery-1/1"):
        assert client.get(elsewhere).status_code == 404


def test_a_filter_is_kept_on_another_page_and_another_filter_begins_on_the_first(
    warehouse: Client, client: TestClient
) -> None:
    put(warehouse, *(job(pr_number=n, delivery_id=f"d{n}", pytorch_head_sha=f"{n:040}") for n in range(1, 62)))
    links = html.unescape(client.get("/oot/org/backend?job=test&page=2").text)
    assert 'rel="next" href="/oot/org/backend?job=test&page=3"' in links
    assert 'href="/oot/org/backend?job=test&days=30"' in links


def test_a_red_cell_opens_its_failed_tests(sampled: TestClient) -> None:
    page = sampled.get(f"/oot/{CINDER}?job=test&days=30&view=nightlies").text
    links = re.findall(r'class="bad" href="([^"]+)" aria-label="failure', page)
    assert links
    details = " ".join(text(sampled.get(link).text) for link in links)
    assert "TestOps.test_matmul_float16" in details
    assert "Stack trace" in details
    assert "artifacts" in details


def test_filters_find_commits_with_such_a_job(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        job(pr_number=1, delivery_id="d1", pytorch_head_sha="1" * 40, conclusion="failure", job_name="ops"),
        job(pr_number=2, delivery_id="d2", pytorch_head_sha="2" * 40, job_name="ops"),
        job(pr_number=3, delivery_id="d3", pytorch_head_sha="3" * 40, conclusion="", job_name="core"),
    )

    def found(**filters: object) -> set[int]:
        return {commit["pr_number"] for commit in api(client, "/oot/org/backend", **filters)["commits"]}

    assert found() == {1, 2, 3}
    assert found(job="OPS") == {1, 2}
    assert found(conclusion="failure") == {1}
    assert found(conclusion="running") == {3}
    assert found(job="core", conclusion="success") == set()
    assert found(pr=2) == found(job="ops", pr=2) == {2}
    put(warehouse, job(pr_number=3, delivery_id="d3", pytorch_head_sha="3" * 40, job_name="core"), version=2)
    assert found(conclusion="running") == set()
    assert "No job matches" in text(client.get("/oot/org/backend?job=nothing").text)
    assert "#2" in text(client.get("/oot/org/backend?pr=%232").text)


def test_commits_are_found_by_the_author_of_the_pull_request(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job(job_name="of a sender that does not know it"))
    put(
        warehouse,
        job(pr_author="Ada"),
        job(pr_number=8, delivery_id="d2", pytorch_head_sha="b" * 40, check_run_id="2", pr_author="bob"),
        job(pr_number=9, delivery_id="d3", pytorch_head_sha="c" * 40, check_run_id="3"),
    )

    def numbers(**query: object) -> list[int]:
        return [commit["pr_number"] for commit in api(client, "/oot/org/backend", **query)["commits"]]

    assert numbers(author="@ada") == [7]
    assert numbers(author="ad") == []
    assert numbers(author="bob", conclusion="failure") == []
    assert "by Ada" in text(client.get("/pr/7").text)


def test_a_job_is_found_however_many_commits_came_after_it(warehouse: Client, client: TestClient) -> None:
    of_commit = [
        {"pr_number": n, "delivery_id": f"d{n}", "pytorch_head_sha": f"{n:040}", "hours_ago": n} for n in range(1, 1100)
    ]
    of_commit[1050] |= {"conclusion": "failure"}
    put(warehouse, *(job(**fields) for fields in of_commit))
    [found] = api(client, "/oot/org/backend", conclusion="failure")["commits"]
    assert found["pr_number"] == 1051
    passed = [api(client, "/oot/org/backend", job="test", page=page)["commits"] for page in (1, 2)]
    assert [row["pr_number"] for rows in passed for row in rows] == list(range(1, 41))


@pytest.mark.parametrize("commits", [40, 45])
def test_every_commit_is_on_one_of_the_pages(warehouse: Client, client: TestClient, commits: int) -> None:
    put(
        warehouse,
        *(
            job(pr_number=n, delivery_id=f"d{n}", pytorch_head_sha=f"{n:040}", check_run_id=str(n), hours_ago=n / 10)
            for n in range(1, commits + 1)
        ),
    )
    seen: list[list[int]] = []
    path = "/oot/org/backend"
    while path:
        page = client.get(path).text
        seen.append([int(number) for number in re.findall(r">#(\d+)</a>", page)])
        older = re.findall(r'rel="next" href="([^"]+)"', page)
        path = older[0].replace("&amp;", "&") if older else ""
    assert seen == [[*range(1, commits + 1)][first : first + 20] for first in range(0, commits, 20)]


def test_a_failed_job_that_names_no_test_leads_to_its_run(warehouse: Client, client: TestClient) -> None:
    artifacts = {"artifact_url": "https://artifacts.example/1"}
    put(warehouse, job(conclusion="failure", **artifacts))
    put(warehouse, job(delivery_id="d2", conclusion="timed_out", workflow_run_url=""), job(delivery_id="d3"))
    page = text(client.get("/oot/org/backend/jobs/delivery-1/1").text)
    assert "None was reported: see run · artifacts ." in page
    for delivery in ("d2", "d3"):
        assert "None was reported. " in text(client.get(f"/oot/org/backend/jobs/{delivery}/1").text)


def test_failed_tests_that_were_left_out_are_counted(warehouse: Client, client: TestClient) -> None:
    tests = json.dumps([{"name": "t1"}, {"name": "t2", "omitted": 98}])
    put(warehouse, job(conclusion="failure", failed_tests=100, total_tests=200, failed_tests_json=tests))
    assert "2 of 100 are listed" in text(client.get("/oot/org/backend/jobs/delivery-1/1").text)


@pytest.mark.parametrize("broken", ["{", "7", '["x", null]', "[" * 5000, '{"a": 1}', '[{"omitted": "many"}]'])
def test_failed_tests_that_are_no_list_do_not_break_the_page(
    warehouse: Client, client: TestClient, broken: str
) -> None:
    put(warehouse, job(conclusion="failure", failed_tests_json=broken, environment=broken))
    assert client.get("/oot/org/backend/jobs/delivery-1/1").status_code == 200


# --- /pr/{number} ---------------------------------------------------------------------------------------------------


def test_the_section_of_a_pull_request_counts_passed_and_running(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        *(job(job_name=f"job {n}", check_run_id=str(n), conclusion="" if n == 3 else "success") for n in range(4)),
    )
    page = text(client.get("/pr/7").text)
    assert "Out-of-Tree Backends ● 3/4 passed, 1 running" in page


def test_a_backend_that_only_saw_an_earlier_commit_says_so(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        job("org/slow", hours_ago=8, pr_author="ada"),
        job("org/quick", hours_ago=8),
        job("org/quick", delivery_id="d2", pytorch_head_sha="b" * 40, hours_ago=1, conclusion="failure"),
    )
    found = api(client, "/pr/7")
    backends = {entry["commit"]["downstream_repo"]: entry for entry in found["backends"]}
    assert found["author"] == "ada"
    assert backends["org/slow"]["outdated"] is True
    assert backends["org/quick"]["outdated"] is False
    assert backends["org/quick"]["commit"]["tally"]["failure"] == 1
    assert "of an earlier commit" in text(client.get("/pr/7").text)


def test_jobs_that_fail_are_told_first(warehouse: Client, client: TestClient) -> None:
    ends = {"a": "skipped", "b": "success", "c": "timed_out", "d": "failure", "e": ""}
    put(warehouse, *(job(job_name=f"job {name}", conclusion=end) for name, end in ends.items()))
    page = client.get("/pr/7").text
    assert re.findall(r">job (\w)<", page) == ["c", "d", "a", "e", "b"]


def test_backends_that_fail_are_told_first(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        job("org/failed", conclusion="failure", hours_ago=2),
        job("org/timed-out", conclusion="timed_out", hours_ago=3),
        job("org/passed", hours_ago=1),
    )
    backends = [entry["commit"]["downstream_repo"] for entry in api(client, "/pr/7")["backends"]]
    assert backends == ["org/failed", "org/timed-out", "org/passed"]


def test_a_backend_says_whom_to_ask(tmp_path: Path, warehouse: Client, warehouse_url: str) -> None:
    allowlist = tmp_path / "allowlist.yml"
    allowlist.write_text('L2: [org/other]\nL4: [{org/backend: "ada, linus"}]\n')
    settings = load_oot_settings(
        CI_PIPELINE_HOME=tmp_path, CI_PIPELINE_WAREHOUSE_URL=warehouse_url, CI_PIPELINE_OOT_ALLOWLIST=str(allowlist)
    )
    put(warehouse, job(), job("org/other"))
    with TestClient(create_server(settings, load_profile("transformers")), base_url="http://127.0.0.1") as client:
        assert "ask ada, linus" in text(client.get("/oot/org/backend").text)
        assert text(client.get("/pr/7").text).count("ask ada, linus") == 1
        assert api(client, "/oot/org/backend")["oncalls"] == ["ada", "linus"]
        assert api(client, "/oot/org/other")["oncalls"] == []


def test_earlier_commits_of_a_pull_request_are_a_link_away(warehouse: Client, client: TestClient) -> None:
    old, new = "a" * 40, "b" * 40
    put(
        warehouse,
        job(hours_ago=8),
        job(job_name="retried", run_attempt=2, check_run_id="2", hours_ago=0.1, pytorch_head_sha=old),
        job("org/other", delivery_id="d2", pytorch_head_sha=new, hours_ago=1),
        job("org/late", hours_ago=0.1, pytorch_head_sha=old),
    )
    now = api(client, "/pr/7")
    assert [commit["head_sha"] for commit in now["commits"]] == [new, old]  # though the old one was active last
    assert now["head_sha"] == new
    before = api(client, "/pr/7", commit=old[:10])
    assert before["head_sha"] == old
    backends = {of["commit"]["downstream_repo"]: of["outdated"] for of in before["backends"]}
    assert backends == {"org/backend": False, "org/late": False}
    assert f'href="/pr/7?commit={old}"' in client.get("/pr/7").text
    assert "Not the newest commit" in client.get(f"/pr/7?commit={old}").text


def test_a_commit_that_nobody_reported_on_has_no_backends(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job())
    assert api(client, "/pr/7", commit="f" * 40)["backends"] == []
    assert "has reported on this commit" in text(client.get("/pr/7?commit=" + "f" * 40).text)


def test_pull_requests_of_two_upstreams_are_told_apart(warehouse: Client, client: TestClient) -> None:
    put(
        warehouse,
        job(),
        job(
            upstream_repo="other/upstream", delivery_id="d2", pytorch_head_sha="b" * 40, job_name="theirs", hours_ago=0
        ),
    )
    assert "theirs" not in client.get("/pr/7").text
    assert "theirs" in client.get("/other/upstream/pull/7").text
    assert api(client, "/pr/7")["other_upstreams"] == ["other/upstream"]
    assert api(client, "/pr/7", upstream="other/upstream")["head_sha"] == "b" * 40
    put(warehouse, job(upstream_repo="other/upstream", delivery_id="d3", pr_number=8))
    assert api(client, "/pr/8")["upstream_repo"] == "other/upstream"
    assert api(client, "/pr/9")["upstream_repo"] == UPSTREAM


# --- all of them ----------------------------------------------------------------------------------------------------

PATHS = ("/oot", "/oot?view=nightlies&days=1", f"/oot/{CINDER}", f"/oot/{CINDER}?view=nightlies", "/pr/4242", "/pr/9")


def test_every_link_of_the_pages_leads_somewhere(sampled: TestClient) -> None:
    seen: set[str] = set()
    for path in PATHS:
        page = sampled.get(path).text
        seen |= {link.replace("&amp;", "&") for link in re.findall(r'(?:href|src)="(/[^"]*)"', page)}
    assert len(seen) > 30
    for link in seen:
        assert sampled.get(link).status_code == 200, link


def test_the_former_addresses_lead_to_the_new_ones(sampled: TestClient) -> None:
    for old, new in (
        ("/crcr", "/oot"),
        ("/crcr/a/b?days=1", "/oot/a/b?days=1"),
        ("/crcr//evil.example", "/oot//evil.example"),
    ):
        response = sampled.get(old, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (308, new)


def test_a_page_leads_to_the_same_as_json(sampled: TestClient) -> None:
    for path in (f"/oot/{CINDER}?view=nightlies&job=%22&pr=%20%2312&page=2", f"/oot/{CINDER}?pr=", "/pr/4242"):
        [link] = re.findall(r'href="(/api/[^"]*)"', sampled.get(path).text)
        answer = sampled.get(html.unescape(link))
        assert answer.status_code == 200, link
    assert answer.json()["number"] == 4242


def test_a_job_is_found_by_its_links_whatever_its_id(warehouse: Client, client: TestClient) -> None:
    put(warehouse, job(delivery_id="d #1?&é"))
    [link] = re.findall(r'href="(/oot/org/backend/jobs/[^"]*)"', client.get("/oot/org/backend").text)
    [as_json] = re.findall(r'href="(/api/[^"]*)"', client.get(link).text)
    assert as_json == f"/api{link}?"
    assert client.get(as_json).json()[0]["job"]["delivery_id"] == "d #1?&é"


@pytest.mark.parametrize("query", ["days=2", "days=x", "view=all", "page=0", "page=-1", f"page={10**30}", "pr=x"])
def test_wrong_parameters_are_refused(sampled: TestClient, query: str) -> None:
    assert sampled.get(f"/oot/{CINDER}?{query}").status_code == 422


def test_the_apis_are_described(sampled: TestClient) -> None:
    paths = sampled.get("/openapi.json").json()["paths"]
    assert {"/api/oot", "/api/oot/{org}/{repo}", "/api/pr/{number}", "/readyz", "/metrics"} <= set(paths)
    assert not any(path.startswith(("/oot", "/pr", "/crcr", "/runs", "/history")) or path == "/" for path in paths)


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.parametrize("payload", HOSTILE)
def test_nothing_that_a_backend_sends_becomes_markup(warehouse: Client, client: TestClient, payload: str) -> None:
    tests = json.dumps([dict.fromkeys(("name", "file", "message", "stacktrace", "duration_seconds"), payload)])
    texts = dict.fromkeys(
        (
            *("downstream_repo_level", "pytorch_head_sha", "workflow_name", "workflow_run_url", "job_name"),
            *("run_id", "artifact_url", "conclusion", "upstream_repo"),
        ),
        payload,
    )
    put(warehouse, job(**texts, failed_tests_json=tests, environment=json.dumps({payload: payload})))
    pages = (
        "/oot",
        "/oot/org/backend",
        "/oot/org/backend/jobs/delivery-1/1",
        "/pr/7",
        f"/oot/org/backend?job={payload}",
    )
    for path in pages:
        response = client.get(path)
        assert response.status_code == 200
        found = _Elements()
        found.feed(response.text)
        assert not found.tags & {"img", "iframe", "object"}
        assert response.text.count("<script") == 1
        assert not any(name.startswith("on") or name == "style" for name, _ in found.attributes)
        assert not any(
            value.lower().startswith(("javascript", "//"))
            for name, value in found.attributes
            if name in ("href", "src")
        )


# --- operation ------------------------------------------------------------------------------------------------------


def test_readyz_asks_the_warehouse(sampled: TestClient, tmp_path: Path) -> None:
    assert sampled.get("/readyz").json() == {"status": "ok"}
    down = app_at(tmp_path, "http://127.0.0.1:9/default")
    assert down.get("/readyz").status_code == 503
    assert "warehouse" in down.get("/readyz").json()["detail"]
    assert "warehouse_up 0.0" in down.get("/metrics").text


def test_readyz_notices_that_the_warehouse_stopped(tmp_path: Path) -> None:
    with Embedded(tmp_path / "warehouse") as warehouse:
        client = app_at(tmp_path, warehouse.url)
        assert client.get("/readyz").status_code == 200
        assert "warehouse_up 1.0" in client.get("/metrics").text
    assert client.get("/readyz").status_code == 503
    assert "warehouse_up 0.0" in client.get("/metrics").text


def test_readyz_of_a_relay_asks_its_store(tmp_path: Path) -> None:
    relay = create_server(load_oot_settings(CI_PIPELINE_HOME=tmp_path), load_profile("transformers"), pages=False)
    with TestClient(relay) as client:
        assert client.get("/readyz").json() == {"status": "ok"}
    closed = client.get("/readyz")
    assert closed.status_code == 503
    assert str(tmp_path / "oot.sqlite") in closed.json()["detail"]


def test_metrics_tell_callbacks_lag_and_freshness(tmp_path: Path, warehouse: Client, warehouse_url: str) -> None:
    put(warehouse, job())
    warehouse.insert("ci_run", [["a/b", 1, NOW]], column_names=["repository", "run_id", "run_created_at"])
    (tmp_path / "allowlist.yml").write_text("L2: [org/backend]\n")
    settings = load_oot_settings(
        CI_PIPELINE_HOME=tmp_path,
        CI_PIPELINE_WAREHOUSE_URL=warehouse_url,
        CI_PIPELINE_OOT_ALLOWLIST=str(tmp_path / "allowlist.yml"),
    )
    with TestClient(create_server(settings, load_profile("transformers")), base_url="http://127.0.0.1") as client:
        assert client.post("/github/callback", json={}).status_code == 401
        assert client.post("/github/callback/", json={}).status_code == 401
        refused = client.get("/github/callback")
        assert (refused.status_code, refused.json()) == (405, {"detail": "Method Not Allowed"})
        assert client.post("/api/oot/results", json={}).status_code == 401
        assert client.post("/github/webhook", json={}).status_code == 401
        assert client.get("/readyz").status_code == 200
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    metrics = answer.text
    assert 'oot_requests_total{path="/github/callback",status="401"} 2.0' in metrics
    assert 'status="405"' not in metrics
    assert 'oot_requests_total{path="/github/webhook",status="401"} 1.0' in metrics
    assert 'oot_request_seconds_count{path="/api/oot/results"} 1.0' in metrics
    assert 'oot_request_seconds_bucket{le="10.0",path="/github/callback"} 2.0' in metrics
    assert re.search(r"^oot_replication_lag_seconds [\d.e-]+$", metrics, re.MULTILINE)
    assert re.search(r"^oot_arrived_timestamp_seconds 1\.\d+e\+09$", metrics, re.MULTILINE)
    [created] = re.findall(r"^ci_run_created_timestamp_seconds (\S+)$", metrics, re.MULTILINE)
    assert float(created) == NOW.timestamp()
    assert "warehouse_up 1.0" in metrics
    assert "oot_queue_messages" not in metrics  # the HUD is this server


def test_metrics_tell_what_waits_for_a_hud_elsewhere(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "oot.sqlite")) as store:
        step = JobStep("delivery-1", "org/backend", "job", "completed", "digest", "key", self_report=True)
        store.advance(step, 0.0, lambda _: Message(b"{}")).result()
    settings = load_oot_settings(
        CI_PIPELINE_HOME=tmp_path, CI_PIPELINE_HUD_URL="http://127.0.0.1:9", CI_PIPELINE_RELAY_TOKENS="token"
    )
    with TestClient(create_server(settings, load_profile("transformers"), pages=False)) as client:
        assert "oot_queue_messages 1.0" in client.get("/metrics").text


def test_a_callback_that_breaks_the_server_is_counted_as_that(tmp_path: Path) -> None:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError

    metrics = Metrics(Services(load_settings(CI_PIPELINE_HOME=tmp_path), load_profile("transformers")))
    client = TestClient(metrics.measured(broken), raise_server_exceptions=False)
    assert client.post("/github/callback").status_code == 500
    labels = {"path": "/github/callback", "status": "500"}
    assert metrics.registry.get_sample_value("oot_requests_total", labels) == 1


@pytest.mark.parametrize("alone", ["pages", "relay", "hud_api"])
def test_pages_relay_and_hud_api_can_be_served_alone(
    tmp_path: Path, warehouse: Client, warehouse_url: str, alone: str
) -> None:
    settings = load_oot_settings(CI_PIPELINE_HOME=tmp_path, CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    parts = {part: part == alone for part in ("pages", "relay", "hud_api")}
    app = create_server(settings, load_profile("transformers"), **parts)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert (client.get("/oot").status_code == 200) is parts["pages"]
        assert (tmp_path / "oot.sqlite").exists() is not parts["pages"]
        assert (client.post("/github/callback", json={}).status_code == 401) is parts["relay"]
        assert (client.post("/api/oot/results", json={}).status_code == 401) is parts["hud_api"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == client.get("/metrics").status_code == 200
        assert client.head("/healthz").status_code == 200


# --- words ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_only_all_green_is_100_percent(total: int, failed: int) -> None:
    rate = max(0, total - failed) / total
    assert (percent(rate) == "100.0 %") == (failed == 0)


@pytest.mark.parametrize(
    ("rate", "kind"), [(1.0, "good"), (0.95, "good"), (0.9499, "warn"), (0.8, "warn"), (0.79, "bad"), (0, "bad")]
)
def test_the_chip_of_a_pass_rate(rate: float, kind: str) -> None:
    assert rate_kind(rate)[0] == kind


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (3900, "1 h 5 min")],
)
def test_times_are_told_in_two_units(value: float | None, expected: str) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("successes", "rates", "durations"),
    [
        ([], "no jobs", "no jobs"),
        ([5], "50.0 %", "5 s"),
        ([10, 4, 8], "from 100.0 % to 80.0 %, lowest 40.0 %", "from 10 s to 8 s, longest 10 s"),
    ],
)
def test_a_trend_is_told_in_words(successes: list[int], rates: str, durations: str) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    nothing = Step(began, Tally(), None)
    trend = [nothing, *(Step(began, Tally.of(0, count, 0, 0, 10), count) for count in successes), nothing]
    assert (trend_text(trend), trend_text(trend, "duration")) == (rates, durations)

"""The pages of CI runs, over what the pipeline really wrote to a real warehouse."""

from __future__ import annotations

import html
import json
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

from ci_pipeline.hud.app import create_app
from ci_pipeline.hud.ci_runs import streaks
from ci_pipeline.oot import replication
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.profile import load_profile
from ci_pipeline.sample import build, install
from ci_pipeline.sample import oot as callbacks
from ci_pipeline.services import Services
from ci_pipeline.settings import Settings, load_settings
from ci_pipeline.warehouse.embedded import Embedded
from ci_pipeline.web_address import is_web
from ci_pipeline.whole_runs import process_run

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

FIRST, SECOND, AMD = (night.run_id for night in build.NIGHTS)
HOSTILE = 19510000003


def settings_at(home: Path, url: str) -> Settings:
    return load_settings(
        CI_PIPELINE_HOME=home, CI_PIPELINE_WAREHOUSE_URL=url, CI_PIPELINE_DAGSTER_URL="http://127.0.0.1:3000/"
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, embedded_warehouse: Embedded) -> TestClient:
    """The application over the sample, and over one more run that means no good."""
    home = tmp_path_factory.mktemp("home")
    install(home / "inbox")
    hostile = home / "inbox" / str(HOSTILE)
    report = hostile / "artifacts" / "single-gpu_run_models_gpu_models_x_test_reports"
    report.mkdir(parents=True)
    (report / "stats.txt").write_text("= 1 failed in 1.00s =\n")
    (report / "summary_short.txt").write_text(
        "FAILED tests/x.py::t[<script>alert(1)</script>] - <img src=x onerror=a>\n"
    )
    run = build.run_json(build.NIGHTS[1]) | {"id": HOSTILE, "created_at": "2026-11-21T00:00:00Z"}
    run |= {"html_url": "javascript:alert(1)", "name": "<i>CI</i>", "head_branch": '"><svg onload=a>'}
    (hostile / "run.json").write_text(json.dumps(run))
    (hostile / "_SUCCESS").touch()
    settings = settings_at(home, embedded_warehouse.url.removesuffix("default") + "pages")
    profile = load_profile("transformers")
    services = Services(settings, profile)
    for ci_run in services.source.runs_after(None).runs:
        process_run(ci_run, services, post=False)
    with closing(SqliteStore(home / "oot.sqlite")) as store:
        callbacks.feed(store, profile.repository)
        assert services.warehouse
        replication.replicate_all(store, services.warehouse)
    return TestClient(create_app(settings, profile), base_url="http://127.0.0.1")


def put(warehouse: Client, table: str, *rows: dict[str, Any]) -> None:
    """Rows of one run, or of those that they name."""
    for row in rows:
        of_run = {"repository": "huggingface/transformers", "run_id": 1, "run_attempt": 1, "version": 1, **row}
        warehouse.insert(table, [list(of_run.values())], column_names=list(of_run))


@pytest.fixture
def own(tmp_path: Path, warehouse_url: str) -> TestClient:
    """The application over the test's own warehouse."""
    app = create_app(settings_at(tmp_path, warehouse_url), load_profile("transformers"))
    return TestClient(app, base_url="http://127.0.0.1")


def text(page: str) -> str:
    """What a reader sees, roughly."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_the_newest_run_is_first(client: TestClient) -> None:
    page = client.get("/").text
    places = [page.index(f'href="/runs/{run_id}"') for run_id in (AMD, SECOND, FIRST)]
    assert places == sorted(places)


def test_a_run_says_at_once_how_much_of_what_fails_is_new(client: TestClient) -> None:
    for path in ("/", f"/runs/{SECOND}"):
        assert "Daily CI #1302 ✗ 30 failing, 24 new" in text(client.get(path).text)


def test_a_run_leads_to_its_own_partition_in_dagster(client: TestClient) -> None:
    address = f"http://127.0.0.1:3000/assets/slack_report?view=partitions&amp;partition={SECOND}-1"
    assert f'href="{address}"' in client.get(f"/runs/{SECOND}").text
    navigation = ('<a href="/oot">Out-of-tree</a>', '<a href="http://127.0.0.1:3000/">Dagster</a>')
    assert all(link in client.get("/").text for link in navigation)
    assert '<a href="/">CI runs</a>' in client.get("/oot").text


def test_without_an_address_of_dagster_nothing_leads_there(
    tmp_path: Path, warehouse: Client, warehouse_url: str
) -> None:
    put(warehouse, "ci_run", {})
    settings = load_settings(CI_PIPELINE_HOME=tmp_path, CI_PIPELINE_WAREHOUSE_URL=warehouse_url)
    page = TestClient(create_app(settings, load_profile("transformers"))).get("/runs/1")
    assert page.status_code == 200
    assert "Dagster" not in page.text


def test_without_a_run_to_compare_with_nothing_is_said_to_be_new_or_not(client: TestClient) -> None:
    amd = text(client.get("/").text.partition(f'href="/runs/{SECOND}"')[0])
    assert "Models 28 – – – – 118 8 all 8" in amd


def test_a_run_with_a_killed_job_is_marked_incomplete_and_says_why(client: TestClient) -> None:
    assert text(client.get("/").text).count("incomplete") >= 2
    page = text(client.get(f"/runs/{SECOND}").text)
    assert "Incomplete: the numbers below leave this out" in page
    assert "Models: models_ibis on multi: " in page


def test_a_run_says_what_it_was_compared_with(client: TestClient) -> None:
    page = client.get(f"/runs/{SECOND}").text
    assert "Compared with Daily CI #1301 ( commits between )." in text(page)
    found = client.get(f"/api/runs/{SECOND}").json()
    [before] = found["against"]
    assert f"/compare/{before['head_sha']}...{found['run']['head_sha']}" in page
    assert f'href="https://github.com/huggingface/transformers/commit/{found["run"]["head_sha"]}"' in page
    assert "Compared with Daily CI #1302 (the same commit)." in text(client.get(f"/runs/{AMD}").text)
    assert "Compared with" not in client.get(f"/runs/{FIRST}").text


def test_a_lost_artifact_is_told_on_its_runs_page(client: TestClient) -> None:
    page = text(client.get(f"/runs/{AMD}").text)
    assert "PyTorch pipelines on single: no artifact" in page
    assert re.search(r"PyTorch pipelines (✗ \d+ failing )?◐ incomplete", page)


def every_test(client: TestClient, run_id: int, **where: object) -> list[dict[str, Any]]:
    """All pages."""
    path = f"/api/runs/{run_id}/tests"
    first = client.get(path, params={name: str(value) for name, value in where.items()}).json()
    rest = [client.get(path, params={**where, "page": str(page)}).json() for page in range(2, first["pages"] + 1)]  # pyright: ignore
    found = [test for page in (first, *rest) for test in page["tests"]]
    assert len(found) == first["matching"]
    return found


WREN = "tests/models/wren/test_modeling_wren.py::"


def test_failing_tests_are_told_by_what_happened_to_them(client: TestClient) -> None:
    found: dict[str, dict[str, Any]] = {}
    for test in every_test(client, SECOND, test_job="run_models_gpu"):
        found.setdefault(test["change"], {})[test["node_id"]] = test
    assert found["new_failure"][f"{WREN}WrenModelTest::test_left_padding"]["devices"] == ["single", "multi"]
    assert found["new_failure"][f"{WREN}WrenModelTest::test_model_parallelism"]["devices"] == ["multi"]
    changed = found["changed_error"][f"{WREN}WrenModelTest::test_flash_attention_2_inference"]
    assert "undefined symbol" in changed["previous_trace"]
    assert "out of memory" in changed["trace"]
    assert changed["since_run_id"] == FIRST
    assert f"{WREN}test_export[onnx]" in found["fixed"]
    assert next(iter(found)) == "new_failure"


def test_every_failure_that_was_counted_is_among_the_tests(client: TestClient) -> None:
    for run_id in (FIRST, SECOND, AMD):
        run = client.get(f"/api/runs/{run_id}").json()
        counted = sum(part["failed"] + part["errors"] for job in run["jobs"] for part in job["results"])
        red = ("new_failure", "changed_error", "failing", "still_failing")
        listed = [len(test["devices"]) for change in red for test in every_test(client, run_id, change=change)]
        assert sum(listed) == counted > 0


def test_tests_of_a_run_are_found_by_text_device_folder_and_error(client: TestClient) -> None:
    everything = every_test(client, SECOND)
    of_multi = every_test(client, SECOND, device="multi")
    assert 0 < len(of_multi) < len(everything)
    assert all("multi" in test["devices"] for test in of_multi)
    by_trace = every_test(client, SECOND, text="OUT OF MEMORY")
    assert by_trace
    assert all("out of memory" in test["trace"] for test in by_trace)
    assert {test["matrix_entry"] for test in every_test(client, SECOND, folder="models_wren")} == {"models_wren"}
    assert every_test(client, SECOND, text="no such thing", device="multi") == []
    assert "No test matches" in text(client.get(f"/runs/{SECOND}?text=no+such+thing").text)


def test_what_failing_tests_have_in_common_is_a_link_to_them(client: TestClient) -> None:
    page = client.get(f"/runs/{SECOND}").text
    links = re.findall(r'class="number">([\d,]+)</span> <span><a href="([^"#]*)#tests"', page)
    assert len(links) > 5
    for count, link in links:
        shown = client.get("/api" + html.unescape(link).replace("?", "/tests?")).json()
        failing = [test for test in shown["tests"] if test["change"] not in ("fixed", "newly_skipped", "vanished")]
        assert len(failing) <= int(count) <= sum(len(test["devices"]) for test in failing) or shown["pages"] > 1


def test_a_test_job_without_folders_counts_as_one(client: TestClient) -> None:
    job = "run_pipelines_torch_gpu"
    assert f"6 {job}" in text(client.get(f"/runs/{SECOND}").text)
    assert {test["test_job"] for test in every_test(client, SECOND, folder=job)} == {job}


def test_what_happened_to_tests_is_counted_in_the_order_in_which_they_are_listed(client: TestClient) -> None:
    page = text(client.get(f"/runs/{SECOND}").text)
    titles = re.findall(
        r"(New failures|Fails with another error|Still failing|Fixed|Newly skipped|Not run any more)", page
    )
    assert titles[:6] == titles[6:] == list(dict.fromkeys(titles))


def test_an_error_of_the_machines_is_marked_as_theirs(client: TestClient) -> None:
    assert "⚙ out of memory" in text(client.get(f"/runs/{SECOND}").text)


def test_failures_that_the_other_vendor_does_not_have_are_marked(client: TestClient) -> None:
    only_here = {test["node_id"] for test in every_test(client, AMD) if test["only_here"]}
    assert f"{WREN}WrenModelTest::test_attention_outputs" in only_here
    assert f"{WREN}WrenModelTest::test_left_padding" not in only_here


def test_the_history_of_a_test_is_one_click_away(client: TestClient) -> None:
    page = client.get(f"/runs/{AMD}").text
    [link] = re.findall(r'href="(/history[^"]*test_attention_outputs)"', page)
    history = text(client.get(link.replace("&amp;", "&")).text)
    latest, _, every = history.partition("CI run Device")
    assert every.count("✗ failed") == 2
    assert every.count("✓ passed") == 4
    assert latest.index("✗ failed") < latest.index("✓ passed")  # where it fails comes first
    assert "Daily CI #1302 multi ✓ passed" in every
    assert {row["device"] for row in client.get(f"/api{html.unescape(link)}&device=multi").json()} == {"multi"}
    of_multi = text(client.get(f"{html.unescape(link)}&device=multi").text)
    assert "in the latest CI runs on multi" in of_multi
    assert "single" not in of_multi


@pytest.mark.parametrize("head_sha", ["a" * 40, ""])
def test_a_test_leads_to_its_history_and_its_file_at_the_commit_whatever_its_name(
    warehouse: Client, own: TestClient, head_sha: str
) -> None:
    node_id = "tests/a b.py::t[x&y=#1+%20/é]"
    put(warehouse, "ci_run", {"head_sha": head_sha}, {"run_id": 9, "head_sha": head_sha and "b" * 40})
    put(warehouse, "run_diff", {"node_id": node_id, "change": "new_failure", "against_run_id": 9})
    put(warehouse, "test_outcome", {"node_id": node_id, "outcome": "failed"})
    page = own.get("/runs/1").text
    [history] = re.findall(r'href="(/history[^"]*)"', page)
    assert own.get(html.unescape(history)).text.count("✗") == 3  # now, oldest to newest, and every outcome
    file = f"https://github.com/huggingface/transformers/blob/{head_sha}/tests/a%20b.py"
    assert re.findall(r'href="([^"]*)"[^>]*>source<', page) == ([file] if head_sha else [])
    assert ("/compare/" in page) is bool(head_sha)
    assert "the same commit" not in page


def test_a_pull_request_has_the_results_of_both_halves(client: TestClient) -> None:
    found = client.get("/api/pr/4242").json()
    assert {AMD, SECOND} <= {run["run"]["run_id"] for run in found["runs"]}
    assert len(found["backends"]) == 3
    page = text(client.get("/pr/4242").text)
    assert re.search(r"In-tree CI .*mi325 #417 ✗ \d+ failing ◐ incomplete", page)
    assert re.search(r"Out-of-Tree Backends \S \d+/\d+ passed", page)
    assert "by ada" in page


def test_a_run_with_many_failing_tests_is_a_small_page(warehouse: Client, own: TestClient) -> None:
    columns = "repository, run_id, run_attempt, version, test_job, matrix_entry"
    of_run = "'huggingface/transformers', 1, 1, 1"
    put(warehouse, "ci_run", {})
    warehouse.command(
        f"INSERT INTO test_outcome ({columns}, device, node_id, outcome, trace) SELECT {of_run}, 'run_models_gpu',"
        " concat('m', toString(number % 400)), 'single', toString(number), 'failed', 'boom' FROM numbers(20000)"
    )
    warehouse.command(
        f"INSERT INTO test_job_result ({columns}, device, failed, complete, reason) SELECT {of_run}, 'run_models_gpu',"
        " concat('m', toString(number)), 'single', 50, number > 300, 'killed' FROM numbers(400)"
    )
    page = own.get("/runs/1")
    assert len(page.content) < 150_000
    assert "20,000 boom" in text(page.text)
    assert "Folder, the 12 most common 50 m0 50 m1 50 m10 " in text(page.text)
    assert "Page 1 of 400" in text(page.text)
    assert "The worst 60 of 400 that fail or are incomplete" in text(page.text)
    assert text(page.text).count("killed") > 60
    [test] = own.get("/api/runs/1/tests", params={"folder": "m7", "text": "19607"}).json()["tests"]
    assert test["node_id"] == "19607"
    second = own.get("/api/runs/1/tests?page=2").json()
    assert (second["page"], second["pages"], second["matching"]) == (2, 400, 20000)
    assert [test["matrix_entry"] for test in second["tests"]] == ["m1"] * 50
    assert f">{second['tests'][0]['node_id']}</a>" in own.get("/runs/1?page=2").text


def test_the_worst_parts_of_a_test_job_are_first_and_the_others_a_click_away(
    warehouse: Client, own: TestClient
) -> None:
    part = {"test_job": "run_models_gpu", "device": "single", "complete": True}
    put(warehouse, "ci_run", {})
    put(
        warehouse,
        "test_job_result",
        {**part, "matrix_entry": "models_fails", "failed": 2, "errors": 1, "seconds": 59.96},
        {**part, "matrix_entry": "models_fails_least", "failed": 1, "seconds": 3725.6},
        {**part, "matrix_entry": "models_fails_less", "errors": 2, "seconds": 59.94},
        {**part, "matrix_entry": "models_killed", "complete": False},
        {**part, "matrix_entry": "models_passed", "device": "multi", "success": 3},
        {**part, "matrix_entry": "models_passed", "success": 3},
        {**part, "matrix_entry": "models_unfinished", "complete": False, "errors": 1},
    )
    page = text(own.get("/runs/1").text.partition('id="run_models_gpu"')[2])
    every = text(own.get("/runs/1?parts=run_models_gpu").text.partition('id="run_models_gpu"')[2])
    assert re.findall(r"models_(\w+)", page) == ["unfinished", "killed", "fails", "fails_less", "fails_least"]
    assert re.findall(r"models_(\w+)", every) == [
        "fails", "fails_least", "fails_less", "killed", "passed", "passed", "unfinished"
    ]  # fmt: skip
    assert every.index("passed single") < every.index("passed multi")
    assert "Models ✗ 7 failing ◐ incomplete its tests" in page
    assert "All passed in the other 2. Show all 7" in page
    assert "fails single 2 1 0 0 0:01:00" in page
    assert "fails_less single 0 2 0 0 59.9 s" in page
    assert "fails_least single 1 0 0 0 1:02:06" in page


def test_a_run_is_green_when_all_of_it_was_seen_and_passed(warehouse: Client, own: TestClient) -> None:
    part = {"test_job": "run_models_gpu", "matrix_entry": "models_x", "success": 3, "complete": True}
    put(warehouse, "ci_run", {})
    put(warehouse, "test_job_result", part)
    first, page = (text(own.get(path).text) for path in ("/", "/runs/1"))
    assert first.count("✓ all passed") == 1
    assert page.count("✓ all passed") == 2  # the run, and its test job
    assert "Models 0 0 0 0 0 3 0 all 1" in first
    assert "◐ incomplete" not in first + page


def test_a_run_with_a_problem_is_incomplete_though_each_of_its_test_jobs_was_seen(
    warehouse: Client, own: TestClient
) -> None:
    put(warehouse, "ci_run", {"problems": ["GitHub's jobs were not told: 403"]})
    put(warehouse, "test_job_result", {"test_job": "run_models_gpu", "success": 3, "complete": True})
    page = text(own.get("/runs/1").text)
    assert "GitHub&#39;s jobs were not told: 403" in page
    assert page.count("◐ incomplete") == page.count("✓ all passed") == 1  # the run, and its test job
    assert "✓ all passed" not in own.get("/").text


@pytest.mark.parametrize(
    ("entries", "heading"), [([""], "Job"), (["run_models_gpu"], "Job"), (["", "models_x"], "Folder")]
)
def test_the_parts_of_a_test_job_are_called_folders_where_it_has_any(
    warehouse: Client, own: TestClient, entries: list[str], heading: str
) -> None:
    put(warehouse, "ci_run", {})
    put(warehouse, "test_job_result", *({"test_job": "run_models_gpu", "matrix_entry": entry} for entry in entries))
    page = text(own.get("/runs/1").text)
    assert f" {heading} Device " in page
    assert " on :" not in page  # of a part without a device


def test_how_much_is_new_is_said_when_each_test_job_that_fails_was_compared(warehouse: Client, own: TestClient) -> None:
    put(warehouse, "ci_run", {})
    put(
        warehouse,
        "test_job_result",
        {"test_job": "run_models_gpu", "failed": 2, "complete": True},
        {"test_job": "run_examples_gpu", "success": 1, "complete": True},
    )
    change = {"test_job": "run_models_gpu", "change": "still_failing"}
    put(
        warehouse,
        "run_diff",
        *({**change, "node_id": name, "against_run_id": run} for name, run in (("a", 8), ("b", 9))),
    )
    page = text(own.get("/").text)
    assert page.count("✗ 2 failing, 0 new") == 1
    assert "Models 2 0 0 2 0 0 0 all 1 Examples directory 0 0 0 0 0 1 0 all 1" in page
    assert "Compared with" not in own.get("/runs/1").text  # those runs are not known any more
    put(warehouse, "test_job_result", {"test_job": "of_nobody", "failed": 1, "complete": True})
    put(warehouse, "run_diff", {"test_job": "of_nobody", "change": "unique_failure", "against_run_id": 7})
    page = text(own.get("/").text)
    assert "✗ 3 failing " in page
    assert "Examples directory 0 0 0 0 0 1 0 all 1 of_nobody 1 – – – – 0 0 all 1" in page


def test_a_run_of_which_nothing_was_seen_is_not_green(warehouse: Client, own: TestClient) -> None:
    put(warehouse, "ci_run", {}, {"repository": "octo/fork"})
    for path, runs in (("/", 2), ("/runs/1", 1)):
        page = text(own.get(path).text)
        assert page.count("◐ incomplete") == runs
        assert page.count("No report of this run was found") == runs
        assert "all passed" not in page
    assert len(own.get("/api/runs?limit=1").json()) == 1


def test_what_fails_in_a_folder_is_told_with_whom_to_ask(tmp_path: Path, warehouse: Client, warehouse_url: str) -> None:
    columns = "repository, run_id, run_attempt, version"
    of_run = "'huggingface/transformers', 1, 1, 1"
    put(warehouse, "ci_run", {})
    warehouse.command(
        f"INSERT INTO test_outcome ({columns}, test_job, matrix_entry, device, node_id, outcome, message, trace) VALUES"
        f" ({of_run}, 'run_models_gpu', 'models_bert', 'multi', 'a', 'failed', 'no trace: boom', ''),"
        f" ({of_run}, 'run_models_gpu', 'models_bert', 'single', 'b', 'error', '', '(line 3)  boom\nwhere'),"
        f" ({of_run}, 'run_models_gpu', 'models_gpt2', 'single', 'a', 'failed', '', '(line 7)  boom\nthere'),"
        f" ({of_run}, 'run_examples_gpu', '', 'single', 'out of memory', 'failed', '', '{'x' * 3000}')"
    )
    oncall = {"models_bert": "ada", "run_examples_gpu": "linus"}
    profile = load_profile("transformers").model_copy(update={"oncall": oncall})
    client = TestClient(create_app(settings_at(tmp_path, warehouse_url), profile), base_url="http://127.0.0.1")
    page = text(client.get("/runs/1").text)
    assert "2 models_bert ask ada 1 models_gpt2 1 run_examples_gpu ask linus" in page
    assert "2 boom 1 no trace: boom" in page
    assert "3 single 1 multi" in page
    long = client.get("/api/runs/1/tests?text=OUT+OF+MEM").json()["tests"]
    assert [len(test["trace"]) for test in long] == [2000]


def test_a_folder_of_nobody_is_of_those_who_look_after_its_test_job(
    tmp_path: Path, warehouse: Client, warehouse_url: str
) -> None:
    put(warehouse, "ci_run", {})
    failed = {"test_job": "run_models_gpu", "outcome": "failed", "node_id": "t"}
    put(warehouse, "test_outcome", *({**failed, "matrix_entry": f"models_{name}"} for name in ("bert", "gpt2")))
    oncall = {"bert": "ada", "run_models_gpu": "grace"}
    profile = load_profile("transformers").model_copy(update={"oncall": oncall})
    client = TestClient(create_app(settings_at(tmp_path, warehouse_url), profile), base_url="http://127.0.0.1")
    assert "1 models_bert ask ada 1 models_gpt2 ask grace" in text(client.get("/runs/1").text)


def test_a_history_that_is_longer_than_its_page_says_so(warehouse: Client, own: TestClient) -> None:
    run = "'huggingface/transformers', number, 1, 1"
    columns = "repository, run_id, run_attempt, version"
    warehouse.command(f"INSERT INTO ci_run ({columns}) SELECT {run} FROM numbers(1, 120)")
    warehouse.command(
        f"INSERT INTO test_outcome ({columns}, node_id, outcome) SELECT {run}, 't.py::t', 'passed' FROM numbers(1, 120)"
    )
    assert "The newest 100; the newest 120 as JSON" in text(own.get("/history?test=t.py::t").text)
    assert len(own.get("/api/history?test=t.py::t").json()) == 120


def test_nothing_of_other_people_becomes_markup_or_a_script_link(client: TestClient) -> None:
    for path in ("/", f"/runs/{HOSTILE}", "/history?test=%3Cscript%3Ealert(1)%3C/script%3E"):
        page = client.get(path).text
        assert "<script>" not in page
        assert "<img" not in page
        assert "<svg" not in page
        assert "<i>" not in page
        assert 'href="javascript' not in page
    assert "t[<script>" not in client.get(f"/runs/{HOSTILE}").text
    assert "t[&lt;script&gt;alert(1)&lt;/script&gt;]" in client.get(f"/runs/{HOSTILE}").text


def test_every_page_has_a_strict_policy_and_needs_no_script(client: TestClient) -> None:
    for path in ("/", f"/runs/{SECOND}", "/nowhere", "/healthz", "/static/style.css"):
        response = client.get(path)
        policy = response.headers["content-security-policy"]
        for rule in ("default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'"):
            assert rule in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert " style=" not in response.text
        assert " onclick=" not in response.text


def test_every_link_of_a_page_leads_somewhere(client: TestClient) -> None:
    page = client.get(f"/runs/{SECOND}").text
    own = {link.replace("&amp;", "&") for link in re.findall(r'(?:href|src)="(/[^"]*)"', page)}
    assert len(own) > 5
    for link in own:
        assert client.get(link).status_code == 200, link


def test_a_page_is_compressed_for_those_who_can_read_that(client: TestClient) -> None:
    assert client.get("/").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in client.get("/", headers={"accept-encoding": "identity"}).headers


def test_only_a_static_file_that_is_there_is_kept_by_browsers(client: TestClient) -> None:
    address = re.findall(r'href="(/static/style[^"]*)"', client.get("/").text)[0]
    assert "immutable" in client.get(address).headers["cache-control"]
    for other in ("/", "/static/style.css", "/static/nothing.css?1"):
        assert "immutable" not in client.get(other).headers.get("cache-control", "")


def test_a_run_that_is_not_known_is_a_page_that_says_so(client: TestClient) -> None:
    response = client.get("/runs/42")
    assert response.status_code == 404
    assert "Not Found There is no CI run 42" in text(response.text)
    assert client.get("/api/runs/42").json() == {"detail": "There is no CI run 42."}


def test_an_address_that_nothing_answers_is_a_page_that_says_so(client: TestClient) -> None:
    response = client.post("/oot")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    assert "Nothing here answers POST /oot." in text(response.text)
    assert "Nothing here answers GET /&lt;b&gt;." in text(client.get("/<b>").text)
    assert client.get("/api/nothing").json() == {"detail": "Not Found"}


@pytest.mark.parametrize(
    ("number", "why"),
    [("abc", "a valid integer"), ("0", "greater than or equal to 1"), (str(2**63), f"less than {2**63}")],
)
def test_what_is_no_number_of_a_run_is_refused_in_words(client: TestClient, number: str, why: str) -> None:
    response = client.get(f"/runs/{number}")
    assert response.status_code == client.get(f"/api/runs/{number}").status_code == 422
    assert f"run_id: Input should be {why}" in text(response.text)
    assert "test: Field required." in text(client.get("/history").text)
    assert client.get("/api/runs/abc").json()["detail"][0]["loc"] == ["path", "run_id"]
    assert client.get(f"/runs/{10**30}").status_code in (404, 422)


def test_healthz_needs_no_warehouse(tmp_path: Path) -> None:
    settings = load_settings(CI_PIPELINE_HOME=tmp_path)
    client = TestClient(create_app(settings, load_profile("transformers")))
    assert client.get("/healthz").json() == {"status": "ok"}
    response = client.get("/")
    assert response.status_code == 503
    assert "CI_PIPELINE_WAREHOUSE_URL" in response.text


def test_a_warehouse_that_is_down_is_one_clear_page(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, "http://127.0.0.1:9/default")
    response = TestClient(create_app(settings, load_profile("transformers"))).get("/oot?days=30")
    assert response.status_code == 503
    assert "<h1>No data at the moment</h1>" in response.text
    assert "The warehouse cannot be asked" in response.text
    assert '<a href="/oot?days=30">Try again</a>' in response.text


def test_an_empty_warehouse_says_where_runs_come_from(tmp_path: Path, own: TestClient) -> None:
    page = text(own.get("/").text)
    assert "No CI run yet" in page
    assert f"folder:{tmp_path / 'inbox'}" in page


def test_the_first_page_has_the_newest_30_runs_and_a_script_may_ask_for_200(warehouse: Client, own: TestClient) -> None:
    put(warehouse, "ci_run", *({"run_id": n} for n in range(1, 42)))
    assert re.findall(r'href="/runs/(\d+)"', own.get("/").text) == [str(n) for n in range(41, 11, -1)]
    assert [len(own.get(f"/api/runs{query}").json()) for query in ("", "?limit=1", "?limit=200")] == [30, 1, 41]
    assert [own.get(f"/api/runs?limit={limit}").status_code for limit in (0, 201)] == [422, 422]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://github.com/x", True),
        ("http://127.0.0.1:3000/runs", True),
        ("http://localhost/", True),
        ("http://example.com/", False),
        ("javascript:alert(1)", False),
        ("//example.com", False),
        ("https://[", False),
        ("", False),
        (None, False),
    ],
)
def test_only_web_addresses_become_links(url: object, expected: bool) -> None:
    assert is_web(url) is expected


def test_a_streak_begins_with_the_first_failure_after_the_last_success() -> None:
    def row(run_id: int, outcome: str, device: str = "single", workflow: str = "Nightly") -> dict[str, Any]:
        return {"run_id": run_id, "outcome": outcome, "device": device, "workflow": workflow}

    rows = [
        row(6, "failed", "multi", "Other"), row(6, "failed", workflow="Other"),
        row(5, "passed"), row(5, "error"), row(5, "passed", "multi"), row(4, "failed"), row(4, "passed"),
        row(3, "passed"), row(2, "failed"), row(4, "skipped", "multi"),
    ]  # fmt: skip
    found = streaks(rows, ["single", "multi"])
    assert [(s.workflow, s.device, s.fails, s.since["run_id"], s.since_start) for s in found] == [
        ("Nightly", "single", True, 4, False),
        ("Other", "single", True, 6, True),
        ("Other", "multi", True, 6, True),
        ("Nightly", "multi", False, 4, True),
    ]

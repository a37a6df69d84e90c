"""`ci-pipeline check-config --connect`: what services that are well, and services that are not, lead to."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from ci_pipeline import connections
from ci_pipeline.cli import main
from ci_pipeline.oot.dynamodb_store import DynamoDBStore
from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.settings import OotSettings
from ci_pipeline_tests.servers.base import Request, Response, Server
from ci_pipeline_tests.servers.github import GitHub
from ci_pipeline_tests.servers.hub import HubServer
from ci_pipeline_tests.servers.oidc import OidcServer
from ci_pipeline_tests.servers.slack import SlackServer

PROFILE = """\
name = "own"
repository = "octo/demo"
hub_dataset = "acme/ci"
categories = []
[devices]
[test_jobs.run_it]
test = "It"
result_name = "it"
channel = "#ci"
[[workflows]]
path = ".github/workflows/nightly.yml"
channel = "#nightly"
"""


class Files(Server):
    """The same text at every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def handle(self, request: Request) -> Response:
        return Response(200, self.text.encode())


class Environment:
    """The variables of a deployment whose profile names two channels, a workflow and a dataset."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for entry in OotSettings.model_fields.values():
            for variable in getattr(entry.validation_alias, "choices", ()):
                monkeypatch.delenv(str(variable), raising=False)
        self.set = monkeypatch.setenv
        self.home = home
        (home / "own.toml").write_text(PROFILE)
        monkeypatch.setattr(connections, "PATIENCE", 60.0)  # for a busy machine
        self.set("CI_PIPELINE_HOME", str(home / "home"))
        self.set("CI_PIPELINE_PROFILE", str(home / "own.toml"))

    def github(self, server: GitHub | str) -> None:
        self.set("CI_PIPELINE_SOURCE", "github")
        self.set("GITHUB_API_URL", server if isinstance(server, str) else server.url)
        self.set("ACCESS_REPO_INFO_TOKEN", "ghp_test")

    def slack(self, url: str, token: str = "xoxb-test") -> None:
        self.set("SLACK_API_URL", url)
        self.set("CI_SLACK_BOT_TOKEN", token)

    def hub(self, url: str, token: str = "hf_test") -> None:
        self.set("HF_ENDPOINT", url)
        self.set("TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN", token)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    return Environment(tmp_path, monkeypatch)


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    with SlackServer(("ci", "nightly")) as server:
        yield server


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer("acme/ci") as server:
        yield server


@pytest.fixture
def dead() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def hanging() -> Iterator[str]:
    """An address where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def connect() -> dict[str, Any]:
    result = CliRunner().invoke(main, ["check-config", "--connect", "--json"])
    config = json.loads(result.stdout)
    assert result.exit_code == (1 if config["problems"] else 0), result.output
    return config


def problem() -> str:
    """The one line that is wrong."""
    config = connect()
    assert config["answers"] == []
    (line,) = config["problems"]
    assert "\n" not in line
    return line


def test_what_is_not_set_is_not_asked(environment: Environment):
    config = connect()
    assert (config["answers"], config["problems"]) == ([], [])
    assert config["follows"][-1] == "No service is set that could be asked."
    assert not (environment.home / "home").exists()


def test_each_service_that_is_well_answers_in_one_line_and_a_person_reads_them(
    environment: Environment, slack: SlackServer, hub: HubServer, warehouse_url: str
):
    with GitHub() as github, OidcServer() as oidc, Files("L1: [org/watcher]\nL2: [org/backend]") as files:
        github.add_run(7, updated_at="2025-11-10T04:00:00Z")
        environment.github(github)
        environment.slack(slack.api_url)
        environment.hub(hub.url)
        environment.set("CI_PIPELINE_WAREHOUSE_URL", warehouse_url)
        environment.set("CI_PIPELINE_OOT_ALLOWLIST", f"{files.url}/allowlist.yml")
        environment.set("CI_PIPELINE_OIDC_ISSUERS", json.dumps([oidc.issuer]))
        environment.set("CI_PIPELINE_OOT_STORE", f"sqlite:///{environment.home}/oot.sqlite")
        config = connect()
        printed = CliRunner().invoke(main, ["check-config", "--connect"]).output
    assert config["problems"] == []
    assert re.fullmatch(r"http://127.0.0.1:\d+/(\w+): ClickHouse [\d.]+, \1 has \d+ tables", config["answers"].pop(3))
    assert config["answers"] == [
        f"{github.url}: octo/demo, newest run: Nightly #7",
        f"{slack.api_url}: @ci-bot in Acme, in #ci, #nightly",
        f"{hub.url}: acme-bot, acme/ci is there",
        f"sqlite:///{environment.home}/oot.sqlite: not there yet, and made when needed",
        f"{files.url}/allowlist.yml: can be read, repositories: 2",
        f"{oidc.url}/.well-known/jwks: can be read, signing keys: 1",
    ]
    assert "✓ " + "\n✓ ".join([*config["answers"][:3], ""]) in printed
    assert "✓ Nothing is wrong" in printed


def test_nothing_is_written_and_nothing_is_posted(environment: Environment, slack: SlackServer, hub: HubServer):
    environment.slack(slack.api_url)
    environment.hub(hub.url)
    environment.set("REPORT_REPO_ID", "acme/new")
    SqliteStore(environment.home / "oot.sqlite").close()
    environment.set("CI_PIPELINE_OOT_STORE", f"sqlite:///{environment.home}/oot.sqlite")
    before = sorted(environment.home.rglob("*"))
    config = connect()
    assert config["answers"][1:] == [
        f"{hub.url}: acme-bot, acme/new is not there yet, and made when needed",
        f"sqlite:///{environment.home}/oot.sqlite: can be opened",
    ]
    assert sorted(environment.home.rglob("*")) == before
    assert {request.path for request in slack.requests} == {
        f"/api/{method}" for method in ("auth.test", "conversations.list", "conversations.info")
    }
    assert {request.method for request in hub.requests} == {"GET"}


# --- the source -----------------------------------------------------------------------------------------------------


def test_a_token_that_github_does_not_know_is_named(environment: Environment):
    with GitHub() as github:
        github.fail(status=401, body={"message": "Bad credentials"})
        environment.github(github)
        assert "401 Bad credentials: is the token in ACCESS_REPO_INFO_TOKEN (or GITHUB_TOKEN) still valid?" in problem()


def test_a_workflow_that_github_does_not_know_is_named(environment: Environment):
    with GitHub("octo/other") as github:
        environment.github(github)
        line = problem()
    assert line.startswith(
        f"CI_PIPELINE_SOURCE: {github.url}: GitHub: GET /repos/octo/demo/actions/workflows/nightly.yml/runs"
    )
    assert line.endswith("404 Not Found")


def test_a_bucket_with_runs_can_be_read_and_one_that_is_not_there_is_named(environment: Environment, bucket: str):
    environment.set("CI_PIPELINE_SOURCE", f"{bucket}/runs")
    environment.set("CI_PIPELINE_DATA_URI", f"{bucket}/data")
    assert connect()["answers"] == [f"{bucket}/runs: can be read", f"{bucket}/data: can be read"]
    environment.set("CI_PIPELINE_SOURCE", "s3://not-there")
    environment.set("CI_PIPELINE_DATA_URI", "s3://not-there")
    for line, variable in zip(connect()["problems"], ("CI_PIPELINE_SOURCE", "CI_PIPELINE_DATA_URI"), strict=True):
        assert line.startswith(f"{variable}: ")
        assert "NoSuchBucket" in line


def test_a_source_that_is_none_is_told_once(environment: Environment):
    for source, line in {"folder:/not/there": "there is no folder /not/there", "x": "'x' is no source: say "}.items():
        environment.set("CI_PIPELINE_SOURCE", source)
        assert problem().startswith(f"CI_PIPELINE_SOURCE: {line}")


# --- Slack and the Hub ----------------------------------------------------------------------------------------------


def test_a_token_that_slack_does_not_know_is_named(environment: Environment, slack: SlackServer):
    environment.slack(slack.api_url, "xoxb-wrong")
    assert problem() == (
        "CI_SLACK_BOT_TOKEN: Slack refused auth.test for this token: invalid_auth: check CI_SLACK_BOT_TOKEN"
    )


def test_scopes_that_the_bot_lacks_are_named(environment: Environment, slack: SlackServer):
    environment.slack(slack.api_url)
    slack.scopes = "chat:write, groups:read"
    assert problem() == (
        "CI_SLACK_BOT_TOKEN: @ci-bot in Acme lacks files:write, channels:history: add them to the bot's scopes"
    )
    slack.scopes = "chat:write,files:write,channels:read,channels:history"
    assert connect()["problems"] == []
    slack.denied_scopes = {"conversations.info"}
    assert problem().startswith("CI_SLACK_BOT_TOKEN: Slack refused conversations.info for C00000001: missing_scope: ")


def test_channels_that_do_not_exist_or_that_the_bot_is_not_in_are_named(environment: Environment, slack: SlackServer):
    environment.slack(slack.api_url)
    slack.left = {slack.ids["nightly"]}
    del slack.ids["ci"]
    assert problem() == ("SLACK_REPORT_CHANNEL: @ci-bot in Acme is not in #ci, #nightly: check the name, and invite it")
    environment.set("SLACK_REPORT_CHANNEL", "C00000001")
    assert connect()["answers"] == [f"{slack.api_url}: @ci-bot in Acme, in C00000001"]


def test_a_token_that_the_hub_does_not_know_is_named(environment: Environment, hub: HubServer):
    environment.hub(hub.url, "hf_wrong")
    assert problem() == (
        "TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN (or HF_TOKEN): the Hub does not say whose token it is: "
        "HTTP 401: Invalid user token."
    )


def test_a_token_that_may_only_read_is_named(environment: Environment, hub: HubServer):
    environment.hub(hub.url)
    hub.role = "read"
    assert problem() == (
        "TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN (or HF_TOKEN): "
        "acme-bot may only read with this token: make one that may write"
    )


# --- the warehouse and out-of-tree CI -------------------------------------------------------------------------------


def test_the_warehouse_is_looked_at_without_a_migration(environment: Environment, warehouse: Any, warehouse_url: str):
    environment.set("CI_PIPELINE_WAREHOUSE_URL", f"{warehouse_url}_new")
    assert connect()["answers"][0].endswith("_new has 0 tables")
    assert warehouse.command(f"EXISTS DATABASE {warehouse.database}_new") == 0


def test_dynamodb_without_the_tables_says_how_they_are_made(
    environment: Environment, moto_server: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    table = f"table-{uuid4().hex}"
    url = f"dynamodb://us-east-1/{table}?endpoint_url={moto_server}"
    environment.set("CI_PIPELINE_OOT_STORE", url)
    assert problem() == (
        f"CI_PIPELINE_OOT_STORE: {url}: DynamoDB has no such table: `ci-pipeline oot create-tables` makes it"
    )
    store = DynamoDBStore.from_url(url)
    store.create_tables()
    assert connect()["answers"] == [f"{url}: both tables are there"]
    store._client.delete_table(TableName=store.lifecycle_table)  # pyright: ignore[reportPrivateUsage]
    store.close()
    assert "no such table" in problem()


def test_a_file_that_is_no_store_or_cannot_become_one_is_named(environment: Environment):
    (environment.home / "oot.sqlite").write_text("minutes of a meeting" * 50)
    for path, reason in {
        f"{environment.home}/oot.sqlite": "file is not a database",
        "/dev/null/oot.sqlite": "/dev/null is no folder that may be written",
    }.items():
        environment.set("CI_PIPELINE_OOT_STORE", f"sqlite:///{path}")
        line = problem()
        assert line.startswith(f"CI_PIPELINE_OOT_STORE: sqlite:///{path}: cannot be ")
        assert line.endswith(reason)


def test_an_issuer_without_keys_is_named(environment: Environment):
    with Files('{"keys": []}') as issuer:
        environment.set("CI_PIPELINE_OIDC_ISSUERS", json.dumps({"issuer": issuer.url}))
        assert problem() == (f"CI_PIPELINE_OIDC_ISSUERS: {issuer.url}/.well-known/jwks: no RSA signing keys there")


# --- services that do not answer ------------------------------------------------------------------------------------

NAMED = [
    "CI_PIPELINE_SOURCE",
    "CI_PIPELINE_DATA_URI",
    "SLACK_API_URL",
    "HF_ENDPOINT",
    "CI_PIPELINE_WAREHOUSE_URL",
    "CI_PIPELINE_OOT_STORE",
    "CI_PIPELINE_OOT_ALLOWLIST",
    "CI_PIPELINE_OIDC_ISSUERS",
]


def everything_at(url: str, environment: Environment) -> None:
    environment.github(url)
    environment.slack(f"{url}/api/")
    environment.hub(url)
    environment.set("CI_PIPELINE_WAREHOUSE_URL", url.replace("//", "//me:hunter2@"))
    environment.set("CI_PIPELINE_OOT_STORE", f"dynamodb://us-east-1/oot?endpoint_url={url}")
    environment.set("CI_PIPELINE_OOT_ALLOWLIST", f"{url}/allowlist.yml")
    environment.set("CI_PIPELINE_OIDC_ISSUERS", json.dumps({"issuer": url}))
    environment.set("CI_PIPELINE_DATA_URI", "s3://data")
    for name, value in {"ENDPOINT_URL_S3": url, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        environment.set(f"AWS_{name}", value)


def test_dead_addresses_are_asked_once(environment: Environment, dead: str, caplog: pytest.LogCaptureFixture):
    everything_at(dead, environment)
    config = connect()
    assert [line.partition(":")[0] for line in config["problems"]] == NAMED
    assert not [line for line in config["problems"] if "no answer" in line]
    assert "trying again" not in caplog.text
    assert "hunter2" not in json.dumps(config)


def test_addresses_that_never_answer_are_not_waited_for(
    environment: Environment, hanging: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    everything_at(hanging, environment)
    start = time.monotonic()
    config = connect()
    assert time.monotonic() - start < 20  # Slack alone would be waited for half a minute
    assert [line.partition(":")[0] for line in config["problems"]] == NAMED
    assert all(line.endswith(": no answer in 1 seconds") for line in config["problems"])


def test_a_server_that_fails_is_asked_once(environment: Environment, slack: SlackServer, hub: HubServer):
    with GitHub() as github:
        environment.github(github)
        environment.slack(slack.api_url)
        environment.hub(hub.url)
        for server in (github, slack, hub):
            server.fail(status=503, times=9)
        assert [line.partition(": ")[0] for line in connect()["problems"]] == NAMED[:1] + NAMED[2:4]
        assert [len(server.requests) for server in (github, slack, hub)] == [1, 1, 1]


def test_all_runs_of_a_repository_are_asked_for_in_one_page(environment: Environment):
    (environment.home / "own.toml").write_text(PROFILE.partition("[[workflows]]")[0])
    with GitHub() as github:
        github.add_run(7)
        environment.github(github)
        assert connect()["answers"] == [f"{github.url}: can be read"]
        assert [request.path for request in github.requests] == ["/repos/octo/demo/actions/runs"]
        assert github.requests[0].query["created"] > f"{datetime.now(UTC):%Y-%m-%d}"

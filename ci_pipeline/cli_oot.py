"""`ci-pipeline oot`: what an operator of out-of-tree CI does by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from ci_pipeline.oot.store import Store
    from ci_pipeline.settings import OotSettings


@click.group()
def oot() -> None:
    """Look after out-of-tree CI.

    Its store is at CI_PIPELINE_OOT_STORE, its pages read the warehouse at CI_PIPELINE_WAREHOUSE_URL.
    """


@oot.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("delivery_id")
@click.option("--pr", type=click.IntRange(min=1), help="The pull request. [default: what its first callback says]")
@click.option("--sha", default="", help="The commit that is to be tested. [default: what its first callback says]")
def dispatch(repo: str, delivery_id: str, pr: int | None, sha: str) -> None:
    """Register a dispatch by hand, for CI without webhooks.

    From then on callbacks of that repository about that delivery are taken. Prints the dispatch as JSON: what its
    callbacks send back, `callback_token` among it, and what action/report.py reads as OOT_DISPATCH.

    \b
    Example:
      ci-pipeline oot dispatch org/backend 2f1c7f60-… --pr 12345 --sha 1f2e3d… > dispatch.json
    """
    from ci_pipeline.oot import Refused
    from ci_pipeline.oot.callback_token import mint
    from ci_pipeline.oot.lifecycle import Dispatch
    from ci_pipeline.oot.payload import check_delivery_id
    from ci_pipeline.profile import load_profile
    from ci_pipeline.settings import load_oot_settings

    _check_repository(repo)
    try:
        check_delivery_id(delivery_id)
    except Refused as refused:
        raise click.BadParameter(refused.detail, param_hint="DELIVERY_ID") from None
    told = Dispatch(delivery_id, repo, time.time(), pr, sha)
    settings = load_oot_settings()
    upstream = {"full_name": load_profile(settings.profile).repository}
    about = {"pull_request": {"number": pr, "head": {"sha": sha}}} if pr else {"head_sha": sha}
    with _store(settings) as store:
        store.register_dispatch(told).result()
        token = mint(told, store.signing_key().result(), settings.oot_state_days)
    fields = {name: getattr(told, name) for name in Dispatch.__slots__ if name != "told_until"}
    event = {"event_type": "pull_request" if pr else "push", "payload": {"repository": upstream, **about}}
    click.echo(json.dumps({**fields, **event, "callback_token": token}, ensure_ascii=False))


@oot.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("repository_id")
def confirm(repo: str, repository_id: str) -> None:
    """Say that a repository with a new id is still the same backend.

    Its callbacks are refused while its name belongs to another repository than when it was first seen. The id is in
    the refusal, and at https://api.github.com/repos/OWNER/NAME.

    \b
    Example:
      ci-pipeline oot confirm org/backend 724712
    """
    from ci_pipeline.settings import load_oot_settings

    _check_repository(repo)
    if not repository_id.strip():
        raise click.BadParameter("is empty", param_hint="REPOSITORY_ID")
    with _store(load_oot_settings()) as store:
        before = store.repository_id(repo.lower(), repository_id).result()
        store.confirm_repository(repo.lower(), repository_id).result()
    instead = f", instead of {before}" if before != repository_id else ""
    click.echo(f"{repo} is the repository {repository_id} from now on{instead}")


@oot.command()
def export() -> None:
    """Print all stored jobs as JSON lines.

    Each has the fields of its record, and `version` and `changed_at` (seconds since 1970) of its last change.

    \b
    Example:
      ci-pipeline oot export | jq -r 'select(.conclusion == "failure") | .workflow_run_url'
    """
    from ci_pipeline.settings import load_oot_settings

    with _store(load_oot_settings()) as store:
        for change in store.records():
            about = {"version": change.version, "changed_at": change.changed_at}
            click.echo(json.dumps({**change.record, **about}, ensure_ascii=False).encode(errors="backslashreplace"))


@oot.command()
@click.option("--all", "everything", is_flag=True, help="Bring every job of the store to the warehouse once more.")
def replay(everything: bool) -> None:
    """Bring to the warehouse, and to the HUD, what they refused.

    Mend first what it was refused for. Exits with 1 when the warehouse refuses something again. What a HUD at
    CI_PIPELINE_HUD_URL refused is sent by the relay within a minute.
    """
    from ci_pipeline.oot import replication
    from ci_pipeline.oot.sqlite_store import SqliteStore
    from ci_pipeline.settings import load_oot_settings

    settings = load_oot_settings()
    if settings.hud_url:
        with _store(settings) as store:
            again = store.resend_messages().result() if isinstance(store, SqliteStore) else 0
        click.echo(f"callbacks for the HUD to be sent again: {again}")
        if not settings.warehouse_url:
            return
    client = _warehouse(settings)
    if everything:
        with _store(settings) as store:
            done = replication.replicate_all(store, client)
    else:
        done = replication.replay(client)
    click.echo(f"{'jobs' if everything else 'dead letters'} brought: {done.rows - done.refused}")
    if done.refused:
        click.echo(f"refused again: {done.refused}", err=True)
        raise SystemExit(1)  # the log names each


@oot.command("create-tables")
def create_tables() -> None:
    """Create the tables of the store and the warehouse.

    Those that are there stay as they are. Needed once for DynamoDB; SQLite and ClickHouse tables also make themselves.
    """
    from ci_pipeline.oot.dynamodb_store import DynamoDBStore
    from ci_pipeline.settings import load_oot_settings

    settings = load_oot_settings()
    with _store(settings) as store:
        if isinstance(store, DynamoDBStore):
            store.create_tables()
    click.echo(f"The store at {settings.store_url} is ready")
    if settings.warehouse_url:
        _warehouse(settings)
        click.echo("The warehouse is ready")


def _check_repository(repo: str) -> None:
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise click.BadParameter(f"{repo!r} is no repository, write owner/name", param_hint="OWNER/NAME")


@contextmanager
def _store(settings: OotSettings) -> Generator[Store]:
    from ci_pipeline.oot.stores import open_store

    with closing(open_store(settings.store_url, settings.oot_state_days)) as store:
        yield store


def _warehouse(settings: OotSettings) -> Client:
    from ci_pipeline.settings import SettingsError
    from ci_pipeline.warehouse.client import connect, migrate

    if settings.warehouse_url is None:
        raise SettingsError("CI_PIPELINE_WAREHOUSE_URL: set it to the address of the warehouse")
    client = connect(settings.warehouse_url.get_secret_value())
    migrate(client, settings.warehouse_engine)
    return client

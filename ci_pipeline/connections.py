"""Asks each service that is set whether it lets us in: all at the same time, and nothing is written or posted."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ci_pipeline.check_config import Config, channels, datasets, masked
from ci_pipeline.oot.allowlist import read_allowlist
from ci_pipeline.oot.identity import fetch_keys
from ci_pipeline.oot.stores import look_at_store
from ci_pipeline.publish.hub import HubClient, HubRefused
from ci_pipeline.publish.slack import SlackClient, SlackRefused
from ci_pipeline.settings import OotSettings, SettingsError
from ci_pipeline.sources import age, cursor_at, open_source
from ci_pipeline.warehouse.client import connect, refusals

if TYPE_CHECKING:
    from ci_pipeline.profile import Profile

log = logging.getLogger(__name__)

PATIENCE = 8.0
"""Seconds in which all have to answer."""


class Question(NamedTuple):
    """`variable` says where the service is; `ask` returns what it is there and who we are to it."""

    variable: str
    place: str
    ask: Callable[[], str]


def ask_services(settings: OotSettings, profile: Profile | None, config: Config) -> None:
    """Add each service's answer, or what is wrong with it. A variable that is wrong already is not asked about."""
    wrong = tuple(problem.partition(":")[0] for problem in config.problems)
    asked = [(q, _answer(q)) for q in _questions(settings, profile) if q.variable not in wrong]
    _, silent = wait([answer for _, answer in asked], PATIENCE)
    for (variable, place, _), answer in asked:
        error = f"no answer in {PATIENCE:.0f} seconds" if answer in silent else answer.exception()
        if error is None:
            config.answers.append(f"{place}: {answer.result()}")
            continue
        line = " ".join(str(error).split()) or type(error).__name__
        if not re.match("[A-Z]+_[A-Z]+", line):  # it names no variable itself
            line = f"{variable}: {line if place in line else f'{place}: {line}'}"
        config.problems.append(line)
    if not asked:
        config.follows.append("No service is set that could be asked.")


def _answer(question: Question) -> Future[str]:
    answer: Future[str] = Future()

    def work() -> None:
        try:
            answer.set_result(question.ask())
        except Exception as error:
            log.info("%s does not let us in", question.place, exc_info=True)
            answer.set_exception(error)

    Thread(target=work, daemon=True).start()  # the end of the command does not wait for one that hangs
    return answer


def _questions(settings: OotSettings, profile: Profile | None) -> Iterator[Question]:
    if profile and settings.source:
        place = settings.github_api_url if settings.source == "github" else settings.source
        yield Question("CI_PIPELINE_SOURCE", place, partial(_source, settings, profile))
    if settings.data_uri.startswith("s3://"):
        yield Question("CI_PIPELINE_DATA_URI", settings.data_uri, partial(_bucket, urlsplit(settings.data_uri).netloc))
    if profile and settings.slack_token:
        slack = SlackClient(settings.slack_token.get_secret_value(), settings.slack_api_url)
        yield Question("SLACK_API_URL", settings.slack_api_url, partial(_slack, slack, channels(settings, profile)))
    if profile and settings.hub_token:
        hub = HubClient(settings.hub_token.get_secret_value(), settings.hub_endpoint)
        yield Question("HF_ENDPOINT", settings.hub_endpoint, partial(_hub, hub, datasets(settings, profile)))
    if settings.warehouse_url:
        ask = partial(_warehouse, settings.warehouse_url.get_secret_value())
        yield Question("CI_PIPELINE_WAREHOUSE_URL", masked(settings.warehouse_url), ask)
    if store := settings.oot_store:
        yield Question("CI_PIPELINE_OOT_STORE", store, partial(look_at_store, store))
    if (allowlist := settings.oot_allowlist).startswith(("http://", "https://")):
        yield Question("CI_PIPELINE_OOT_ALLOWLIST", allowlist, partial(_allowlist, allowlist))
    if allowlist or "oidc_issuers" in settings.model_fields_set:
        for uri in (issuer.jwks_uri for issuer in settings.oidc_issuers):
            yield Question("CI_PIPELINE_OIDC_ISSUERS", uri, partial(_issuer, uri))


def _source(settings: OotSettings, profile: Profile) -> str:
    source = open_source(settings, profile, s3=_s3() if settings.source.startswith("s3:") else None, once=True)
    if settings.source != "github" or not profile.workflows:
        # One page, and nothing on it: GitHub is asked for what was created in the 36 days before.
        source.runs_after(cursor_at(datetime.now(UTC) + timedelta(days=36)))
        return "can be read"
    found = [run for known in profile.workflows for run in source.workflow_runs(known.id or known.path, limit=1)]
    return f"{profile.repository}, newest run: {profile.run_title(max(found, key=age)) if found else 'none yet'}"


def _bucket(name: str) -> str:
    _s3().list_objects_v2(Bucket=name, MaxKeys=1)
    return "can be read"


def _s3() -> Any:
    import boto3
    from botocore.config import Config

    # A session of its own: boto3's default one is not for several threads.
    return boto3.Session().client("s3", config=Config(retries={"total_max_attempts": 1}))


def _slack(slack: SlackClient, names: list[str]) -> str:
    try:
        who, lacking = slack.who()
        if lacking:
            raise SettingsError(f"CI_SLACK_BOT_TOKEN: {who} lacks {', '.join(lacking)}: add them to the bot's scopes")
        missed = [channel for channel in names if not slack.is_in(channel)]
    except SlackRefused as refused:
        raise SettingsError(f"CI_SLACK_BOT_TOKEN: {refused}") from refused
    if missed:
        raise SettingsError(f"SLACK_REPORT_CHANNEL: {who} is not in {', '.join(missed)}: check the name, and invite it")
    return f"{who}, in {', '.join(names) or 'no channel'}"


def _hub(hub: HubClient, names: list[str]) -> str:
    try:
        who = hub.who()
        seen = [f"{name} is {'there' if hub.has(name) else 'not there yet, and made when needed'}" for name in names]
    except HubRefused as refused:
        raise SettingsError(f"TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN (or HF_TOKEN): {refused}") from refused
    return ", ".join([who, *seen])


def _warehouse(url: str) -> str:
    client = connect(url)
    tables = "SELECT count() FROM system.tables WHERE database = {database:String}"
    with refusals("CI_PIPELINE_WAREHOUSE_URL: the warehouse does not answer"):
        count = client.command(tables, {"database": client.database}, use_database=False)
    return f"ClickHouse {client.server_version}, {client.database} has {count} tables"


def _allowlist(address: str) -> str:
    return f"can be read, repositories: {len(read_allowlist(address))}"


def _issuer(jwks_uri: str) -> str:
    return f"can be read, signing keys: {len(asyncio.run(fetch_keys(jwks_uri)))}"

"""What is set, what is missing, and what follows: for a person before the first run, and for a deployment's check."""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pydantic import AliasChoices, SecretStr

from ci_pipeline import settings as settings_module
from ci_pipeline.oot.allowlist import AllowlistError, read_allowlist
from ci_pipeline.oot.stores import open_store
from ci_pipeline.profile import Profile, load_profile
from ci_pipeline.settings import OidcIssuer, OotSettings, Settings, SettingsError, Variables, load_oot_settings
from ci_pipeline.sources import open_source

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable. `value` is what counts, with secrets masked."""

    variable: str
    value: str
    is_set: bool


@dataclass(frozen=True, slots=True)
class Config:
    """`follows`: what the settings lead to; `answers`: of services that let us in; `problems`: what is wrong. One line
    each."""

    settings: list[Setting] = field(default_factory=list[Setting])
    follows: list[str] = field(default_factory=list[str])
    answers: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(*, connect: bool = False) -> Config:
    """Read the environment and the profile, and judge them. Asks no service unless told to `connect`."""
    config = Config(problems=_unknown_variables())
    try:
        settings = load_oot_settings()
    except SettingsError as error:
        config.problems.append(str(error))
        return config
    config.settings.extend(_settings(settings))
    profile = None
    try:
        profile = load_profile(settings.profile)
        open_source(settings, profile)
    except SettingsError as error:
        config.problems.append(str(error))
    else:
        for judge in (_source, _slack, _hub, _warehouse):
            judge(settings, profile, config)
    _out_of_tree(settings, config)
    if connect:
        from ci_pipeline.connections import ask_services

        ask_services(settings, profile, config)
    return config


def _variables(model: type[Variables]) -> dict[str, tuple[str, ...]]:
    """The environment variables of each field."""
    aliases = {name: entry.validation_alias for name, entry in model.model_fields.items()}
    return {name: tuple(map(str, alias.choices)) for name, alias in aliases.items() if isinstance(alias, AliasChoices)}


def _settings(settings: Settings) -> list[Setting]:
    rows: list[Setting] = []
    for name, variables in _variables(OotSettings).items():
        variable = next((v for v in variables if os.environ.get(v)), variables[0])
        rows.append(Setting(variable, masked(getattr(settings, name)), bool(os.environ.get(variable))))
    return rows


def masked(value: object) -> str:
    """A setting without what is secret in it."""
    if isinstance(value, tuple):
        return ", ".join(entry.issuer if isinstance(entry, OidcIssuer) else str(entry) for entry in value)
    if isinstance(value, SecretStr):
        if not value.get_secret_value():
            return ""
        url = _split(value)
        if not url.netloc:
            return "********"
        return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))
    return "" if value is None else str(value)


def _split(secret: SecretStr) -> SplitResult:
    """A secret as an address; without a host where it is none."""
    try:
        return urlsplit(secret.get_secret_value())
    except ValueError:
        return urlsplit("")


def _unknown_variables() -> list[str]:
    """Variables with our prefix that nothing reads: a slip of the pen would pass in silence."""
    models = [m for m in vars(settings_module).values() if isinstance(m, type) and issubclass(m, Variables)]
    known = {variable for model in models for names in _variables(model).values() for variable in names}
    problems: list[str] = []
    for name in sorted(os.environ):
        if name.startswith("CI_PIPELINE_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            problems.append(f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
    return problems


def channels(settings: Settings, profile: Profile) -> list[str]:
    """All to which reports may go."""
    named = (place.channel for place in (*profile.test_jobs.values(), *profile.workflows))
    return [settings.slack_channel] if settings.slack_channel else sorted(set(filter(None, named)))


def datasets(settings: Settings, profile: Profile) -> list[str]:
    """All to which files may go."""
    named = (place.hub_dataset for place in (profile, *profile.workflows))
    return [settings.hub_dataset] if settings.hub_dataset else sorted(set(filter(None, named)))


def _source(settings: Settings, profile: Profile, config: Config) -> None:
    kind, _, rest = settings.source_uri.partition(":")
    if kind == "github":
        workflows = ", ".join(dict.fromkeys(w.name or w.path or str(w.id) for w in profile.workflows))
        config.follows.append(f"CI runs come from {settings.github_api_url}, {profile.repository}: {workflows}.")
        if not settings.github_token:
            config.problems.append("ACCESS_REPO_INFO_TOKEN: not set: GitHub gives no artifact without a token")
    elif kind == "folder":
        unset = "" if settings.source else ": CI_PIPELINE_SOURCE is not set"
        config.follows.append(f"CI runs come from the folder {rest}{unset}.")
        if settings.source and not Path(rest).is_dir():
            config.problems.append(f"CI_PIPELINE_SOURCE: there is no folder {rest}")
    else:
        config.follows.append(f"CI runs come from {settings.source_uri}.")
    config.follows.append(f"Raw artifacts and tables are kept in {settings.data_root}.")


def _slack(settings: Settings, profile: Profile, config: Config) -> None:
    style = settings.slack_style or "full"
    if not settings.slack_token:
        config.follows.append(
            f"Reports are written to {settings.outbox_path}, style {style}: CI_SLACK_BOT_TOKEN is not set."
        )
        return
    named = ", ".join(channels(settings, profile)) or "no channel"
    config.follows.append(f"Reports are posted to {named}, style {style}, through {settings.slack_api_url}.")
    silent = [job for job, entry in profile.test_jobs.items() if not entry.channel]
    if silent and not settings.slack_channel:
        config.problems.append(
            f"SLACK_REPORT_CHANNEL: not set, and the profile {profile.name} has no channel for {', '.join(silent)}"
        )


def _hub(settings: Settings, profile: Profile, config: Config) -> None:
    if not settings.hub_token:
        config.follows.append(
            f"Dataset files are written to {settings.outbox_path}: TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN is not set."
        )
    elif settings.hub_dataset or profile.hub_dataset:
        named = ", ".join(datasets(settings, profile))
        config.follows.append(f"Dataset files are uploaded to {settings.hub_endpoint}: {named}.")
    else:
        config.problems.append(f"REPORT_REPO_ID: not set, and the profile {profile.name} has no hub_dataset")


def _warehouse(settings: Settings, profile: Profile, config: Config) -> None:
    if settings.warehouse_url is None:
        config.follows.append(
            "No warehouse: the source answers for earlier runs. CI_PIPELINE_WAREHOUSE_URL is not set."
        )
        return
    url = _split(settings.warehouse_url)
    if url.scheme in ("http", "https") and url.hostname:
        config.follows.append(f"History is kept in the warehouse at {masked(settings.warehouse_url)}.")
    else:
        config.problems.append("CI_PIPELINE_WAREHOUSE_URL: not of the form http[s]://user:password@host:port/database")


def _out_of_tree(settings: OotSettings, config: Config) -> None:
    allowlist = settings.oot_allowlist
    try:
        if not settings.store_url.startswith("sqlite:///"):
            open_store(settings.store_url).close()
        if not allowlist:
            config.follows.append("No out-of-tree CI may report: CI_PIPELINE_OOT_ALLOWLIST is not set.")
            return
        if not allowlist.startswith(("http://", "https://")):
            read_allowlist(allowlist)
        config.follows.append(f"Out-of-tree CI may report: {allowlist} says who.")
    except AllowlistError as error:
        config.problems.append(f"CI_PIPELINE_OOT_ALLOWLIST: {error}")
    except SettingsError as error:
        config.problems.append(str(error))


def draw(config: Config, console: Console, *, defaults: bool) -> None:
    """Set variables first, what follows, and what is wrong last: that is where the eye ends."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    shown = [setting for setting in config.settings if setting.is_set or defaults]
    for setting in sorted(shown, key=lambda s: not s.is_set):
        mark = Text("set", "green") if setting.is_set else Text("default", "dim")
        table.add_row(Text(setting.variable), mark, Text(setting.value or "-", "" if setting.is_set else "dim"))
    if shown:
        console.print(table)
        console.print()
    for line in config.follows:
        console.print(Text(line), soft_wrap=not console.is_terminal)
    for line in config.answers:
        console.print(Text(f"✓ {line}", "green"), soft_wrap=not console.is_terminal)
    for line in config.problems:
        console.print(Text(f"✗ {line}", "bold red"), soft_wrap=not console.is_terminal)
    if not config.problems:
        console.print(Text("✓ Nothing is wrong", "bold green"))

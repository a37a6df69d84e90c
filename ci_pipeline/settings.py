"""What is particular to a deployment: where things are, and secrets. Each value is one environment variable.

`Settings` is read by everything; `StepSettings` are the variables that GitHub Actions and the workflow file give to
the one-shot command.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ci_pipeline.web_address import is_web

_Variables = TypeVar("_Variables", bound="Variables")


class SettingsError(ValueError):
    """A setting is missing or wrong. The text is one line that names the variable and the way out."""


def _env(*names: str) -> AliasChoices:
    return AliasChoices(*names)


def _web(url: str) -> str:
    if url and not (url.startswith(("http://", "https://")) and urlsplit(url).netloc):
        raise ValueError("must be an http(s) address")
    return url


WebAddress = Annotated[str, AfterValidator(_web)]
"""An http(s) address, or "" for none."""


class Variables(BaseModel):
    """Values that environment variables give; each field's alias is the name of its variable, or several names."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Settings(Variables):
    """Where things are. The defaults are the embedded deployment: everything below `home`, no account anywhere."""

    home: Path = Field(Path(".ci-pipeline"), validation_alias=_env("CI_PIPELINE_HOME"))
    profile: str = Field("transformers", validation_alias=_env("CI_PIPELINE_PROFILE"))

    # Where CI runs come from: `folder:<path>`, `s3://<bucket>/<prefix>` or `github`. Default: <home>/inbox.
    source: str = Field("", validation_alias=_env("CI_PIPELINE_SOURCE"))
    # Raw artifacts and Parquet tables: a path or `s3://<bucket>/<prefix>`. Default: <home>/data.
    data_uri: str = Field("", validation_alias=_env("CI_PIPELINE_DATA_URI"))
    # Where messages and Hub files go while there is no token. Default: <home>/outbox.
    outbox: str = Field("", validation_alias=_env("CI_PIPELINE_OUTBOX"))
    # A run in the inbox without `_SUCCESS` counts as complete when nothing changed for this long.
    quiet_seconds: float = Field(60.0, ge=0, validation_alias=_env("CI_PIPELINE_QUIET_SECONDS"))
    retention_days: int = Field(90, ge=1, validation_alias=_env("CI_PIPELINE_RETENTION_DAYS"))

    # ClickHouse's HTTP interface, `http[s]://user:password@host:port/database`; unset: no warehouse.
    warehouse_url: SecretStr | None = Field(None, validation_alias=_env("CI_PIPELINE_WAREHOUSE_URL"))
    warehouse_engine: Literal["embedded", "replicated", "shared"] = Field(
        "embedded", validation_alias=_env("CI_PIPELINE_WAREHOUSE_ENGINE")
    )

    # Where people find Dagster: the pages link to it. And where they find the pages: Slack reports link to them.
    dagster_url: WebAddress = Field("", validation_alias=_env("CI_PIPELINE_DAGSTER_URL"))
    pages_url: WebAddress = Field("", validation_alias=_env("CI_PIPELINE_PAGES_URL"))

    github_api_url: str = Field("https://api.github.com", validation_alias=_env("GITHUB_API_URL"))
    github_server_url: str = Field("https://github.com", validation_alias=_env("GITHUB_SERVER_URL"))
    github_token: SecretStr | None = Field(
        None, validation_alias=_env("ACCESS_REPO_INFO_TOKEN", "GITHUB_TOKEN", "GH_TOKEN")
    )

    slack_api_url: str = Field("https://slack.com/api/", validation_alias=_env("SLACK_API_URL"))
    slack_token: SecretStr | None = Field(None, validation_alias=_env("CI_SLACK_BOT_TOKEN"))
    # Overrides the profile's channel of each test job.
    slack_channel: str = Field("", validation_alias=_env("SLACK_REPORT_CHANNEL"))
    slack_style: Literal["full", "classic"] | None = Field(None, validation_alias=_env("CI_PIPELINE_SLACK_STYLE"))

    hub_endpoint: str = Field("https://huggingface.co", validation_alias=_env("HF_ENDPOINT"))
    hub_token: SecretStr | None = Field(None, validation_alias=_env("TRANSFORMERS_CI_RESULTS_UPLOAD_TOKEN", "HF_TOKEN"))
    hub_dataset: str = Field("", validation_alias=_env("REPORT_REPO_ID"))

    # A backfill of history stays silent unless asked.
    backfill_posts: bool = Field(False, validation_alias=_env("CI_PIPELINE_BACKFILL_POSTS"))

    @property
    def source_uri(self) -> str:
        return self.source or f"folder:{self.home / 'inbox'}"

    @property
    def data_root(self) -> str:
        return self.data_uri or str(self.home / "data")

    @property
    def outbox_path(self) -> Path:
        return Path(self.outbox) if self.outbox else self.home / "outbox"

    def run_page(self, run_id: int) -> str:
        """Where people find a CI run among the pages; "" where nobody said where those are."""
        return f"{self.pages_url.rstrip('/')}/runs/{run_id}" if self.pages_url else ""


class BuildkitePipeline(BaseModel):
    """The repository that a pipeline speaks for, and the claims that its tokens must have."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    repository: str = Field(pattern=r"^[^/\s]+/[^/\s]+$")
    claims: dict[str, str] = Field(default_factory=dict)


class OidcIssuer(BaseModel):
    """Whose tokens are believed. `jwks_uri` may be a file:// address; `pipelines`: by `organization/pipeline`, for
    Buildkite."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    issuer: str
    jwks_uri: str = Field(default="", validate_default=True)
    kind: Literal["github", "buildkite"] = "github"
    pipelines: dict[str, BuildkitePipeline] = Field(default_factory=dict)

    @field_validator("issuer", "jwks_uri")
    @classmethod
    def _safe(cls, url: str, info: ValidationInfo) -> str:
        url = url or f"{info.data.get('issuer', '')}/.well-known/jwks"
        is_file = info.field_name == "jwks_uri" and url.startswith("file:")
        if not is_file and not is_web(url):
            raise ValueError(f"{url!r} must be an https address (http only on loopback)")
        return url


class OotSettings(Settings):
    """Out-of-tree CI: who may report, by what proof, and where it is kept."""

    model_config = ConfigDict(defer_build=True)  # the one-shot command need not pay for it

    # YAML, a path or an http(s) address, and the seconds after which it is read again. Unset: nobody may report.
    oot_allowlist: str = Field("", validation_alias=_env("CI_PIPELINE_OOT_ALLOWLIST"))
    oot_allowlist_ttl: float = Field(60.0, ge=0, validation_alias=_env("CI_PIPELINE_OOT_ALLOWLIST_TTL"))
    oidc_issuers: tuple[OidcIssuer, ...] = Field(
        default_factory=lambda: (OidcIssuer(issuer="https://token.actions.githubusercontent.com"),),
        validation_alias=_env("CI_PIPELINE_OIDC_ISSUERS"),
    )
    oidc_audience: str = Field("pytorch-cross-repo-ci-relay", validation_alias=_env("CI_PIPELINE_OIDC_AUDIENCE"))
    # What relays send as X-OOT-Relay-Token, separated by commas: two while one replaces the other.
    relay_token_list: SecretStr = Field(SecretStr(""), validation_alias=_env("CI_PIPELINE_RELAY_TOKENS"))
    # Per repository; 0 for no limit.
    rate_limit_per_min: int = Field(60, ge=0, validation_alias=_env("CI_PIPELINE_RATE_LIMIT_PER_MIN"))
    callback_token: Literal["off", "optional", "required"] = Field(
        "optional", validation_alias=_env("CI_PIPELINE_CALLBACK_TOKEN")
    )
    # `sqlite:///<path>` or `dynamodb://<region>/<table>`. Default: <home>/oot.sqlite.
    oot_store: str = Field("", validation_alias=_env("CI_PIPELINE_OOT_STORE"))
    # How long a job may take from its dispatch to its last callback.
    oot_state_days: float = Field(3.0, gt=0, validation_alias=_env("CI_PIPELINE_OOT_STATE_DAYS"))
    # A job in progress that says nothing for this long has timed out.
    oot_silent_hours: float = Field(6.0, gt=0, validation_alias=_env("CI_PIPELINE_OOT_SILENT_HOURS"))
    # Set where the HUD is another service: the relay sends it what it accepted.
    hud_url: WebAddress = Field("", validation_alias=_env("CI_PIPELINE_HUD_URL"))

    github_app_id: str = Field("", validation_alias=_env("GITHUB_APP_ID"))
    github_app_private_key: SecretStr | None = Field(None, validation_alias=_env("GITHUB_APP_PRIVATE_KEY"))
    github_webhook_secret: SecretStr | None = Field(None, validation_alias=_env("GITHUB_WEBHOOK_SECRET"))

    @field_validator("oidc_issuers", mode="before")
    @classmethod
    def _issuers(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError('must be JSON: [{"issuer": …, "jwks_uri": …, "kind": "github"}]') from None
        return [value] if isinstance(value, dict) else value

    @property
    def store_url(self) -> str:
        return self.oot_store or f"sqlite:///{self.home / 'oot.sqlite'}"

    @property
    def relay_tokens(self) -> tuple[str, ...]:
        return tuple(filter(None, (token.strip() for token in self.relay_token_list.get_secret_value().split(","))))


class StepSettings(Variables):
    """The environment of one workflow step: the reporter's variables, and GitHub's own. All optional."""

    ci_event: str = Field("", validation_alias=_env("CI_EVENT"))
    ci_title: str = Field("", validation_alias=_env("CI_TITLE"))
    ci_sha: str = Field("", validation_alias=_env("CI_SHA"))
    ci_test_job: str = Field("", validation_alias=_env("CI_TEST_JOB"))
    setup_status: str = Field("", validation_alias=_env("SETUP_STATUS"))
    prev_workflow_run_id: str = Field("", validation_alias=_env("PREV_WORKFLOW_RUN_ID"))
    other_workflow_run_id: str = Field("", validation_alias=_env("OTHER_WORKFLOW_RUN_ID"))
    github_run_id: str = Field("", validation_alias=_env("GITHUB_RUN_ID"))
    github_run_number: str = Field("", validation_alias=_env("GITHUB_RUN_NUMBER"))
    github_event_name: str = Field("", validation_alias=_env("GITHUB_EVENT_NAME"))
    github_workflow_ref: str = Field("", validation_alias=_env("GITHUB_WORKFLOW_REF"))
    github_repository: str = Field("", validation_alias=_env("GITHUB_REPOSITORY"))


def load_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` go by the variables' names: `load_settings(CI_PIPELINE_HOME="x")`.

    Raises:
        SettingsError: a value is wrong; one line that names the variable.
    """
    return _load(Settings, overrides)


def load_oot_settings(**overrides: object) -> OotSettings:
    """`load_settings` for out-of-tree CI."""
    return _load(OotSettings, overrides)


def load_step_settings() -> StepSettings:
    """What the workflow step's environment says."""
    return _load(StepSettings, {})


def _load(variables: type[_Variables], overrides: dict[str, object]) -> _Variables:
    # A secret is often pasted with the end of its line; an empty variable is an unset one.
    environment = {name: text for name, value in os.environ.items() if (text := value.strip())}
    try:
        return variables.model_validate({**environment, **overrides})
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{first['loc'][0] if first['loc'] else 'settings'}: {message} (is {first['input']!r})"

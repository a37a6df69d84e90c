from pathlib import Path

import pytest

from ci_pipeline import settings as settings_module
from ci_pipeline.settings import Settings, SettingsError, Variables, load_settings

ROOT = Path(__file__).parent.parent


def classes() -> list[type[Variables]]:
    found = [c for c in vars(settings_module).values() if isinstance(c, type) and issubclass(c, Variables)]
    return [c for c in found if c is not Variables]


def variables() -> list[str]:
    return [
        name
        for cls in classes()
        for field in cls.model_fields.values()
        for name in field.validation_alias.choices  # type: ignore[union-attr]
    ]


def test_every_variable_is_documented():
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert [name for name in variables() if f"`{name}`" not in text] == []


def test_no_variable_of_the_shell_is_read_by_accident(monkeypatch: pytest.MonkeyPatch):
    # A field called `home` must not read HOME.
    for cls in classes():
        for name in cls.model_fields:
            monkeypatch.setenv(name.upper(), "accident")
    monkeypatch.delenv("GITHUB_API_URL", raising=False)
    assert str(load_settings().home) == ".ci-pipeline"


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI_SLACK_BOT_TOKEN", "")
    monkeypatch.setenv("SLACK_API_URL", "")
    assert load_settings().slack_token is None
    assert load_settings().slack_api_url == "https://slack.com/api/"


def test_the_space_around_a_value_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI_SLACK_BOT_TOKEN", "xoxb-1\n")
    monkeypatch.setenv("SLACK_REPORT_CHANNEL", "  ")
    settings = load_settings()
    assert settings.slack_token
    assert settings.slack_token.get_secret_value() == "xoxb-1"
    assert settings.slack_channel == ""


def test_a_wrong_value_is_one_line_that_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI_PIPELINE_RETENTION_DAYS", "many")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "CI_PIPELINE_RETENTION_DAYS" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI_SLACK_BOT_TOKEN", "xoxb-secret")
    monkeypatch.setenv("CI_PIPELINE_WAREHOUSE_URL", "http://user:hunter2@127.0.0.1:8123/ci")
    shown = repr(load_settings())
    assert "xoxb-secret" not in shown
    assert "hunter2" not in shown


def test_everything_embedded_is_below_home():
    settings = load_settings(CI_PIPELINE_HOME="/x")
    assert settings.source_uri == "folder:/x/inbox"
    assert settings.data_root == "/x/data"
    assert str(settings.outbox_path) == "/x/outbox"


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().home = Path("elsewhere")  # type: ignore[misc]

"""The store that an address names."""

from __future__ import annotations

from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Store
from ci_pipeline.settings import SettingsError


def open_store(url: str, state_days: float = 3.0) -> Store:
    """Open `sqlite:///<path>` or `dynamodb://[<region>]/[<table>]`; lifecycles are kept for `state_days`.

    Raises:
        SettingsError: the address is neither.
        StoreUnavailable: the file cannot be opened.
    """
    if url.startswith("sqlite:///") and url != "sqlite:///":
        return SqliteStore(url.removeprefix("sqlite:///"), state_days)
    if url.startswith("dynamodb://"):
        from ci_pipeline.oot.dynamodb_store import DynamoDBStore  # boto3 is slow to import

        return DynamoDBStore.from_url(url, state_days)
    raise SettingsError("CI_PIPELINE_OOT_STORE: write sqlite:///<path> or dynamodb://<region>/<table>")

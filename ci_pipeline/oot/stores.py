"""The store that an address names."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ci_pipeline.oot.sqlite_store import SqliteStore
from ci_pipeline.oot.store import Store, StoreUnavailable
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


def look_at_store(url: str) -> str:
    """What is at an address that `open_store` takes, in a few words. Makes and writes nothing, and asks once.

    Raises:
        SettingsError: as `open_store` does.
        StoreUnavailable: the file cannot be opened or made, or a table is not there.
    """
    if url.startswith("dynamodb://"):
        import boto3

        from ci_pipeline.oot.dynamodb_store import DynamoDBStore

        # A session of its own: boto3's default one is not for several threads.
        with closing(DynamoDBStore.from_url(url, session=boto3.Session(), max_attempts=0)) as store:
            store.check_tables()
        return "both tables are there"
    path = Path(url.removeprefix("sqlite:///")).absolute()
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise StoreUnavailable(f"cannot be made: {parent} is no folder that may be written")
        return "not there yet, and made when needed"
    try:
        # Opened to read only, SQLite would leave files beside it.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=3.0)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise StoreUnavailable(f"cannot be opened: {error}") from error
    return "can be opened"

"""CI runs from below a prefix of an S3 bucket."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import boto3.exceptions
import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from ci_pipeline.sources import SourceError
from ci_pipeline.sources.archives import ArtifactRefused, path_inside, unpack
from ci_pipeline.sources.inbox import InboxSource, Place
from ci_pipeline.sources.raw_store import SUCCESS


class S3Source(InboxSource):
    """A `Source` on `s3://<bucket>/<prefix>`; see `inbox`. `client` is a boto3 S3 client.

    Each new run costs one request to see whether it is complete; keep old ones away with a lifecycle rule.
    """

    def __init__(self, uri: str, *, client: Any = None, repository: str = "", quiet_seconds: float = 60.0) -> None:
        super().__init__(repository)
        self._uri = uri.rstrip("/")
        self._bucket = urlsplit(uri).netloc
        prefix = urlsplit(uri).path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._s3 = client or boto3.client("s3")
        self._quiet = timedelta(seconds=quiet_seconds)

    def _names(self) -> list[str]:
        pages = self._pages(self._prefix, Delimiter="/")
        prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        names = [prefix.removeprefix(self._prefix).rstrip("/") for prefix in prefixes]
        return [name for name in names if name and name[0] not in "._"]

    def _completed(self, name: str) -> datetime | None:
        marker = next((o for o in self._objects(f"{name}/{SUCCESS}") if o["Key"].endswith(f"/{SUCCESS}")), None)
        if marker:
            return _utc(marker)
        times = [_utc(entry) for entry in self._objects(f"{name}/")]
        complete = max(times) + self._quiet if times else None
        return complete if complete and complete <= datetime.now(UTC) else None

    def _read(self, name: str, file: str) -> bytes | None:
        with self._errors(f"{name}/{file}"):
            try:
                return self._s3.get_object(Bucket=self._bucket, Key=f"{self._prefix}{name}/{file}")["Body"].read()
            except self._s3.exceptions.NoSuchKey:
                return None

    def _artifacts(self, name: str) -> Mapping[str, Place]:
        root = f"{self._prefix}{name}/"
        keys = [entry["Key"] for entry in self._objects(f"{name}/")]
        if any(key.startswith(f"{root}artifacts/") for key in keys):
            root += "artifacts/"
        folders: dict[str, list[tuple[str, str]]] = {}
        archives: dict[str, Place] = {}
        for key in keys:
            artifact, slash, path = key.removeprefix(root).partition("/")
            if slash and key.startswith(root) and not key.endswith("/"):
                folders.setdefault(artifact, []).append((key, path))
            elif not slash and artifact.endswith(".zip"):
                archives[artifact.removesuffix(".zip")] = partial(self._unpacked, key)
        return archives | {artifact: partial(self._downloaded, files) for artifact, files in folders.items()}

    def _downloaded(self, files: list[tuple[str, str]], into: Path) -> list[str]:
        for key, name in files:
            path = path_inside(name)
            if path is None:
                raise ArtifactRefused(into.name, f"the object {key!r} leaves the folder")
            self._download(key, into / path)
        return []

    def _unpacked(self, key: str, into: Path) -> list[str]:
        archive = into.with_name(f".{into.name}.zip")
        try:
            self._download(key, archive)
            unpack(archive, into)
        finally:
            archive.unlink(missing_ok=True)
        return []

    def _download(self, key: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._errors(key):
            self._s3.download_file(self._bucket, key, str(file), Config=TransferConfig(use_threads=False))

    def _objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        for page in self._pages(self._prefix + prefix):
            yield from page.get("Contents", ())

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        with self._errors(prefix):
            pages = self._s3.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=prefix, **options)

    @contextmanager
    def _errors(self, what: str) -> Generator[None]:
        try:
            yield
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            boto3.exceptions.Boto3Error,
        ) as error:
            raise SourceError(f"{self._uri}: {what}: {error}") from error


def _utc(entry: Mapping[str, Any]) -> datetime:
    return entry["LastModified"].astimezone(UTC)

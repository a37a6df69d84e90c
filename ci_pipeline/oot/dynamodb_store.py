"""The store in DynamoDB: transactions with conditions, lifecycles that expire, and Streams as the change feed."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ci_pipeline.oot.lifecycle import Dispatch, JobState, Status, Step, Transition, decide
from ci_pipeline.oot.payload import cut
from ci_pipeline.oot.record import FIELDS, Record, began_at, failed_tests_json
from ci_pipeline.oot.store import (
    PAGE_BYTES,
    RATE_WINDOW,
    Change,
    ChangePage,
    StoreUnavailable,
    dispatch_key,
    in_window,
    too_many,
)
from ci_pipeline.settings import SettingsError

log = logging.getLogger(__name__)

T = TypeVar("T")

TABLE = "torchci-oot-workflow-job"

_FORM = "write dynamodb://<region>/<table>"
_FOREVER = 10**12
# An item has at most 400 KB; the other fields of a record have less than 30.
_FAILED_TESTS_BYTES = 350_000
_END = "end"  # of a shard


class _Changed(Exception):
    """Somebody else wrote what a decision was based on."""


class DynamoDBStore:
    """Two tables: `<table>` with the records and their stream, `<table>-lifecycle` with everything that expires.

    `client` and `streams` are boto3's clients `dynamodb` and `dynamodbstreams`.
    """

    def __init__(self, client: Any, streams: Any, table: str = TABLE, state_days: float = 3.0) -> None:
        self._client = client
        self._streams = streams
        self.table = table
        self.lifecycle_table = f"{table}-lifecycle"
        self._state_seconds = state_days * 86400
        self._pool = ThreadPoolExecutor(16, "oot-store")
        self._counting = defaultdict[str, threading.Lock](threading.Lock)

    @classmethod
    def from_url(
        cls,
        url: str,
        state_days: float = 3.0,
        session: boto3.Session | None = None,
        max_attempts: int = 5,
        **options: Any,
    ) -> DynamoDBStore:
        """Open `dynamodb://[<region>]/[<table>][?endpoint_url=<address>]`; the rest is AWS's own configuration.

        `options` are those of a boto3 client.

        Raises:
            SettingsError: the address is not of this form, or nothing says which region.
        """
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
        if parts.scheme != "dynamodb" or "/" in parts.path.strip("/") or query.keys() - {"endpoint_url"}:
            raise SettingsError(f"CI_PIPELINE_OOT_STORE: {_FORM}, not {url!r}")
        options["region_name"] = parts.netloc or options.get("region_name")
        options["endpoint_url"] = query.get("endpoint_url", [options.get("endpoint_url")])[0]
        options["config"] = Config(
            retries={"mode": "standard", "max_attempts": max_attempts},
            connect_timeout=3,
            read_timeout=10,
            max_pool_connections=32,
        )
        make: Any = (session or boto3).client
        try:
            client, streams = (make(service, **options) for service in ("dynamodb", "dynamodbstreams"))
        except (BotoCoreError, ValueError) as error:
            raise SettingsError(f"CI_PIPELINE_OOT_STORE: {_FORM}: {error}") from None
        return cls(client, streams, parts.path.strip("/") or TABLE, state_days)

    def create_tables(self) -> None:
        """Create what is not there yet, and wait until it is ready."""
        stream = {"StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}}
        with _unavailable():
            for table, key, extra in ((self.table, "dynamoKey", stream), (self.lifecycle_table, "key", {})):
                with contextlib.suppress(self._client.exceptions.ResourceInUseException):
                    self._client.create_table(
                        TableName=table,
                        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
                        KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
                        BillingMode="PAY_PER_REQUEST",
                        **extra,
                    )
                self._client.get_waiter("table_exists").wait(TableName=table)
            described = self._client.describe_time_to_live(TableName=self.lifecycle_table)
            if described["TimeToLiveDescription"]["TimeToLiveStatus"] == "DISABLED":
                self._client.update_time_to_live(
                    TableName=self.lifecycle_table,
                    TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires_at"},
                )

    def check_tables(self) -> None:
        """
        Raises:
            StoreUnavailable: a table is not there, or may not be read.
        """
        with _unavailable():
            self.record("none")
            self._get("none")

    def close(self) -> None:
        self._pool.shutdown()

    # --- writing -----------------------------------------------------------------------------------------------------

    def register_dispatch(self, dispatch: Dispatch) -> Future[None]:
        item = self._item(dispatch_key(dispatch), _fields(dispatch))
        return self._submit(lambda: self._client.put_item(TableName=self.lifecycle_table, Item=item) and None)

    def claim_dispatch(self, dispatch: Dispatch) -> Future[bool]:
        key, fields = dispatch_key(dispatch), _fields(dispatch)

        def work() -> bool:
            known = self._get(key)
            # The answer to a write of ours may have been lost.
            if known and known != fields and dispatch.dispatched_at < Dispatch(*known).told_until:
                return False
            self._put_or_changed(self._conditional_put(key, known, fields))
            return True

        return self._submit(lambda: _until_unchanged(work))

    def advance(
        self, step: Step, now: float, effect: Callable[[Transition], Record], *, rate_limit: int = 0
    ) -> Future[Transition | None]:
        def work() -> Transition | None:
            self._count_request(step.repo, rate_limit, now)
            return _until_unchanged(lambda: self._advance(step, now, effect))

        return self._submit(work)

    def _advance(self, step: Step, now: float, effect: Callable[[Transition], Record]) -> Transition | None:
        key = f"job {step.job}"
        known = self._get(key)
        state = JobState(*known) if known else None
        dispatched = None if state else self._get(dispatch_key(step))
        transition = decide(step, Dispatch(*dispatched) if dispatched else None, state, now)
        if transition is None:
            return None
        put = self._conditional_put(key, known, _fields(transition.state))
        record = effect(transition)
        for fill in (False, True):
            try:
                self._client.transact_write_items(TransactItems=[{"Put": put}, {"Update": self._update(record, fill)}])
            except self._client.exceptions.TransactionCanceledException as error:
                codes = [reason.get("Code") for reason in error.response["CancellationReasons"]]
                if "ValidationError" in codes:  # an item that is too large stays so
                    raise
                if codes != ["None", "ConditionalCheckFailed"]:
                    raise _Changed from error
            else:
                return transition
        raise _Changed

    def write(self, record: Record) -> Future[None]:
        def work() -> None:
            try:
                self._client.update_item(**self._update(record))
            except self._client.exceptions.ConditionalCheckFailedException:
                self._client.update_item(**self._update(record, fill=True))
            except self._client.exceptions.TransactionConflictException as error:
                raise _Changed from error

        return self._submit(lambda: _until_unchanged(work))

    def close_job(self, seen: Change, record: Record) -> Future[bool]:
        update = self._update(record)
        # Records of an older writer have no version.
        same = "#version = :seen" if seen.version else "attribute_not_exists(#version)"
        update["ConditionExpression"] = f"#status = :in_progress AND {same}"
        update["ExpressionAttributeValues"][":in_progress"] = _attribute("in_progress")
        if seen.version:
            update["ExpressionAttributeValues"][":seen"] = _attribute(seen.version)

        def work() -> bool:
            try:
                self._client.update_item(**update)
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
            return True

        return self._submit(work)

    def _update(self, record: Record, fill: bool = False) -> dict[str, Any]:
        """An `in_progress` is held back by a `completed` that was earlier; with `fill` it adds what is missing."""
        fields = {name: value for name, value in _fitting(record).items() if name != "dynamoKey"}
        now = time.time()
        sets = (f"#{name} = if_not_exists(#{name}, :{name})" if fill else f"#{name} = :{name}" for name in fields)
        always = ("#changed_at = :changed_at", "#began_at = if_not_exists(#began_at, :began_at)")
        update: dict[str, Any] = {
            "TableName": self.table,
            "Key": {"dynamoKey": {"S": record["dynamoKey"]}},
            "UpdateExpression": f"SET {', '.join((*sets, *always))} ADD #version :one",
            "ExpressionAttributeNames": {f"#{name}": name for name in (*fields, "changed_at", "began_at", "version")},
            "ExpressionAttributeValues": {
                **{f":{name}": _attribute(value) for name, value in fields.items()},
                ":changed_at": _attribute(now),
                ":began_at": _attribute(began_at(record, now)),
                ":one": _attribute(1),
            },
        }
        if record["status"] == "in_progress" and not fill:
            update["ConditionExpression"] = "attribute_not_exists(#status) OR #status <> :completed"
            update["ExpressionAttributeValues"][":completed"] = _attribute("completed")
        return update

    def count_request(self, repo: str, rate_limit: int, now: float) -> Future[None]:
        return self._submit(lambda: self._count_request(repo, rate_limit, now))

    def _count_request(self, repo: str, rate_limit: int, now: float) -> None:
        if not rate_limit:
            return

        def count() -> None:
            known: list[float] = self._get(key) or []
            recent = [at for at in known if in_window(at, now)]
            if len(recent) >= rate_limit:
                raise too_many(repo, rate_limit, recent[-rate_limit] + RATE_WINDOW - now)
            self._put_or_changed(self._conditional_put(key, known or None, [*recent, round(now, 3)]))

        key = f"requests {repo}"
        with self._counting[repo]:  # so that only other workers are in the way
            _until_unchanged(count)

    def repository_id(self, repo: str, repository_id: str) -> Future[str]:
        return self._submit(lambda: self._remember(f"repository {repo}", repository_id))

    def confirm_repository(self, repo: str, repository_id: str) -> Future[None]:
        item = self._item(f"repository {repo}", [repository_id], _FOREVER)
        return self._submit(lambda: self._client.put_item(TableName=self.lifecycle_table, Item=item) and None)

    def signing_key(self) -> Future[str]:
        return self._submit(lambda: self._remember("signing key", secrets.token_hex(32)))

    def _remember(self, key: str, text: str) -> str:
        """What this key was first remembered with."""
        try:
            self._client.put_item(**self._conditional_put(key, None, [text], _FOREVER))
        except self._client.exceptions.ConditionalCheckFailedException:
            return (self._get(key) or [text])[0]
        return text

    def _get(self, key: str) -> list[Any] | None:
        item = self._client.get_item(TableName=self.lifecycle_table, Key={"key": {"S": key}}, ConsistentRead=True)
        # DynamoDB removes what expired within days, not at once.
        live = "Item" in item and float(item["Item"]["expires_at"]["N"]) > time.time()
        return json.loads(item["Item"]["item"]["S"]) if live else None

    def _item(self, key: str, values: list[Any], expires_at: float | None = None) -> dict[str, Any]:
        expires_at = time.time() + self._state_seconds if expires_at is None else expires_at
        return {"key": {"S": key}, "item": {"S": json.dumps(values)}, "expires_at": {"N": str(int(expires_at))}}

    def _conditional_put(
        self, key: str, known: list[Any] | None, values: list[Any], expires_at: float | None = None
    ) -> dict[str, Any]:
        """Replace what `_get` answered, provided that it is still there."""
        if known is None:
            condition, name = "attribute_not_exists(#name) OR expires_at <= :known", "key"
            value = {"N": str(int(time.time()))}
        else:
            condition, name = "#name = :known", "item"
            value = {"S": json.dumps(known)}
        return {
            "TableName": self.lifecycle_table,
            "Item": self._item(key, values, expires_at),
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {"#name": name},
            "ExpressionAttributeValues": {":known": value},
        }

    def _put_or_changed(self, put: dict[str, Any]) -> None:
        try:
            self._client.put_item(**put)
        except self._client.exceptions.ConditionalCheckFailedException as error:
            raise _Changed from error

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        def guarded() -> T:
            with _unavailable():
                return work()

        try:
            return self._pool.submit(guarded)
        except RuntimeError as error:
            raise StoreUnavailable(f"{self.table} is closed") from error

    # --- reading -----------------------------------------------------------------------------------------------------

    def record(self, dynamo_key: str) -> Record | None:
        with _unavailable():
            key = {"dynamoKey": {"S": dynamo_key}}
            item = self._client.get_item(TableName=self.table, Key=key, ConsistentRead=True).get("Item")
        return _change(item).record if item else None

    def records(self, *, since: float = 0.0, until: float = math.inf, status: Status | None = None) -> Iterator[Change]:
        scan: dict[str, Any] = {"TableName": self.table, "ConsistentRead": True}
        conditions: list[tuple[str, str, str | float]] = [("changed_at", ">=", since)] if since else []
        conditions += [("changed_at", "<", until)] if until < math.inf else []
        conditions += [("status", "=", status)] if status else []
        if conditions:
            scan["FilterExpression"] = " AND ".join(
                f"#{name} {compares} :{n}" for n, (name, compares, _) in enumerate(conditions)
            )
            scan["ExpressionAttributeNames"] = {f"#{name}": name for name, _, _ in conditions}
            scan["ExpressionAttributeValues"] = {f":{n}": _attribute(to) for n, (_, _, to) in enumerate(conditions)}
        with _unavailable():
            for page in self._client.get_paginator("scan").paginate(**scan):
                yield from map(_change, page["Items"])

    def changes_after(self, cursor: str, limit: int) -> ChangePage:
        """The cursor is the last sequence number of each shard; a day later DynamoDB has forgotten a change."""
        positions: dict[str, str] = json.loads(cursor) if cursor.startswith("{") else {}
        changes: list[Change] = []
        with _unavailable():
            arn = self._client.describe_table(TableName=self.table)["Table"]["LatestStreamArn"]
            shards = self._shards(arn)
            positions = {shard: at for shard, at in positions.items() if shard in shards}
            for shard, parent in shards.items():
                if _full(changes, limit):
                    break
                # A record's changes go on in a child shard when its parent has ended.
                if positions.get(shard) != _END and (parent not in shards or positions.get(parent) == _END):
                    page, at = self._read_shard(arn, shard, positions.get(shard), limit - len(changes))
                    changes += page
                    positions |= {shard: at} if at else {}
        return ChangePage(tuple(changes), json.dumps(positions, sort_keys=True), _full(changes, limit))

    def _shards(self, arn: str) -> dict[str, str]:
        """The parent of each shard, parents first."""
        shards: dict[str, str] = {}
        start: dict[str, str] = {}
        while True:
            described = self._streams.describe_stream(StreamArn=arn, **start)["StreamDescription"]
            shards |= {shard["ShardId"]: shard.get("ParentShardId", "") for shard in described["Shards"]}
            if not (last := described.get("LastEvaluatedShardId")):
                return dict(sorted(shards.items()))  # ids begin with the time of their creation
            start = {"ExclusiveStartShardId": last}

    def _read_shard(self, arn: str, shard: str, at: str | None, limit: int) -> tuple[list[Change], str | None]:
        where = {"StreamArn": arn, "ShardId": shard}
        begin = {"ShardIteratorType": "TRIM_HORIZON"}
        after = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": at} if at else begin
        try:
            iterator = self._streams.get_shard_iterator(**where, **after)["ShardIterator"]
        except self._streams.exceptions.TrimmedDataAccessException:
            log.warning("Changes of %s were forgotten before they were read", self.table)
            iterator = self._streams.get_shard_iterator(**where, **begin)["ShardIterator"]
        changes: list[Change] = []
        empty = 0
        while not _full(changes, limit) and empty < 3:  # an empty page is not yet the end
            page = self._streams.get_records(ShardIterator=iterator, Limit=min(1000, limit - len(changes)))
            for entry in page["Records"]:
                at = entry["dynamodb"]["SequenceNumber"]
                image = entry["dynamodb"].get("NewImage", {})
                if "status" in image:  # not a removal, nor somebody's empty item
                    changes.append(_change(image))
            iterator = page.get("NextShardIterator")
            if iterator is None:
                return changes, _END
            empty = 0 if page["Records"] else empty + 1
        return changes, at


@contextlib.contextmanager
def _unavailable() -> Generator[None]:
    try:
        yield
    except ClientError as error:
        if error.response["Error"].get("Code") == "ResourceNotFoundException":
            raise StoreUnavailable("DynamoDB has no such table: `ci-pipeline oot create-tables` makes it") from error
        raise StoreUnavailable(f"DynamoDB: {error}") from error
    except BotoCoreError as error:
        raise StoreUnavailable(f"DynamoDB: {error}") from error


def _until_unchanged(work: Callable[[], T]) -> T:
    """Decide anew as long as somebody else was faster."""
    retrying = Retrying(
        retry=retry_if_exception_type(_Changed),
        wait=wait_random_exponential(multiplier=0.01, max=0.5),
        stop=stop_after_attempt(20),
        retry_error_callback=_give_up,
    )
    return retrying(work)


def _give_up(_: object) -> Any:
    raise StoreUnavailable("too many write the same item")


def _fields(item: JobState | Dispatch) -> list[Any]:
    return [getattr(item, name) for name in item.__slots__]


def _attribute(value: str | int | float) -> dict[str, str]:
    return {"S": value} if isinstance(value, str) else {"N": repr(value)}


def _change(item: dict[str, dict[str, str]]) -> Change:
    record: Record = {name: type(*item[name].values()) for name, type in FIELDS.items() if name in item}
    # Records of an older writer have no version.
    version, changed_at = (item.get(name, {}).get("N", "0") for name in ("version", "changed_at"))
    return Change(record, int(version), float(changed_at), item.get("began_at", {}).get("S", ""))


def _full(changes: list[Change], limit: int) -> bool:
    """Whether these are a page: see `PAGE_BYTES`."""
    size = sum(len(str(change.record.get("failed_tests_json", ""))) for change in changes)
    return len(changes) >= limit or size >= PAGE_BYTES


def _fitting(record: Record) -> Record:
    """The record with as much of its failed tests as an item can hold: their names before their stack traces."""
    text = str(record.get("failed_tests_json", ""))
    if len(text.encode()) <= _FAILED_TESTS_BYTES:
        return record
    tests: list[dict[str, Any]] = json.loads(text)
    total = len(tests) + tests[-1].pop("omitted", 0)
    for field, limit in (("stacktrace", 512), ("stacktrace", 40), ("message", 64), ("file", 40), ("name", 128)):
        for test in tests:
            test[field] = cut(test[field], limit)
        text = failed_tests_json(tests, total)
        if len(text.encode()) <= _FAILED_TESTS_BYTES:
            break
    while len(text.encode()) > _FAILED_TESTS_BYTES:  # nothing but characters that JSON escapes
        tests = tests[: len(tests) // 2]
        text = failed_tests_json(tests, total)
    return {**record, "failed_tests_json": text}

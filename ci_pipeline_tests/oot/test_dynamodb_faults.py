"""DynamoDB that fails in the middle: what was acknowledged is there, once; what was not can be sent again."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ci_pipeline.hud.relay import create_relay
from ci_pipeline.oot.dynamodb_store import DynamoDBStore
from ci_pipeline.oot.lifecycle import Dispatch
from ci_pipeline.oot.store import Change, StoreUnavailable
from ci_pipeline.settings import OotSettings
from ci_pipeline_tests.oot.conftest import callback
from ci_pipeline_tests.oot.test_relay import relay_of, send
from ci_pipeline_tests.oot.test_store import COMPLETED, DISPATCH, IN_PROGRESS, KEY, advance, changes, record
from ci_pipeline_tests.servers.dynamodb import DynamoDBServer
from ci_pipeline_tests.servers.oidc import OidcServer

WRITE = "TransactWriteItems"


@pytest.fixture
def dynamodb(dynamodb_url: str) -> Iterator[DynamoDBServer]:
    with DynamoDBServer(dynamodb_url) as server:
        yield server


@pytest.fixture
def address(dynamodb: DynamoDBServer) -> str:
    return f"dynamodb://us-east-1/table-{uuid.uuid4().hex}?endpoint_url={dynamodb.url}"


@pytest.fixture
def store(address: str) -> Iterator[DynamoDBStore]:
    store = DynamoDBStore.from_url(address, max_attempts=3)
    store.create_tables()
    store.register_dispatch(DISPATCH).result()
    yield store
    store.close()


def versions(store: DynamoDBStore) -> list[tuple[str, int]]:
    return [(str(change.record["status"]), change.version) for change in store.records()]


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"status": 503, "delay": 0.3}])
def test_a_transaction_that_fails_is_tried_again(store: DynamoDBStore, dynamodb: DynamoDBServer, fault: dict[str, Any]):
    dynamodb.fail(WRITE, times=2, **fault)
    assert advance(store, IN_PROGRESS)
    assert dynamodb.calls(WRITE) == 3
    assert versions(store) == [("in_progress", 1)]


@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": True}])
def test_a_transaction_whose_answer_was_lost_is_not_made_twice(
    store: DynamoDBStore, dynamodb: DynamoDBServer, fault: dict[str, Any]
):
    for step in (IN_PROGRESS, COMPLETED):
        dynamodb.fail(WRITE, after=True, **fault)
        advance(store, step)
    assert versions(store) == [("completed", 2)]
    assert [change.version for change in changes(store)] == [1, 2]


def test_a_claim_whose_answer_was_lost_is_still_ours(store: DynamoDBStore, dynamodb: DynamoDBServer):
    dynamodb.fail("PutItem", cut=True, after=True)
    claim = Dispatch("delivery-2", "org/backend", dispatched_at=1000.0, told_until=1008.0)
    assert store.claim_dispatch(claim).result()
    assert dynamodb.calls("PutItem") > 1


def test_while_transactions_fail_nothing_is_acknowledged_and_nothing_written(
    store: DynamoDBStore, dynamodb: DynamoDBServer
):
    dynamodb.fail(WRITE, status=500, times=100)
    with pytest.raises(StoreUnavailable):
        advance(store, IN_PROGRESS)
    assert store.record(KEY) is None
    dynamodb.faults.clear()
    assert advance(store, IN_PROGRESS)


@pytest.mark.parametrize("code", ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"])
def test_a_transaction_that_was_in_the_way_of_another_is_decided_anew(
    store: DynamoDBStore, dynamodb: DynamoDBServer, code: str
):
    reasons = [{"Code": code}, {"Code": "None"}]
    dynamodb.refuse(WRITE, "TransactionCanceledException", times=3, CancellationReasons=reasons)
    assert advance(store, IN_PROGRESS)
    assert versions(store) == [("in_progress", 1)]


def test_an_item_that_dynamodb_will_never_take_is_refused_at_once_and_by_its_reason(
    store: DynamoDBStore, dynamodb: DynamoDBServer
):
    reasons = [{"Code": "None"}, {"Code": "ValidationError", "Message": "Item size has exceeded the maximum"}]
    dynamodb.refuse(WRITE, "TransactionCanceledException", times=100, CancellationReasons=reasons)
    with pytest.raises(StoreUnavailable, match="TransactionCanceled"):
        advance(store, IN_PROGRESS)
    assert dynamodb.calls(WRITE) == 1


def test_a_write_that_meets_a_transaction_waits_for_it(store: DynamoDBStore, dynamodb: DynamoDBServer):
    dynamodb.refuse("UpdateItem", "TransactionConflictException", times=3)
    store.write(record("completed")).result()
    assert versions(store) == [("completed", 1)]


def test_a_read_that_fails_in_the_middle_of_the_feed_skips_nothing(store: DynamoDBStore, dynamodb: DynamoDBServer):
    for n in range(3):
        store.write({**record(), "dynamoKey": f"key-{n}"}).result()
    seen: list[Change] = []
    cursor = ""
    dynamodb.fail("GetRecords", status=500, times=4)  # one more than is tried
    while len(seen) < 3:
        try:
            page = store.changes_after(cursor, 1)
        except StoreUnavailable:
            continue
        seen += page.changes
        cursor = page.cursor
    assert [change.record["dynamoKey"] for change in seen] == ["key-0", "key-1", "key-2"]


def test_a_page_that_is_full_asks_no_further_shard(store: DynamoDBStore, dynamodb: DynamoDBServer):
    for n in range(2):
        store.write({**record(), "dynamoKey": f"key-{n}"}).result()
    [shard] = json.loads(store.changes_after("", 10).cursor)
    shards = [{"ShardId": shard}, {"ShardId": f"{shard}-another"}]
    dynamodb.fail("^DescribeStream$", status=200, body={"StreamDescription": {"Shards": shards}})
    before = dynamodb.calls("GetShardIterator")
    page = store.changes_after("", 2)
    assert (len(page.changes), page.more) == (2, True)
    assert dynamodb.calls("GetShardIterator") == before + 1


@pytest.mark.slow
def test_callbacks_amid_faults_are_taken_once_each(
    settings: OotSettings, address: str, dynamodb: DynamoDBServer, issuer: OidcServer
):
    DynamoDBStore.from_url(address).create_tables()
    chance = random.Random(7)
    with TestClient(create_relay(settings.model_copy(update={"oot_store": address}), "org/upstream")) as client:
        relay_of(client).store.register_dispatch(Dispatch("delivery-1", "org/backend", 1000.0)).result()

        def report(n: int) -> None:
            for status in ("in_progress", "completed"):
                answer = 0
                while answer != 200:  # what was not acknowledged is sent again, as it was
                    answer = send(client, issuer, callback(status, workflow__check_run_id=n)).status_code
                    assert answer in (200, 503)

        for _ in range(40):
            kind = chance.choice([{"status": 500}, {"status": 500, "after": True}, {"cut": True, "after": True}])
            dynamodb.fail(chance.choice([WRITE, WRITE, "GetItem", "PutItem"]), times=chance.randint(1, 6), **kind)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(report, range(12)))
        dynamodb.faults.clear()
        stored = {change.record["check_run_id"]: change for change in relay_of(client).store.records()}
    assert set(stored) == {str(n) for n in range(12)}
    assert {(change.record["status"], change.version) for change in stored.values()} == {("completed", 2)}

"""The embedded warehouse answers clickhouse-connect as ClickHouse's own server does."""

from __future__ import annotations

import gzip
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import clickhouse_connect
import httpx2
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_pipeline.warehouse import WarehouseError
from ci_pipeline.warehouse.client import connect
from ci_pipeline.warehouse.embedded import Embedded, listen

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

TABLE = (
    "CREATE TABLE t (id UInt64, text String, names Array(String), at DateTime64(6, 'UTC')) ENGINE MergeTree ORDER BY id"
)
AT = datetime(2025, 11, 10, 2, 17, 43, 123456, tzinfo=UTC)


@pytest.fixture
def http(embedded_warehouse: Embedded) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=embedded_warehouse.url.removesuffix("/default"), trust_env=False) as client:
        yield client


@pytest.fixture(params=[False, "gzip", "zstd", "lz4"])
def client(request: pytest.FixtureRequest, new_warehouse_url: str) -> Iterator[Client]:
    """clickhouse-connect with each compression of requests and answers."""
    address = httpx2.URL(new_warehouse_url)
    connect(new_warehouse_url).command(f"CREATE DATABASE {address.path.strip('/')}", use_database=False)
    client = clickhouse_connect.get_client(
        host=address.host,
        port=address.port,
        database=address.path.strip("/"),
        compress=request.param,
        tz_mode="aware",
    )
    client.command(TABLE)
    yield client
    client.command(f"DROP DATABASE {client.database}", use_database=False)


def test_rows_data_frames_and_arrow_tables_go_in_and_come_out(client: Client) -> None:
    rows = [[1, "a\tb\n'\\ ≥", ["x", "y"], AT], [2, "", [], AT]]
    assert client.insert("t", rows, column_names=["id", "text", "names", "at"]).written_rows == 2
    assert [list(row) for row in client.query("SELECT * FROM t ORDER BY id").result_rows] == rows
    table = client.query_arrow("SELECT * FROM t ORDER BY id", use_strings=True)
    assert client.insert_arrow("t", table).written_rows == 2
    frame = client.query_df("SELECT * FROM t ORDER BY id")
    client.insert_df("t", frame)
    assert client.query("SELECT id, count() FROM t GROUP BY id ORDER BY id").result_rows == [(1, 4), (2, 4)]
    assert client.query("SELECT * FROM t LIMIT 0").column_names == ("id", "text", "names", "at")


def test_large_inserts_arrive_in_pieces_and_whole(client: Client) -> None:
    count = 200_000
    text = pa.array([f"test_{number}" for number in range(count)])
    client.insert_arrow("t", pa.table({"id": pa.array(range(count), pa.uint64()), "text": text}))
    assert client.query("SELECT count(), uniqExact(text), sum(id) FROM t").first_row == (
        count,
        count,
        count * (count - 1) // 2,
    )


def test_parameters_are_bound(client: Client) -> None:
    values = {"text": "it's\t\\'; DROP TABLE t", "ids": [1, 2], "at": AT, "none": None}
    query = "SELECT {text:String}, {ids:Array(Int64)}, {at:DateTime64(6, 'UTC')}, {none:Nullable(String)}"
    assert list(client.query(query, values).first_row) == list(values.values())


def test_parameters_too_long_for_a_url_are_bound_too(client: Client) -> None:
    ids = list(range(20_000))
    assert client.query("SELECT length({ids:Array(Int64)}), {x:String}", {"ids": ids, "x": "é"}).first_row == (
        20_000,
        "é",
    )


def test_settings_are_those_of_one_query(client: Client) -> None:
    query = "SELECT getSetting('max_threads')"
    before = client.query(query).first_row
    assert client.query(query, settings={"max_threads": 1}).first_row == (1,)
    assert client.query(query).first_row == before


@pytest.mark.parametrize("statement", ["SET max_threads = 1", "USE system", "CREATE TEMPORARY TABLE here (id UInt8)"])
def test_what_a_statement_leaves_on_its_connection_no_other_query_sees(http: httpx2.Client, statement: str) -> None:
    query = (
        "SELECT getSetting('max_threads'), currentDatabase(), (SELECT count() FROM system.tables WHERE is_temporary)"
    )
    before = http.post("/", content=query).text
    for _ in range(3):
        assert http.post("/", content=statement).status_code == 200
        assert http.post("/", content=query).text == before


def test_a_query_that_failed_does_not_harm_the_next(client: Client) -> None:
    for _ in range(3):
        with pytest.raises(DatabaseError):
            client.query("SELECT throwIf(number = 3) FROM numbers(5)")
        assert client.query("SELECT count() FROM t").first_row == (0,)


def test_an_error_is_clickhouse_s_own(client: Client) -> None:
    with pytest.raises(DatabaseError) as raised:
        client.query("SELECT * FROM nowhere")
    assert raised.value.code == 60
    assert raised.value.name == "UNKNOWN_TABLE"


def test_an_error_reaches_a_client_that_is_still_sending(client: Client) -> None:
    with pytest.raises(DatabaseError) as raised:
        client.raw_insert("nowhere", ["id"], (b"1\n" * 500_000 for _ in range(40)), fmt="CSV")
    assert raised.value.code == 60


def test_rows_that_do_not_fit_leave_nothing_behind(client: Client) -> None:
    with pytest.raises(DatabaseError, match="no_such_column"):
        client.insert_arrow("t", pa.table({"no_such_column": [1]}))
    with pytest.raises(DatabaseError):
        client.raw_insert("t", ["id"], b"1\nnot a number\n", fmt="CSV")
    assert client.command("SELECT count() FROM t") == 0


def test_an_insert_that_fails_after_it_was_read_is_an_error(client: Client) -> None:
    client.command("ALTER TABLE t ADD COLUMN checked UInt8 MATERIALIZED throwIf(id = 1, 'not this one')")
    with pytest.raises(DatabaseError, match="not this one"):
        client.insert_arrow("t", pa.table({"id": pa.array([1], pa.uint64())}))
    assert client.insert_arrow("t", pa.table({"id": pa.array([2], pa.uint64())})).written_rows == 1


def test_a_command_answers_as_clickhouse_does(client: Client) -> None:
    assert client.command("SELECT 7") == 7
    assert client.command("SELECT 'x' WHERE 0") == ""
    assert client.command("INSERT INTO t (id, text) VALUES (1, 'a FORMAT CSV'), (2, 'b')").written_rows == 2
    assert client.command("INSERT INTO t (id, text) SELECT id + 10, text FROM t").written_rows == 2


@given(text=st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_any_text_survives_as_parameter_and_as_row(warehouse_text: Client, text: str) -> None:
    assert warehouse_text.query("SELECT {text:String}", {"text": text}).first_row == (text,)
    warehouse_text.command("TRUNCATE TABLE texts")
    warehouse_text.insert_arrow("texts", pa.table({"text": [text]}))
    assert warehouse_text.query("SELECT text FROM texts").result_rows == [(text,)]


@pytest.fixture(scope="module")
def warehouse_text(embedded_warehouse: Embedded) -> Iterator[Client]:
    client = connect(embedded_warehouse.url)
    client.command("CREATE TABLE texts (text String) ENGINE = Memory")
    yield client
    client.command("DROP TABLE texts")


def test_queries_run_side_by_side_and_a_slow_one_holds_up_nobody(embedded_warehouse: Embedded) -> None:
    client = connect(embedded_warehouse.url)
    slow = threading.Thread(target=client.query, args=["SELECT sleep(2)"])
    slow.start()
    time.sleep(0.1)
    assert client.ping()
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: client.query("SELECT {n:Int64}", {"n": number}).first_row[0], range(64))
        assert list(answers) == list(range(64))
    assert slow.is_alive(), "the other queries waited for the slow one"
    slow.join()


# --- by hand --------------------------------------------------------------------------------------------------------


def test_curl_can_ask(http: httpx2.Client) -> None:
    assert http.get("/ping").text == http.get("/").text == "Ok.\n"
    assert http.get("/", params={"query": "SELECT 1, 'x'"}).text == "1\tx\n"
    assert http.post("/", content="SELECT 1 AS one FORMAT JSONEachRow").text == '{"one":1}\n'
    assert http.post("/", params={"query": "SELECT 1"}, content=" + 1").text == "2\n"
    assert http.post("/", params={"default_format": "CSV"}, content="SELECT 'x'").text == '"x"\n'


def test_data_may_follow_a_statement_in_the_url_or_in_the_body(http: httpx2.Client, warehouse: Client) -> None:
    warehouse.command("CREATE TABLE two (a Int64, b String) ENGINE = MergeTree ORDER BY a")
    place = {"database": str(warehouse.database)}
    http.post("/", params={**place, "query": "INSERT INTO two FORMAT CSV"}, content=b"1,x\n2,y\n").raise_for_status()
    body = gzip.compress(b"insert into two (a, b)\nformat JSONEachRow\n" + b'{"a": 3, "b": "z"}')
    http.post("/", params=place, content=body, headers={"content-encoding": "gzip"}).raise_for_status()
    assert warehouse.query("SELECT * FROM two ORDER BY a").result_rows == [(1, "x"), (2, "y"), (3, "z")]


def test_a_get_request_only_reads(http: httpx2.Client) -> None:
    answer = http.get("/", params={"query": "CREATE TABLE by_get (a Int8) ENGINE = Memory"})
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (500, "164")


def test_a_page_of_another_site_gets_nothing(http: httpx2.Client) -> None:
    assert http.post("/", content="SELECT 1", headers={"origin": "https://example.org"}).status_code == 403
    assert http.get("/", params={"query": "SELECT 1"}, headers={"host": "example.org"}).status_code == 400


def test_an_unknown_encoding_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/", content=b"SELECT 1", headers={"content-encoding": "rot13"})
    assert answer.status_code == 500
    assert "rot13" in answer.text


@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b"SELECT", b"INSERT INTO", b"SELECT 1; SELECT 2", b"INSERT INTO t FORMAT Native\n\xff"]
)
def test_nonsense_is_an_error_of_its_own(http: httpx2.Client, body: bytes) -> None:
    assert http.post("/", content=body).status_code == 500
    assert http.get("/ping").text == "Ok.\n"


# --- the process ----------------------------------------------------------------------------------------------------


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    with Embedded(tmp_path) as warehouse:
        client = connect(warehouse.url)
        client.command("CREATE TABLE kept (a Int64) ENGINE = MergeTree ORDER BY a")
        client.insert("kept", [[1], [2]])
        warehouse.process.send_signal(signal.SIGKILL)
        warehouse.process.wait(10)
    with Embedded(tmp_path) as warehouse:
        assert connect(warehouse.url).query("SELECT a FROM kept ORDER BY a").result_rows == [(1,), (2,)]


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    with Embedded(tmp_path) as warehouse:
        warehouse.process.terminate()
        assert warehouse.process.wait(10) == 0


@pytest.mark.slow
def test_sigterm_does_not_wait_for_a_slow_query(tmp_path: Path) -> None:
    def ask(client: Client) -> None:
        with pytest.raises(ClickHouseError):
            client.query("SELECT sleepEachRow(3) FROM numbers(20) SETTINGS max_block_size = 1")

    with Embedded(tmp_path) as warehouse:
        query = threading.Thread(target=ask, args=[connect(warehouse.url)])
        query.start()
        time.sleep(0.3)
        warehouse.process.terminate()
        warehouse.process.wait(15)
        query.join(15)
        assert not query.is_alive()


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ci_pipeline.warehouse.embedded import Embedded\n"
        "with Embedded(Path(sys.argv[1])) as warehouse: print(warehouse.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with Embedded(tmp_path) as again:
        assert again.process.pid != child


def test_a_second_process_on_the_folder_is_told_who_has_it(tmp_path: Path) -> None:
    with Embedded(tmp_path) as first:
        line = f"{tmp_path} is in use by process {first.process.pid}: stop it, or use its address"
        with pytest.raises(WarehouseError) as raised, Embedded(tmp_path):
            pass
        assert str(raised.value) == line


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WarehouseError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "warehouse.example.org"])
def test_it_serves_loopback_alone(host: str) -> None:
    with pytest.raises(WarehouseError, match="not on loopback"):
        listen(host, 0)


def test_its_log_goes_where_it_is_told(tmp_path: Path) -> None:
    log = tmp_path / "warehouse.log"
    with Embedded(tmp_path / "data", log=log) as warehouse:
        assert warehouse.url.startswith("http://127.0.0.1:")
    assert "Traceback" not in log.read_text()

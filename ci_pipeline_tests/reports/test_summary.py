"""Summaries made of structured data, parsed again: nothing is lost and nothing invented."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ci_pipeline.reports.read import read_report
from ci_pipeline.reports.summary import headline, split_node_id

from .conftest import ARTIFACT


@pytest.mark.parametrize(
    ("line", "node_id", "message"),
    [
        ("tests/t.py::test_a - E: m", "tests/t.py::test_a", "E: m"),
        ("tests/t.py::test_a", "tests/t.py::test_a", ""),
        ("tests/t.py::test_a[x - y] - E: m", "tests/t.py::test_a[x - y]", "E: m"),
        ("tests/t.py::test_a[x - y]", "tests/t.py::test_a[x - y]", ""),
        ("tests/t.py::test_a - assert [1] - [2]", "tests/t.py::test_a", "assert [1] - [2]"),
        ("tests/t.py::test_a[[]", "tests/t.py::test_a[[]", ""),
        ("tests/t.py::test_a[a - b", "tests/t.py::test_a[a", "b"),  # cut off
        ("pages/[id]/test_a.py::test_a - E: m", "pages/[id]/test_a.py::test_a", "E: m"),
        ("tests/t.py - ImportError: a::b", "tests/t.py", "ImportError: a::b"),
        ("tests/models - ImportError: x", "tests/models", "ImportError: x"),
        ("my - dir/t.py::test_a - E: m", "my - dir/t.py::test_a", "E: m"),
        ("README.md::README.md", "README.md::README.md", ""),
    ],
)
def test_a_node_id_ends_where_its_brackets_do(line: str, node_id: str, message: str) -> None:
    assert split_node_id(line.encode()) == (node_id.encode(), message.encode())


def test_a_known_message_decides_where_brackets_leave_a_choice() -> None:
    assert split_node_id(b"t.py::t[a] - b] - E: m", {b"E: m"}) == (b"t.py::t[a] - b]", b"E: m")
    assert split_node_id(b"t.py::t[a] - b] - E: m", {b"b] - E: m"}) == (b"t.py::t[a]", b"b] - E: m")
    assert split_node_id(b"t.py::t[a] - b] - E: m") == (b"t.py::t[a]", b"b] - E: m")


def test_a_headline_keeps_the_parameters_as_they_are() -> None:
    assert headline(b"tests/t.py::T::test_a[b::c]") == b"T.test_a[b::c]"
    assert headline(b"tests/t.py") == b"tests/t.py"


class Failing(NamedTuple):
    node_id: str
    message: list[str]  # lines
    line: int


names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
# pytest escapes what cannot be printed; a single ] before a blank is pytest's own ambiguity, tried above.
parameters = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=12).filter(
    lambda text: "] - " not in text
)
node_ids = st.builds(
    lambda path, classes, name, parameter: (
        f"tests/test_{path}.py::{''.join(c.title() + '::' for c in classes)}test_{name}"
        + (f"[{parameter}]" if parameter is not None else "")
    ),
    names,
    st.lists(names, max_size=2),
    names,
    st.none() | parameters,
)
messages = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x1b"), max_size=30),
        node_ids.map(lambda node_id: f"FAILED {node_id} - ghost"),
        node_ids.map(lambda node_id: f"ERROR {node_id} - ghost"),
        st.sampled_from(
            ["=== 1 failed in 1.00s ===", "FAILED to launch", "ERROR    root:x.py:3 no", "/r/x.py:1: E: m"]
        ),
    ),
    max_size=4,
)
failing = st.builds(
    lambda node_id, first, rest, line: Failing(node_id, [f"Error: {first}".strip(), *rest], line),
    node_ids,
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=10),
    messages,
    st.integers(1, 10**5),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.lists(failing, max_size=8, unique_by=lambda test: test.node_id), st.integers(0, 5))
@example(
    [
        Failing("tests/test_a.py::test_b0", ["Error:", "FAILED tests/test_b.py::test_b - ghost"], 1),
        Failing("tests/test_a.py::test_b", ["Error:"], 1),
    ],
    0,
)
def test_every_failing_test_is_listed_once_with_its_own_trace_whatever_its_message_says(
    tmp_path: Path, tests: list[Failing], passed: int
) -> None:
    summary = ["== short test summary info =="] + [f"PASSED tests/ok.py::test_{n}" for n in range(passed)]
    summary += [f"FAILED {test.node_id} - " + "\n".join(test.message) for test in tests]
    words = ", ".join(f"{n} {word}" for n, word in ((len(tests), "failed"), (passed, "passed")) if n)
    short = "".join(f"__ {headline(test.node_id.encode()).decode()} __\nx.py:{test.line}: Error\n" for test in tests)
    for name, text in {
        "stats": f"== {words or 'no tests ran'} in 1.00s ==",
        "summary_short": "\n".join(summary) + "\n",
        "failures_line": "".join(f"/r/x.py:{test.line}: {test.message[0]}\n" for test in tests),
        "failures_short": short,
    }.items():
        (tmp_path / f"{name}.txt").write_text(text, "utf-8", newline="")
    report = read_report(tmp_path, ARTIFACT)
    assert report.problems == ()
    assert [(outcome.node_id, outcome.trace) for outcome in report.outcomes] == [
        (test.node_id, f"(line {test.line})  {test.message[0]}") for test in tests
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            name: st.binary(max_size=60)
            | st.lists(
                st.sampled_from(
                    b"FAILED |ERROR |SUBFAILED[|PASSED |SKIPPED [1] |t.py::t|[|]| - |\n|1 failed|2 errors| in 1.0s|"
                    b"t.py:3: E|___ t ___\n|E   x: y\n|\x1b[1m|\xff".split(b"|")
                ),
                max_size=12,
            ).map(b"".join)
            for name in ("stats", "summary_short", "failures_line", "failures_short", "errors", "durations")
        }
    )
)
def test_no_report_crashes_the_reader(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_bytes(text)
    for every_outcome in (False, True):
        report = read_report(tmp_path, ARTIFACT, every_outcome=every_outcome)
        assert report.counts or report.problems


@pytest.mark.parametrize(
    "line",
    [
        "FAILED t.py::t[" + " - x" * 100_000,
        "FAILED t.py::t[a] - " + "b] - " * 100_000,
        "SUBFAILED[" + "] (" * 100_000 + " t.py::t - E",
        "[" + "](" * 100_000 + " SUBFAIL t.py::t - E",
        "FAILED " + "a." * 100_000,
    ],
)
@pytest.mark.timeout(10)
def test_no_line_takes_long(tmp_path: Path, line: str) -> None:
    (tmp_path / "stats.txt").write_text("2 failed in 1.00s")
    (tmp_path / "summary_short.txt").write_text(f"{line}\n")
    (tmp_path / "failures_line.txt").write_text("x.py:3: E\n" + "_ " * 100_000)
    read_report(tmp_path, ARTIFACT, every_outcome=True)

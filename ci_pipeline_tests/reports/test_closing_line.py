from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.model import Counts
from ci_pipeline.reports.closing_line import parse_closing_line


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("= 5 passed in 0.12s =", Counts(passed=5, seconds=0.12)),
        ("===== 1 failed, 5 passed, 2 warnings in 61.00s (0:01:01) =====", Counts(5, 1, warnings=2, seconds=61.0)),
        ("3 failed, 1 passed in 1.20s", Counts(1, 3, seconds=1.2)),  # -q
        ("==== no tests ran in 0.01s ====", Counts(seconds=0.01)),
        ("==== 3 deselected in 0.10s ====", Counts(deselected=3, seconds=0.1)),
        ("==== 1 error in 0.50s ====", Counts(errors=1, seconds=0.5)),
        ("==== 1 warning, 2 errors in 0.50s ====", Counts(errors=2, warnings=1, seconds=0.5)),
        ("==== 2 failed, 1 passed, 2 rerun in 61.00s (0:01:01) ====", Counts(1, 2, rerun=2, seconds=61.0)),
        ("==== 1 passed, 3 reruns in 1.00s ====", Counts(1, rerun=3, seconds=1.0)),
        ("==== 1 passed in 93784.51s (1 day, 2:03:04) ====", Counts(1, seconds=93784.51)),
        ("==== 1 passed in 200000.00s (2 days, 7:33:20) ====", Counts(1, seconds=200000.0)),
        ("==== 4 passed, 3 subtests passed in 2.04s ====", Counts(4, seconds=2.04)),
        ("==== 1 failed, 4 passed, 2 subtests failed in 2.04s ====", Counts(4, 3, seconds=2.04)),
        ("= 1 failed, 1 passed, 1 skipped, 1 xfailed, 1 xpassed in 3.00s =", Counts(1, 1, 0, 1, 1, 1, seconds=3.0)),
        ("==== 12 tests collected in 0.01s ====", Counts(seconds=0.01)),
        ("==== 2/3 tests collected (1 deselected) in 0.01s ====", Counts(seconds=0.01)),
        ("==== no tests collected, 1 error in 0.20s ====", Counts(errors=1, seconds=0.2)),
        ("==== 2 passed, 1 flaky in 0.20s ====", Counts(2, seconds=0.2)),  # a plugin's word
    ],
)
def test_every_form_of_the_closing_line_is_read(line: str, counts: Counts) -> None:
    assert parse_closing_line(line.encode()) == counts
    assert parse_closing_line(f"!!! stopping after 1 failures !!!\n{line}\n\n".encode()) == counts


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "=====", "== 3 failed, 25 pas", "== 3 failed, 2 passed ==", "we waited in 3s", "5 in 3s"),
        *(
            "1 passed in 3s, then it hung",
            "3 failed (again) in 1.00s",
            "1 passed in 1.2.3s",
            "9" * 5000 + " passed in 1.00s",
            "== 1 passed in " * 100_000,
        ),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_closing_line_is_no_total(text: str) -> None:
    assert parse_closing_line(text.encode()) is None


def test_the_last_of_several_closing_lines_counts() -> None:
    assert parse_closing_line(b"== 1 failed in 0.10s ==\n== 3 passed in 1.00s ==\n") == Counts(3, seconds=1.0)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            word: st.integers(1, 10**7)
            for word in ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "rerun")
        },
    ),
    st.integers(0, 10**7),
    st.sampled_from(["", "=", "======"]),
)
def test_the_totals_that_pytest_prints_are_the_totals_that_are_read(
    totals: dict[str, int], seconds: int, frame: str
) -> None:
    words = ", ".join(f"{number} {word}" for word, number in totals.items()) or "no tests ran"
    took = f"{seconds}.00s" + (f" ({timedelta(seconds=seconds)})" if seconds >= 60 else "")
    line = f"{frame} {words} in {took} {frame}".strip()
    assert parse_closing_line(line.encode()) == Counts(**totals, seconds=float(seconds))


@given(st.binary())
def test_no_text_crashes_the_parser(text: bytes) -> None:
    parse_closing_line(text)

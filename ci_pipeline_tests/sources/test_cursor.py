from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.sources import EPOCH, SourceError
from ci_pipeline.sources.cursor import OVERLAP, Cursor

NOON = datetime(2025, 11, 10, 12, tzinfo=UTC)
BEGINNING = Cursor.since(EPOCH)


def runs(*minutes: int):
    return [(NOON + timedelta(minutes=m), f"run-{m}", m) for m in minutes]


def test_a_cursor_survives_being_written_down():
    cursor = Cursor(NOON, {"1-1": NOON}, NOON)
    assert Cursor.load(cursor.dump()) == cursor


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"at": 5, "seen": {}, "swept": null}', "null"])
def test_what_is_no_cursor_is_one_clear_error(text):
    with pytest.raises(SourceError, match="not a cursor"):
        Cursor.load(text)


def test_pages_are_bounded_and_in_order():
    known = runs(3, 1, 2)
    first, cursor = BEGINNING.page(known, 2)
    second, cursor = cursor.page(known, 2)
    assert (first, second, cursor.page(known, 2)[0]) == ([1, 2], [3], [])


def test_a_run_that_turns_up_late_is_still_given():
    _, cursor = BEGINNING.page(runs(100), 10)
    assert cursor.page(runs(100, 5), 10)[0] == [5]


def test_the_cursor_forgets_what_lies_behind_the_overlap():
    _, cursor = BEGINNING.page(runs(0), 10)
    _, cursor = cursor.page(runs(0, 500), 10)
    assert set(cursor.seen) == {"run-500"}


def test_a_wrong_clock_does_not_move_the_cursor_into_the_future():
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    _, cursor = BEGINNING.page([(tomorrow, "odd", 1)], 10)
    assert cursor.at < tomorrow
    now = datetime.now(UTC)
    assert cursor.page([(tomorrow, "odd", 1), (now, "next", 2)], 10)[0] == [2]


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, int(OVERLAP.total_seconds() // 60) - 1)), max_size=30),
    st.integers(1, 4),
)
def test_no_run_is_lost_and_none_is_given_twice(runs_with_delay, limit):
    """Each run completes at some minute and becomes visible with some delay; every few minutes a page is read."""
    cursor, given_runs = BEGINNING, []
    last = max((done + delay for done, delay in runs_with_delay), default=0)
    for minute in range(0, last + 30, 30):
        while True:
            visible = [
                (NOON + timedelta(minutes=done), f"{i}", i)
                for i, (done, delay) in enumerate(runs_with_delay)
                if done + delay <= minute
            ]
            page, cursor = Cursor.load(cursor.dump()).page(visible, limit)
            assert len(page) <= limit
            given_runs += page
            if not page:
                break
    assert sorted(given_runs) == list(range(len(runs_with_delay)))

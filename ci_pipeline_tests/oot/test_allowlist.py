"""The allowlist: its four levels, what is wrong in it and where, and how it ages."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.oot.allowlist import AllowlistCache, AllowlistError, Entry, parse_allowlist, read_allowlist
from ci_pipeline_tests.servers.base import Request, Response, Server

GOOD = """\
L1: [org/a]
L2:
  - org/b
L3:
  gpu: {org/c: [ann, bob], org/e: []}
  cpu: {org/c: [eve]}
L4:
  - org/d: "ann, bob"
"""


def test_the_four_levels():
    assert list(parse_allowlist(GOOD)) == [
        Entry("org/a", "L1"),
        Entry("org/b", "L2"),
        Entry("org/c", "L3", ("gpu", "cpu"), ("ann", "bob", "eve")),
        Entry("org/e", "L3", ("gpu",)),
        Entry("org/d", "L4", (), ("ann", "bob")),
    ]


def test_nobody_need_be_on_call():
    listed = parse_allowlist("L3: {gpu: {org/a: }}\nL4:\n- org/b:\n- org/c: ' , '")
    assert [entry.oncalls for entry in listed] == [(), (), ()]


def test_a_repository_is_found_whatever_its_case():
    assert parse_allowlist("L2: [Org/Backend]").find("org/BACKEND") == Entry("Org/Backend", "L2")


def test_what_is_nested_without_end_is_refused():
    with pytest.raises(AllowlistError, match="not YAML"):
        parse_allowlist("[" * 10_000)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "L1:\nL2: []\nL3:\nL4: ~\n", "{}"])
def test_an_empty_allowlist_is_one(text: str):
    assert len(parse_allowlist(text)) == 0


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("L2:\n- org/a\n- org/b\n- org/a", 4, "org/a is listed twice, first in line 2"),
        ("L1: [org/a]\nL2: [ORG/A]", 2, "listed twice, first in line 1 (L1)"),
        ("L3:\n  gpu: {org/a: [x]}\nL4:\n- org/a: x", 4, "listed twice"),
        ("L3:\n  gpu:\n    org/a: [x]\n    org/a: [y]", 4, "listed twice"),
        ("L3:\n  gpu: {org/a: [x]}\n  gpu: {org/b: [x]}", 3, "device gpu is there twice"),
        ("L1: [org/a]\nL1: [org/b]", 2, "L1 is there twice"),
        ("L5: [org/a]", 1, "'L5' is not a level"),
        ("L1: org/a", 1, "L1 is a list"),
        ("L1:\n- org", 2, "'org' is not a repository"),
        ("L1:\n- org/a/b", 2, "is not a repository"),
        ("L1:\n- https://github.com/org/a", 2, "is not a repository"),
        ("L1:\n- [org/a]", 2, "must be a word"),
        ("L1:\n-", 2, "must be a word"),
        ("L3: [org/a]", 1, "L3 is a mapping"),
        ("L3:\n  gpu: [org/a]", 2, "gpu is a mapping"),
        ("L4: {org/a: x}", 1, "L4 is a list"),
        ("L4:\n- org/a", 2, "an L4 entry is"),
        ("- org/a", 1, "levels L1 to L4"),
        ("L1: [org/a\nL2: [", 2, "not YAML"),
        ("L1: !!python/object:os.system [org/a]\nL2: {", 2, "not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, line: int, reason: str):
    with pytest.raises(AllowlistError) as error:
        parse_allowlist(text, "allowlist.yml")
    assert str(error.value).startswith(f"allowlist.yml line {line}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text())
def test_no_text_breaks_the_reader(text: str):
    with contextlib.suppress(AllowlistError):
        parse_allowlist(text)


def test_a_missing_file_is_a_start_up_error(tmp_path: Path):
    with pytest.raises(AllowlistError, match=r"none\.yml"):
        AllowlistCache(str(tmp_path / "none.yml"), 60)


def test_a_file_without_a_word_is_a_start_up_error_that_says_what_to_write(tmp_path: Path):
    (tmp_path / "allowlist.yml").touch()
    with pytest.raises(AllowlistError, match=r"allowlist\.yml: is empty, write \{\} if nobody may report"):
        AllowlistCache(str(tmp_path / "allowlist.yml"), 60)


def test_a_file_that_is_too_large_to_be_one_is_refused(tmp_path: Path):
    (tmp_path / "allowlist.yml").write_text("#" * 1_000_001)
    with pytest.raises(AllowlistError, match=r"allowlist\.yml: larger than 1000000 bytes"):
        read_allowlist(str(tmp_path / "allowlist.yml"))


def test_without_a_location_nobody_is_on_it():
    assert len(AllowlistCache("", 60).current()) == 0


class Files(Server):
    text = "L2: [org/a]"

    def handle(self, request: Request) -> Response:
        return Response(200, self.text.encode())


def eventually_lists(cache: AllowlistCache, repo: str) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if cache.current().find(repo):
            return True
        time.sleep(0.01)
    return False


def test_it_is_read_again_though_nobody_asks():
    with Files() as files, contextlib.closing(AllowlistCache(files.url, 0.2)) as cache:
        files.text = "L2: [org/b]"
        time.sleep(1.0)
        assert not cache.current().find("org/a")
        assert cache.current().find("org/b")
        assert 2 <= len(files.requests) <= 6


def test_it_is_not_read_again_before_its_time_nor_when_it_was_closed():
    with Files() as files:
        for ttl in (60, 0.1):
            with contextlib.closing(AllowlistCache(files.url, ttl)):
                pass
        time.sleep(0.4)
        assert len(files.requests) == 2


def test_the_last_good_copy_stays_while_it_cannot_be_read():
    with Files() as files, contextlib.closing(AllowlistCache(files.url, 0.1)) as cache:
        files.fail(status=500, times=3)
        end = time.monotonic() + 5
        while len(files.requests) < 4 and time.monotonic() < end:
            assert cache.current().find("org/a")
            time.sleep(0.01)
        for text in ("L2: [oops", "\n"):
            files.text = text
            time.sleep(0.3)
            assert cache.current().find("org/a")
        files.text = "L2: [org/b]"
        assert eventually_lists(cache, "org/b")


def test_an_address_that_answers_an_error_is_one_line():
    with Files() as files:
        files.fail(status=404)
        with pytest.raises(AllowlistError) as error:
            read_allowlist(files.url)
        assert files.url in str(error.value)
        assert "404" in str(error.value)

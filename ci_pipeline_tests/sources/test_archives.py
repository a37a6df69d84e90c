import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ci_pipeline.sources import archives
from ci_pipeline.sources.archives import ArtifactRefused, link_tree, unpack


def make_zip(path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(archive: Path, into: Path) -> str:
    """The reason for which it is refused; nothing of it may be left behind."""
    before = sorted(into.parent.rglob("*"))
    with pytest.raises(ArtifactRefused) as refused:
        unpack(archive, into)
    assert sorted(into.parent.rglob("*")) == before
    assert repr(into.name) in str(refused.value)
    assert "\n" not in str(refused.value)
    return refused.value.reason


def test_an_archive_is_unpacked_with_its_folders(tmp_path):
    archive = make_zip(
        tmp_path / "a.zip", [("./", b""), ("stats.txt", b"1 passed"), ("deep/er/x.txt", b"\xff\x00"), ("empty/", b"")]
    )
    assert unpack(archive, tmp_path / "out" / "report") == tmp_path / "out" / "report"
    assert everything_below(tmp_path / "out" / "report") == {"stats.txt": b"1 passed", "deep/er/x.txt": b"\xff\x00"}
    assert (tmp_path / "out" / "report" / "empty").is_dir()
    assert stat.S_IMODE((tmp_path / "out" / "report").stat().st_mode) == 0o755  # others read it too


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "C:evil", "c:/evil", "..\\evil", "a\\b", "//host/share", "x/" * 200 + "y"],
)
def test_an_entry_that_leaves_the_folder_is_refused(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", [("fine.txt", b""), (name, b"evil")])
    assert "leaves the folder" in refusal(archive, tmp_path / "out" / "report")
    assert not (tmp_path / "out" / "evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_special_files_are_refused(tmp_path, kind):
    entry = zipfile.ZipInfo("innocent")
    entry.external_attr = (kind | 0o777) << 16
    archive = make_zip(tmp_path / "a.zip", [(entry, b"/etc/passwd")])
    assert "link or a special file" in refusal(archive, tmp_path / "out" / "report")


def test_a_bomb_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("zeros", bytes(1_000_000))])
    assert "200 times" in refusal(archive, tmp_path / "out" / "report")


def test_a_bomb_of_many_files_each_of_which_is_small_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [(f"{n:03}", bytes(60_000)) for n in range(300)])
    assert "200 times" in refusal(archive, tmp_path / "out" / "report")


def test_a_bomb_of_many_files_that_lie_over_one_another_is_refused(tmp_path):
    # Two hundred entries of the central directory lead to the same compressed bytes.
    one = make_zip(tmp_path / "one.zip", [("f000", bytes(range(256)) * 40)])
    data = one.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[start:end]
    directory = b"".join(entry.replace(b"f000", b"f%03d" % n) for n in range(400))
    tail = bytearray(data[end:])
    tail[8:10] = tail[10:12] = (400).to_bytes(2, "little")
    tail[12:16] = len(directory).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data[:start] + directory + bytes(tail))
    assert refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


def test_a_header_that_lies_about_the_packed_size_does_not_hide_a_bomb(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", [("zeros", bytes(1_000_000))]).read_bytes())
    at = data.index(b"PK\x01\x02") + 20
    data[at : at + 4] = (900_000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    assert refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


def test_a_header_that_lies_about_the_size_is_refused(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", [("zeros", bytes(1_000_000))]).read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(signature) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    assert refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


def test_a_file_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10_000)
    noise = bytes(i * i % 251 for i in range(20_000))
    archive = make_zip(tmp_path / "a.zip", [("big", noise)])
    assert "larger than" in refusal(archive, tmp_path / "out" / "report")


@pytest.mark.parametrize("limit", [1, 10, 100])
def test_too_many_entries_are_refused(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(archives, "MAX_ENTRIES", limit)
    archive = make_zip(tmp_path / "a.zip", [(f"{n}.txt", b"") for n in range(limit + 1)])
    assert "more than" in refusal(archive, tmp_path / "out" / "report")
    archive = make_zip(tmp_path / "a.zip", [(f"{n}.txt", b"") for n in range(limit)])
    assert len(list(unpack(archive, tmp_path / "out" / "report").iterdir())) == limit


def test_an_encrypted_entry_is_refused(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", [("secret", b"x")]).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert "encrypted" in refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a/b", "a/./b"), ("a", "a/b"), ("a/b", "a")])
def test_names_that_collide_are_refused(tmp_path, names):
    archive = make_zip(tmp_path / "a.zip", [(name, b"x") for name in names])
    assert refusal(archive, tmp_path / "out" / "report")


def test_an_entry_without_a_name_is_refused(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", [("x", b"content")]).read_bytes())
    for signature, offset in ((b"PK\x01\x02", 28), (b"PK\x03\x04", 26)):
        at = data.index(signature) + offset
        data[at : at + 4] = b"\0\0\1\0"  # no name, and one byte of something else
    (tmp_path / "a.zip").write_bytes(data)
    assert "without a name" in refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    assert "not a readable zip" in refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
        archive.writestr("x", b"x" * 100)
    assert "unknown way" in refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


def test_half_an_archive_is_refused(tmp_path):
    whole = make_zip(tmp_path / "a.zip", [(f"{n}.txt", b"text" * n) for n in range(50)]).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
    assert refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


def test_a_damaged_file_is_refused(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", [("x.txt", bytes(range(256)) * 20)]).read_bytes())
    data[60] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    assert refusal(tmp_path / "a.zip", tmp_path / "out" / "report")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "a\0b", "a:b", "", "x" * 300])
def test_artifact_names_that_are_no_file_names_are_not_safe(name):
    assert not archives.safe_name(name)


entry_names = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["..", ".", "", "a", "b", "C:", "\\", "~", "con", "é"]), max_size=6).map("/".join),
)


@settings(deadline=None)
@given(st.lists(st.tuples(entry_names, st.binary(max_size=50)), max_size=5))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_name_of_an_entry_writes_outside_of_its_folder(tmp_path_factory, entries):
    root = tmp_path_factory.mktemp("unpack")
    try:
        archive = make_zip(root / "a.zip", entries)
    except (ValueError, OSError, IndexError):  # zipfile does not write such names
        return
    before = archive.read_bytes()
    try:
        unpack(archive, root / "sandbox" / "report")
    except ArtifactRefused:
        assert list((root / "sandbox").iterdir()) == []
    else:
        assert [p.name for p in (root / "sandbox").iterdir()] == ["report"]
        written = everything_below(root / "sandbox" / "report")
        assert sorted(written.values()) == sorted(c for n, c in entries if not n.partition("\0")[0].endswith("/"))
    assert sorted(p.name for p in root.iterdir()) == ["a.zip", "sandbox"]
    assert archive.read_bytes() == before


@settings(deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_read_never_a_crash(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("damage")
    content = bytearray(make_zip(root / "a.zip", [("a.txt", b"hello" * 20), ("b/c.txt", b"x")]).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (root / "a.zip").write_bytes(content)
    with suppress(ArtifactRefused):
        unpack(root / "a.zip", root / "sandbox" / "report")
    assert {p.name for p in (root / "sandbox").iterdir()} <= {"report"}


def test_a_folder_is_linked_and_its_links_are_left_out(tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.txt").write_text("a")
    (source / "passwd").symlink_to("/etc/passwd")
    (source / "etc").symlink_to("/etc")
    assert sorted(link_tree(source, tmp_path / "copy")) == ["etc", "passwd"]
    assert everything_below(tmp_path / "copy") == {"deep/a.txt": b"a"}
    assert (tmp_path / "copy/deep/a.txt").stat().st_ino == (source / "deep/a.txt").stat().st_ino

"""Zip archives made on other people's machines: unpacked whole and harmless, or refused."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ci_pipeline.sources import SourceError

MAX_ENTRIES = 100_000
MAX_FILE_BYTES = 1 << 30
MAX_RATIO = 200
MAX_DEPTH = 100
MIN_BOMB_BYTES = 1 << 16  # a few kilobytes of one repeated character are no bomb, whatever their ratio

_CHUNK = 1 << 20


class ArtifactRefused(SourceError):
    """An artifact that is unsafe or broken. `reason` is one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"artifact {name!r} refused: {reason}")
        self.reason = reason


def safe_name(name: str) -> bool:
    """Whether a name from outside can be one file or folder name of ours."""
    return (
        0 < len(name.encode(errors="replace")) <= 200
        and name not in (".", "..")
        and not re.search(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]', name)
    )


def path_inside(name: str) -> PurePosixPath | None:
    """A relative path with `/`, from outside; None where it could leave the folder that it is put in."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or re.search(r"[\\\0]|^[A-Za-z]:", name)
    return None if outside or len(path.parts) > MAX_DEPTH else path


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a zip file to the new folder `into`, named as the artifact is: all of it, or nothing.

    Raises:
        ArtifactRefused: it is no zip file, is encrypted or damaged, has an entry that is not a plain file or folder
            below `into`, or is too big; see the limits above. What the archive says of itself is not believed:
            bytes are counted while they are written.
    """
    if not safe_name(into.name):
        raise ArtifactRefused(into.name, "its name is not a file name")
    into.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpack-", dir=into.parent))
    try:
        _check_number_of_entries(archive)
        with zipfile.ZipFile(archive) as opened:
            _extract(opened, archive.stat().st_size, partial)
        partial.chmod(0o755)
        partial.rename(into)
    except _Unsafe as error:
        raise ArtifactRefused(into.name, str(error)) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise ArtifactRefused(into.name, f"not a readable zip file: {error}") from error
    except OSError as error:
        raise ArtifactRefused(into.name, f"cannot be unpacked: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return into


class _Unsafe(Exception):
    pass


def _check_number_of_entries(archive: Path) -> None:
    """Before zipfile reads the table of contents into memory: each entry has 46 bytes there that begin like this."""
    if archive.stat().st_size <= MAX_ENTRIES * 46:
        return
    with archive.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = -1
        for _ in range(MAX_ENTRIES + 1):
            if (at := data.find(b"PK\x01\x02", at + 1)) < 0:
                return
    raise _Unsafe(f"more than {MAX_ENTRIES:,} entries")


def _extract(archive: zipfile.ZipFile, archive_bytes: int, into: Path) -> None:
    entries = archive.infolist()
    paths = [(entry, _checked_path(entry)) for entry in entries]
    files = {str(path): entry for entry, path in paths if not entry.is_dir()}
    if len(files) != sum(not entry.is_dir() for entry in entries):
        raise _Unsafe("two entries of the same name")
    for folder in {path if entry.is_dir() else path.parent for entry, path in paths}:
        os.makedirs(into / folder, exist_ok=True)
    left = _most_bytes(archive_bytes)
    for path, entry in files.items():
        left -= _write(archive, entry, f"{into}/{path}", left)


def _checked_path(entry: zipfile.ZipInfo) -> PurePosixPath:
    name = entry.orig_filename  # `filename` ends at the first NUL
    path = path_inside(name)
    if path is None:
        raise _Unsafe(f"the entry {name!r} leaves the folder or is too deep")
    if not name or (not path.parts and not entry.is_dir()):
        raise _Unsafe("an entry without a name")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Unsafe(f"the entry {name!r} is compressed in an unknown way")
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _Unsafe(f"the entry {name!r} is a link or a special file")
    _check_size(entry, entry.file_size, _most_bytes(entry.compress_size))
    return path


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str, left: int) -> int:
    """Write one file of at most `left` bytes, and say how many they were."""
    most, size = min(left, _most_bytes(entry.compress_size)), 0
    with archive.open(entry) as packed, open(path, "xb") as file:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            _check_size(entry, size, most)
            file.write(chunk)
    return size


def _most_bytes(packed: int) -> int:
    return max(MIN_BOMB_BYTES, packed * MAX_RATIO)


def _check_size(entry: zipfile.ZipInfo, size: int, most: int) -> None:
    if size > MAX_FILE_BYTES:
        raise _Unsafe(f"the entry {entry.filename!r} is larger than {MAX_FILE_BYTES >> 30} GiB")
    if size > most:
        raise _Unsafe(f"the entry {entry.filename!r} unpacks to more than {MAX_RATIO} times its size")


def link_tree(source: Path, into: Path) -> list[str]:
    """Copy a folder to the new folder `into`, by hard links where both are on one file system.

    Returns the paths that were left out, relative to `source`: symbolic links and special files.
    """
    left_out: list[str] = []
    link: bool = True

    def copy(folder: str, target: str) -> None:
        nonlocal link
        os.makedirs(target, exist_ok=True)
        with os.scandir(folder) as entries:
            for entry in entries:
                to = f"{target}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    copy(entry.path, to)
                elif not entry.is_file(follow_symlinks=False):
                    left_out.append(os.path.relpath(entry.path, source))
                else:
                    if link:
                        try:
                            os.link(entry.path, to, follow_symlinks=False)
                            continue
                        except OSError:
                            link = False  # another file system, or one without links
                    shutil.copyfile(entry.path, to, follow_symlinks=False)

    copy(str(source), str(into))
    return left_out

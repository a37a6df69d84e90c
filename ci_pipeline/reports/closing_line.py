"""pytest's closing line: `== 1 failed, 5 passed, 2 warnings in 61.00s (0:01:01) ==`."""

from __future__ import annotations

import re

from ci_pipeline.model import Counts

_CLOSING = re.compile(rb"[=\s]*+(\S.*?) in (\d{1,9}(?:\.\d+)?)s(?: \([^)]*\))?[=\s]*")
_PART = re.compile(rb"(\d{1,9}) (\w+(?: \w+)?)")
_LONG = 4096  # bytes: no closing line is longer
_FIELDS = {
    b"passed": "passed",
    b"failed": "failed",
    b"error": "errors",
    b"errors": "errors",
    b"skipped": "skipped",
    b"xfailed": "xfailed",
    b"xpassed": "xpassed",
    b"deselected": "deselected",
    b"rerun": "rerun",
    b"reruns": "rerun",
    b"warning": "warnings",
    b"warnings": "warnings",
    # A subtest is not a test: those that passed are not counted again. One that failed must be.
    b"subtests failed": "failed",
}


def parse_closing_line(text: bytes) -> Counts | None:
    """The totals of the last closing line in `text` (without ANSI colours); None if there is none.

    Every form since pytest 7: with and without `=` (`-q`), over a minute, an hour or a day, with words of plugins,
    with `no tests ran`.
    """
    for line in reversed(text[-_LONG:].split(b"\n")):
        if line and (match := _CLOSING.fullmatch(line)):
            words, seconds = match.groups()
            totals: dict[str, int] = {}
            for part in words.split(b", "):
                if counted := _PART.fullmatch(part):
                    if field := _FIELDS.get(counted[2]):
                        totals[field] = totals.get(field, 0) + int(counted[1])
                elif not part.startswith(b"no tests ") and b" collected" not in part:
                    break
            else:
                return Counts(**totals, seconds=float(seconds))
    return None

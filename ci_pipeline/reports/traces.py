"""Where and why a test failed: the one line that a report shows, `(line 42)  ValueError: text`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from ci_pipeline.reports.summary import Crash, Entry

_CRASH = re.compile(rb"(?m)^(?![ >]|E  )\S.*?:(\d+):(?: (.*?))?[ \t]*$")
_HEADLINE = re.compile(rb"(?m)^_+ (.*) _+$")
_ERROR_PREFIX = re.compile(rb"ERROR (?:collecting|at \w+ of) ")
_CAPTURED = re.compile(rb"(?m)^-+ Captured ")
_EXCEPTION = re.compile(rb"(?m)^E +([A-Za-z_][\w.]*(?:: .*)?)$")


def crash_lines(failures_line: bytes) -> list[Crash]:
    """The lines of `--tb=line` that say where a test failed, and whatever else looks like one."""
    return [Crash(line, text) for line, text in _CRASH.findall(failures_line)]


def headlines(tracebacks: bytes) -> list[bytes]:
    """The headlines of the tracebacks, in order: `TestA.test_a[1]`; of errors at collection the path."""
    return [_ERROR_PREFIX.sub(b"", name, count=1) for name in _HEADLINE.findall(tracebacks)]


def traces(entries: Sequence[Entry], crashes: Sequence[Crash], tracebacks: Callable[[], list[bytes]]) -> list[str]:
    """The trace of each entry: its own, whatever stands at its place in another file.

    pytest writes a crash line per failing test, in the order of its summary. Where one is missing, or whole tracebacks
    stand between them, a crash belongs to the test with the same message; failing that, the test's traceback is looked
    up by its headline; failing that too, the message of the summary is all that is known.

    Args:
        tracebacks: the texts of `failures_short`, `failures_long`, read only when they are needed.
    """
    pairs: Sequence[Crash | None] = crashes
    if len(crashes) != len(entries) or not all(c.agrees_with(e.message) for c, e in zip(crashes, entries, strict=True)):
        pairs = _by_message(entries, crashes)
        if None in pairs:
            found = _by_headline(entries, tracebacks())
            pairs = [crash or other for crash, other in zip(pairs, found, strict=True)]
    return [_trace(entry, crash) for entry, crash in zip(entries, pairs, strict=True)]


def _trace(entry: Entry, crash: Crash | None) -> str:
    text = entry.message.strip()
    if crash is None:
        return text.decode(errors="replace") or "no message in the report"
    if not text or crash.agrees_with(text):
        text = crash.text
    if not crash.line:
        return text.decode(errors="replace")
    return f"(line {crash.line.decode()})  {text.decode(errors='replace')}"


def _by_message(entries: Sequence[Entry], crashes: Sequence[Crash]) -> list[Crash | None]:
    """Pair the tests and the crashes that have the same message, where the number of crashes leaves no doubt."""
    crashed: dict[bytes, list[Crash]] = defaultdict(list)
    for crash in crashes:
        crashed[crash.text].append(crash)
    said: dict[bytes, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        said[entry.message.strip()].append(place)
    pairs: list[Crash | None] = [None] * len(entries)
    for message, places in said.items():
        found = crashed.get(message, [])
        # A whole traceback says the place of a crash again: so many lines in a row are one crash.
        times, rest = divmod(len(found), len(places))
        if len(set(found)) == 1:
            times, rest, found = 1, 0, found * len(places)
        if message and times and not rest:
            for nth, place in enumerate(places):
                same = set(found[nth * times : (nth + 1) * times])
                pairs[place] = same.pop() if len(same) == 1 else None
    return pairs


def _by_headline(entries: Sequence[Entry], texts: Sequence[bytes]) -> list[Crash | None]:
    """Look each test's traceback up by its headline: the last line that names a place in it, and its exception."""
    wanted: dict[bytes, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        wanted[entry.headline or entry.node_id].append(place)
    pairs: list[Crash | None] = [None] * len(entries)
    for text in texts:
        sections: dict[bytes, list[bytes]] = defaultdict(list)
        found = [(m, name) for m in _HEADLINE.finditer(text) if (name := _ERROR_PREFIX.sub(b"", m[1])) in wanted]
        ends = [match.start() for match, _ in found[1:]]
        for (match, name), end in zip(found, [*ends, len(text)], strict=bool(found)):
            sections[name].append(text[match.end() : end])
        for name, bodies in sections.items():
            if len(bodies) == len(wanted[name]):
                for place, body in zip(wanted[name], bodies, strict=True):
                    pairs[place] = pairs[place] or _crash_of(body)
        if None not in pairs:
            break
    return pairs


def _crash_of(traceback: bytes) -> Crash | None:
    if captured := _CAPTURED.search(traceback):
        traceback = traceback[: captured.start()]
    places = _CRASH.findall(traceback)
    exception = _EXCEPTION.search(traceback)
    if not places and not exception:
        return None
    return Crash(places[-1][0] if places else b"", exception[1] if exception else places[-1][1])

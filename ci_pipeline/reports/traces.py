"""Where and why a test failed: the one line that a report shows, `(line 42)  ValueError: text`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from ci_pipeline.reports.summary import Crash, Entry, headline

NO_MESSAGE = "no message in the report"

_HEADLINE = re.compile(rb"(?m)^_+ (.*) _+$")
_ERROR_PREFIX = re.compile(rb"ERROR (?:collecting|at \w+ of) ")
_CAPTURED = re.compile(rb"(?m)^-+ Captured ")
_EXCEPTION = re.compile(rb"(?m)^E +([A-Za-z_][\w.]*(?:: .*)?)$")
_SYNTAX_ERROR = re.compile(rb'(?m)^E +File ".*", line (\d+)$')
_EXPLANATION = re.compile(rb"(?m)^E +(\S.*)$")


def crash_lines(text: bytes) -> list[Crash]:
    """The lines that say where a test failed, `path:12: ValueError: text`, and whatever else looks like one."""
    crashes: list[Crash] = []
    above = b""
    for line in text.split(b"\n"):
        place, _, message = line.partition(b": ")
        path, _, number = place.rstrip(b":").rpartition(b":")
        if number.isdigit() and path and path[0] not in b" >" and path[:3] != b"E  ":
            crash = Crash(number, message.strip())
            # A traceback ends with the place too: `t.py:12: ValueError`, above `/repo/t.py:12: ValueError: text`.
            if crashes and path.endswith(b"/" + above) and _says_more(crash, crashes[-1]):
                crashes.pop()
            crashes.append(crash)
            above = path
    return crashes


def _says_more(crash: Crash, above: Crash) -> bool:
    return crash.line == above.line and crash.text.startswith(above.text)


def headlines(tracebacks: bytes) -> list[bytes]:
    """The headlines of the tracebacks, in order: `TestA.test_a[1]`; of errors at collection the path."""
    return [_ERROR_PREFIX.sub(b"", name, count=1) for name in _HEADLINE.findall(tracebacks)]


def traces(entries: Sequence[Entry], crashes: Sequence[Crash], tracebacks: Callable[[], Sequence[bytes]]) -> list[str]:
    """The trace of each entry: its own, whatever stands at its place in another file.

    pytest writes a crash line per failing test, in the order of its summary. Where one is missing, or whole tracebacks
    stand between them, a crash belongs to the test with the same message; failing that, the test's traceback is looked
    up by its headline; failing that too, the message of the summary is all that is known.

    Args:
        tracebacks: the texts of `failures_short`, `failures_long`, read only when they are needed.
    """
    if len(crashes) == len(entries) and all(
        not entry.message or crash.agrees_with(entry.message) for crash, entry in zip(crashes, entries, strict=True)
    ):
        return [_trace(crash) for crash in crashes]
    pairs = _by_message(entries, crashes)
    if None in pairs:
        pairs = _by_headline(entries, pairs, tracebacks())
    return [
        _trace(crash) if crash else entry.message.strip().decode(errors="replace") or NO_MESSAGE
        for entry, crash in zip(entries, pairs, strict=True)
    ]


def _trace(crash: Crash) -> str:
    text = b"(line %s)  %s" % crash if crash.line else crash.text
    return text.decode(errors="replace")


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
        if not found and message.endswith(b"..."):
            found = [crash for crash in crashes if crash.agrees_with(message)]
        if len(set(found)) == 1:
            found = found[:1] * len(places)
        # A whole traceback says the place of a crash again: so many lines in a row are one crash.
        times, rest = divmod(len(found), len(places))
        if message and not rest:
            for nth, place in enumerate(places):
                same = set(found[nth * times : (nth + 1) * times])
                pairs[place] = same.pop() if len(same) == 1 else None
    return pairs


def _by_headline(entries: Sequence[Entry], pairs: Sequence[Crash | None], texts: Sequence[bytes]) -> list[Crash | None]:
    """Complete the pairs: look a test's traceback up by its headline."""
    pairs = list(pairs)
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        places[headline(entry.node_id)].append(place)
    for text in texts:
        bodies: dict[bytes, list[bytes]] = defaultdict(list)
        found = [(m, name) for m in _HEADLINE.finditer(text) if (name := _ERROR_PREFIX.sub(b"", m[1])) in places]
        for nth, (match, name) in enumerate(found):
            end = found[nth + 1][0].start() if nth + 1 < len(found) else len(text)
            bodies[name].append(text[match.end() : end])
        for name, own in bodies.items():
            if len(own) == len(places[name]):
                for place, body in zip(places[name], own, strict=True):
                    pairs[place] = pairs[place] or _crash_of(body, entries[place].message.strip())
        if None not in pairs:
            break
    return pairs


def _crash_of(traceback: bytes, message: bytes) -> Crash | None:
    """The last place that a traceback names, with the message of the summary, or else its exception."""
    if captured := _CAPTURED.search(traceback):
        traceback = traceback[: captured.start()]
    crashes = [Crash(line, b"") for line in _SYNTAX_ERROR.findall(traceback)] or crash_lines(traceback)
    exception = _EXCEPTION.search(traceback) or _EXPLANATION.search(traceback)
    text = exception[1] if exception and (not message or message.endswith(b"...")) else message
    text = text or (crashes[-1].text if crashes else b"")
    if not text or text.startswith(b"in "):  # a frame: the traceback was cut off above its exception
        return None
    return Crash(crashes[-1].line if crashes else b"", text)

"""pytest's short test summary: which tests it names, and which lines are only the text of a message.

A message may have several lines, and any of them may look like an entry: the output of a child pytest, a log. pytest's
own totals, the crash lines and the headlines of its tracebacks tell an entry from its ghost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from ci_pipeline.reports.closing_line import parse_closing_line

# `tests/test_x.py::…`, or what could not be collected: `tests/test_x.py`, `tests/models`
_NODE_ID = re.compile(rb"[^\s:][^:]*\.\w+::.|[^\s:]*[./][^\s:]*$")
# `SUBFAILED[message] (i=1) tests/test_x.py::test_a - …`, or as pytest-subtests has it, `[message] (i=1) SUBFAIL …`
_SUBTEST = re.compile(rb"\n(?:SUBFAIL(?:ED)?([^\n]*?) (?=[^\s:]+\.\w+::)|([\[(][^\n]*[\])]) SUBFAIL )(?P<rest>[^\n]*)")
# An entry that cannot be read in two ways: its node id has neither spaces nor brackets.
_PLAIN = rb"([^\s:\[]+\.\w+::[^\s\[]+)(?: - ([^\n]*))?(?=\n|\Z)"
# Where what a child pytest printed begins, and a line that may end it.
_SESSION_STARTS = b"= test session starts ="
_RULE = re.compile(rb"\n(=[^\n]*=)(?=\n|\Z)")
_LONG = 20_000  # bytes: no node id is longer, and no choice worth making in a line that is


class Entry(NamedTuple):
    """One line of the summary: `FAILED tests/test_x.py::test_a[1] - ValueError: text`."""

    start: int  # of the line
    node_id: bytes
    message: bytes  # its first line
    message_start: int
    is_subtest: bool = False  # of those several may have one name


class Crash(NamedTuple):
    """Where a test failed, as pytest's `--tb=line` says it: `path:12: ValueError: text`."""

    line: bytes
    text: bytes

    def agrees_with(self, message: bytes) -> bool:
        """True if `message` is this crash's; outside of CI pytest cuts it to the width of the terminal."""
        if self.text == message:
            return True
        message = message.strip()
        return self.text == message or (message.endswith(b"...") and self.text.startswith(message[:-3]))


def split_node_id(text: bytes, messages: Collection[bytes] = ()) -> tuple[bytes, bytes]:
    """Split `<node id> - <message>`, as pytest joins them; the message is empty where there is none.

    Parameters may hold ` - ` themselves: the node id ends where its brackets do. Where that leaves a choice, one of the
    known `messages` decides.
    """
    end = text.find(b" - ")
    while True:
        node_id = text if end < 0 else text[:end]
        closed = node_id.endswith(b"]") or b"[" not in node_id.partition(b"::")[2]
        if closed and _NODE_ID.match(node_id):
            break
        if end < 0:
            end = text.find(b" - ")
            break
        end = text.find(b" - ", end + 3, _LONG)
    if end < 0:
        return text, b""
    if messages and len(text) < _LONG and text[end + 3 :].strip() not in messages:
        others = (other.start() + 1 for other in re.finditer(rb"\] - ", text[end:]))
        end = next((end + other for other in others if text[end + other + 3 :].strip() in messages), end)
    return text[:end], text[end + 3 :]


def headline(node_id: bytes) -> bytes:
    """The headline of a test's traceback: `tests/test_x.py::TestA::test_a[b::c]` → `TestA.test_a[b::c]`.

    Of a file that could not be collected, it is the path.
    """
    path, separator, name = node_id.partition(b"::")
    name, bracket, parameters = name.partition(b"[")
    return name.replace(b"::", b".") + bracket + parameters if separator else path


def lines_of(text: bytes, word: bytes, messages: Collection[bytes] = ()) -> list[Entry]:
    """Every line of the summary that begins with `word`, ghosts included; `text` begins with a newline."""
    entries: list[Entry] = []
    prefix = b"\n" + word + b" "
    entry = re.compile(prefix + rb"(?:" + _PLAIN + rb"|([^\n]*))")
    for line in entry.finditer(text):
        node_id, message, other = line.groups(b"")
        if not node_id or (messages and b"] - " in message):
            node_id, message = split_node_id(other or text[line.start(1) : line.end()], messages)
        entries.append(Entry(line.start(), node_id, message, line.end() - len(message)))
    return entries


def failed_lines(text: bytes, crashes: Sequence[Crash]) -> list[Entry]:
    """Every line that says that a test or a subtest failed, ghosts included; see `without_ghosts`."""
    messages = {crash.text for crash in crashes}
    entries = lines_of(text, b"FAILED", messages)
    if b"SUBFAIL" in text:
        for found in _SUBTEST.finditer(text):
            node_id, message = split_node_id(found["rest"], messages)
            subtest = (found[1] or found[2] or b"").strip()
            node_id = node_id + b" " + subtest if subtest else node_id
            entries.append(Entry(found.start(), node_id, message, found.end() - len(message), is_subtest=True))
        entries.sort()
    return entries


def outside_child_sessions(text: bytes, lines: Sequence[Entry], counted: int | None) -> Sequence[Entry]:
    """Those lines of the summary that no child pytest printed, where as many as pytest counted are left."""
    if counted is None or len(lines) <= counted:
        return lines
    own, end = bytearray(text), 0
    while (begun := text.find(_SESSION_STARTS, end)) >= 0:
        end = next((rule.end() for rule in _RULE.finditer(text, begun) if parse_closing_line(rule[1])), 0)
        if not end:
            break
        begun = text.rfind(_SESSION_STARTS, begun, end)  # a child before it that was killed has no closing line
        own[begun:end] = bytes(end - begun)
    left = [line for line in lines if own[line.start]]
    return left if len(left) >= counted else lines


def without_ghosts(
    lines: Sequence[Entry],
    counted: int | None,
    crashes: Sequence[Crash] = (),
    headlines: Callable[[], Sequence[bytes]] = tuple,
) -> Sequence[Entry]:
    """Those lines that are entries of the summary.

    Args:
        counted: how many there are by pytest's closing line; None where it is missing.
        crashes: of the same tests in the same order, where they are known.
        headlines: the same for the headlines of the tracebacks; asked only when the rest does not decide.
    """
    if len(lines) == counted:
        return lines
    entries = [line for line in lines if _NODE_ID.match(line.node_id)]
    if counted is None or len(entries) <= counted:
        return entries
    first = {entry.node_id: entry for entry in reversed(entries)}
    guess = [entry for entry in entries if entry.is_subtest or entry is first[entry.node_id]]
    if len(crashes) == counted:
        found, others = _in_step(entries, counted, lambda i, entry: crashes[i].agrees_with(entry.message))
        if len(found) == counted:
            # Lines that repeat a known test are the output of its child process; any other could be the real one.
            if {entry.node_id for entry in others} <= {entry.node_id for entry in found}:
                return found
            guess = found
    names = {headline(entry.node_id) for entry in entries}
    known = [name for name in headlines() if name in names]

    def is_known(i: int, entry: Entry) -> bool:
        return headline(entry.node_id) == known[i]

    def is_known_to_both(i: int, entry: Entry) -> bool:
        return is_known(i, entry) and crashes[i].agrees_with(entry.message)

    if len(known) == counted:
        for agrees in (is_known_to_both, is_known) if len(crashes) == counted else (is_known,):
            found, _ = _in_step(entries, counted, agrees)
            if len(found) == counted:
                return found
    texts = {crash.text for crash in crashes}
    confirmed = [e for e in guess if headline(e.node_id) in known or e.message.strip() in texts]
    return confirmed if len(confirmed) == counted else guess


def _in_step(
    entries: Sequence[Entry], counted: int, agrees: Callable[[int, Entry], bool]
) -> tuple[list[Entry], list[Entry]]:
    """Walk the lines and the evidence side by side: a line is an entry if it agrees with the next piece of evidence."""
    found: list[Entry] = []
    others: list[Entry] = []
    seen: set[bytes] = set()
    for entry in entries:
        may_be = entry.is_subtest or entry.node_id not in seen
        if len(found) < counted and may_be and agrees(len(found), entry):
            found.append(entry)
            seen.add(entry.node_id)
        else:
            others.append(entry)
    return found, others

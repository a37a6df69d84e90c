"""The report of a test job as one Slack thread: the verdict first, then why, then the failures grouped by cause.

However much failed, a thread has at most `MESSAGES` messages; what they cannot show is in a file in the thread.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from ci_pipeline.analysis.infrastructure import infrastructure
from ci_pipeline.model import RED, CiRun, EarlierRun, JobReport, RunDiffRow, TestKey
from ci_pipeline.publish.mrkdwn import clip, code, escape, link, url_of
from ci_pipeline.publish.thread import SlackFile, SlackMessage, SlackThread

if TYPE_CHECKING:
    from slack_sdk.models.blocks import Block

    from ci_pipeline.profile import Profile, TestJob

MESSAGES = 30
"""Messages of a thread: at Slack's pace of one a second it is out within 40 seconds."""

TEXT = 9_500
"""Characters of one message. Slack's own limit is not documented; messages of 11,000 have been refused."""

GROUP_TEXT = 900
"""Characters of one group where several share a message."""

SECTION = 3000
HEADER = 150
TABLE_ROWS = 12
COLUMNS = 6
PROBLEMS = 8
NODE_ID = 300
TRACE = 300

_LINE = re.compile(r"\((line \d+)\)\s+")
_VOLATILE = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Links:
    """Where more is to be found; "" where there is nothing."""

    hub: str = ""  # the folder of the result files
    failures: str = ""  # the file of all failures
    page: str = ""  # the CI run's page


class Failing(NamedTuple):
    """One failing test on one device."""

    entry: str
    device: str
    node_id: str
    trace: str
    row: RunDiffRow | None  # against the previous run; None where there is none
    is_new: bool
    only_here: bool  # passes in another vendor's run
    error: str  # its trace without what differs from one place to another
    infrastructure: str  # what of it the error is about, or ""


@dataclass(frozen=True, slots=True)
class Group:
    """Failing tests that belong together, and the message that says so."""

    key: str
    name: str
    title: str  # mrkdwn
    failing: Sequence[Failing]
    example: str = ""  # the error that all of them have
    cause: bool = False  # the machines'


def messages(report: JobReport, profile: Profile, *, links: Links = Links()) -> SlackThread:
    """The thread of a test job's report. Every failing test is in a message, or in the attached file."""
    return with_buttons(without_buttons(report, profile), report.run, links)


def without_buttons(report: JobReport, profile: Profile, not_compared: str = "") -> SlackThread:
    """The thread as it is known before the links are: nearly all the work. `not_compared` says why not."""
    return _Thread(report, profile, not_compared).thread()


def with_buttons(thread: SlackThread, run: CiRun, links: Links) -> SlackThread:
    """The thread with buttons below its main message."""
    from slack_sdk.models.blocks import ActionsBlock, ButtonElement

    targets = {"CI run": run.html_url, "HUD": links.page, "All failures": links.failures, "Result files": links.hub}
    buttons = [
        ButtonElement(text=label, url=url, action_id=f"open_{number}")
        for number, (label, url) in enumerate(targets.items())
        if url_of(url)
    ]
    if not buttons:
        return thread
    blocks = [*thread.main.blocks, ActionsBlock(elements=buttons).to_dict()]
    return replace(thread, main=replace(thread.main, blocks=blocks))


@dataclass(frozen=True)
class _Thread:
    report: JobReport
    profile: Profile
    not_compared: str = ""
    _cut: list[str] = field(default_factory=list[str])  # what the messages could not show

    def thread(self) -> SlackThread:
        replies = self._replies()
        main = self._main()
        file = self._file() if self._cut else None
        return SlackThread(main, replies, [file] if file else [])

    # --- what is known

    @cached_property
    def job(self) -> TestJob:
        return self.profile.test_jobs[self.report.test_job]

    @cached_property
    def failing(self) -> list[Failing]:
        """Each failing test and device once: new ones first, then as the reports name them."""
        rows: dict[TestKey, RunDiffRow] = {}
        unique: set[TestKey] = set()
        for row in self.report.diff:
            if row.change == "unique_failure":
                unique.add(row[1:4])
            else:
                rows[row[1:4]] = row
        kind = cache(_kind)  # a broken driver makes one for every test

        @cache
        def kind_of(trace: str) -> tuple[str, str]:
            return kind(_line_and_error(trace)[1][:1000])

        found: dict[TestKey, Failing] = {}
        for test_report in self.report.reports:
            entry, device = test_report.artifact.matrix_entry, test_report.artifact.device
            for node_id, outcome, _, trace, _ in test_report.outcomes:
                key = (entry, device, node_id)
                if outcome in RED and key not in found:
                    row = rows.get(key)
                    is_new = row is not None and row.change == "new_failure"
                    found[key] = Failing(entry, device, node_id, trace, row, is_new, key in unique, *kind_of(trace))
        return sorted(found.values(), key=lambda failing: not failing.is_new)

    @cached_property
    def changes(self) -> Counter[str]:
        """Tests by what happened to them since the previous run."""
        return Counter(row.change for row in self.report.diff)

    @cached_property
    def unique(self) -> Counter[int]:
        """How many tests fail here and not in another run, by that run's id."""
        return Counter(row.against_run_id for row in self.report.diff if row.change == "unique_failure")

    @cached_property
    def unnamed(self) -> int:
        """Failures that pytest counted and the reports do not name."""
        unnamed = 0
        for test_report in self.report.reports:
            if counts := test_report.counts:
                named = Counter(outcome.outcome for outcome in test_report.outcomes)
                unnamed += max(counts.failed - named["failed"], 0) + max(counts.errors - named["error"], 0)
        return unnamed

    @cached_property
    def missing(self) -> tuple[int, int]:
        """Reports that are missing or cut short, and reports that there should be."""
        there = {report.artifact.name for report in self.report.reports}
        missing = {report.artifact.name for report in self.report.reports if report.counts is None or report.problems}
        missing |= {problem.subject for problem in self.report.problems if problem.matrix_entry or problem.device}
        return len(missing), len(there | missing)

    @cached_property
    def devices(self) -> dict[str, str]:
        """The label of each device that reported, in the profile's order."""
        seen = {report.artifact.device for report in self.report.reports}
        known = [device for device in self.profile.devices if device in seen]
        return {device: self.label(device) or "All" for device in [*known, *sorted(seen.difference(known))]}

    def label(self, device: str) -> str:
        known = self.profile.devices.get(device)
        return clip((known.label if known else "") or device, 40)

    @cached_property
    def _matrix(self) -> bool:
        return any(report.artifact.matrix_entry for report in self.report.reports)

    def display(self, entry: str) -> str:
        return clip(self.job.short(entry), 80) or self.job.test

    # --- the verdict

    @cached_property
    def verdict(self) -> str:
        """One line that a tired person understands, in plain text."""
        symbol, words = self._failures_in_words()
        return " · ".join(filter(None, (f"{symbol} {self.job.test}: {words}", self._missing_in_words())))

    def _failures_in_words(self) -> tuple[str, str]:
        new, unnamed = self.changes["new_failure"], self.unnamed
        if not self.failing and not unnamed:
            passed = sum(report.counts.passed for report in self.report.reports if report.counts)
            if self.report.problems:
                return "⚪", "no failures in what was seen"
            return ("✅", f"all {_n(passed, 'test')} passed") if passed else ("⚪", "no test ran")
        if self.report.previous is None:
            return "❌", _n(len(self.failing) + unnamed, "failure")
        known = len(self.failing) - new
        words = [f"{known:,} known"] if known else []
        words += [f"{unnamed:,} not named in the reports"] if unnamed else []
        return "❌" if new or unnamed else "🟡", ", ".join(
            [_n(new, "new failure") if new else "no new failures", *words]
        )

    def _missing_in_words(self) -> str:
        if not self.report.problems:
            return ""
        missing, expected = self.missing
        return f"⚠️ incomplete: {missing:,} of {_n(expected, 'report')} missing" if missing else "⚠️ incomplete"

    # --- the main message

    def _main(self) -> SlackMessage:
        from slack_sdk.models.blocks import ContextBlock, HeaderBlock, MarkdownTextObject, SectionBlock

        texts = [self._not_seen(), self._reading(), *self._tables()]
        sections = [SectionBlock(text=MarkdownTextObject(text=text)) for text in texts if text]
        blocks: list[Block] = [
            HeaderBlock(text=clip(self.verdict, HEADER)),
            ContextBlock(elements=[MarkdownTextObject(text=text) for text in self._run_in_words()]),
            *sections,
        ]
        return SlackMessage("main", escape(self.verdict), [block.to_dict() for block in blocks])

    def _run_in_words(self) -> Iterator[str]:
        run = self.report.run
        yield f"*{link(run.html_url, self.profile.run_title(run))}*"
        sha = link(f"{self.profile.web_url}/{run.repository}/commit/{run.head_sha}", run.head_sha[:7])
        title = " ".join(run.title.split()) if run.title != run.workflow_name else ""
        where = [sha, *(escape(clip(text, 200)) for text in (run.head_branch, title)), _day(run.created_at)]
        if any(where):
            yield " · ".join(filter(None, where))
        totals = Counter[str]()
        seconds = 0.0
        for counts in filter(None, (report.counts for report in self.report.reports)):
            totals.update({word: getattr(counts, word) for word in ("passed", "failed", "errors", "skipped")})
            seconds += counts.seconds
        counted = ", ".join(f"{count:,} {word}" for word, count in totals.items() if count)
        yield f"{counted or 'no test'} in {_duration(seconds)} of tests"

    def _not_seen(self) -> str:
        """What is missing, each reason once."""
        by_reason: dict[str, list[str]] = {}
        for problem in self.report.problems:
            name = self.display(problem.matrix_entry) if problem.matrix_entry else problem.subject
            device = self.label(problem.device)
            by_reason.setdefault(problem.reason, []).append(f"{name} ({device})" if device else name)
        lines = [
            f"⚠️ {escape(clip(reason, 200))}: {_some([escape(clip(name, 100)) for name in names], PROBLEMS)}"
            for reason, names in by_reason.items()
        ]
        if len(lines) > PROBLEMS:
            lines[PROBLEMS:] = [f"… and {len(lines) - PROBLEMS} other reasons"]
        text = _fit(["*Not seen, or only in part:*", *lines], 2000) if lines else ""
        if "…" in text or any(len(names) > PROBLEMS for names in by_reason.values()):
            self._cut.append("problems")
        return text

    def _reading(self) -> str:
        """Since when, where, whose, and whom to ask: one bullet each."""
        return _fit([f"• {line}" for line in self._facts() if line], 2500)

    def _facts(self) -> Iterator[str]:
        failing, previous = self.failing, self.report.previous
        if self.unnamed:
            yield f"*{_n(self.unnamed, 'failure')}* counted by pytest, but not named in its reports"
        new = [f for f in failing if f.is_new]
        if new:
            entries = [
                f"{escape(self.display(entry))} {n:,}" for entry, n in Counter(f.entry for f in new).most_common()
            ]
            yield f"*New:* {len(new):,}" + (f" — {_some(entries, 6)}" if self._matrix else "")
        known = [f.row for f in failing if f.row and not f.is_new]
        if known:
            oldest = min(known, key=lambda row: (row.since is None, row.since, row.since_run_id))
            since = link(self._run_url(oldest.since_run_id), _day(oldest.since) or f"run {oldest.since_run_id}")
            different = self.changes["changed_error"]
            yield f"*Known:* {len(known):,}, the oldest since {since}" + (
                f"; {different:,} of them fail in another way now" if different else ""
            )
        words = {"fixed": "fixed", "newly_skipped": "newly skipped", "vanished": "not run any more"}
        if gone := [f"{self.changes[change]:,} {word}" for change, word in words.items() if self.changes[change]]:
            yield f"*Since the previous run:* {', '.join(gone)}"
        yield self._devices_in_words()
        for other in self.report.others:
            unique = self.unique[other.run.run_id]
            there = self._earlier(other)
            if unique:
                yield f"*Only here:* {unique:,} of {_n(len(failing), 'failure')}, not in the {there}"
            elif failing:
                yield f"*Not only here:* all fail in the {there} too"
        causes = Counter(f.infrastructure for f in failing if f.infrastructure)
        if causes:
            named = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common())
            yield f"*Infrastructure, probably:* {causes.total():,} of {_n(len(failing), 'failure')} ({named})"
        if asked := self._oncall(f.entry for f in failing):
            yield f"*Ask:* {asked}"
        if previous:
            yield f"*Compared with:* {self._earlier(previous)}"
        elif failing:
            why = f" ({escape(clip(self.not_compared, 500))})" if self.not_compared else ""
            yield f"*Compared with:* nothing, so new and known failures cannot be told apart{why}"
        if self.report.warnings:
            yield f"*Warnings:* {len(self.report.warnings):,}"

    def _devices_in_words(self) -> str:
        """Whether a device is to blame: of the tests that ran on several, how many fail on all, how many on one."""
        ran: dict[str, set[str]] = {}
        for report in self.report.reports:
            if report.counts:
                ran.setdefault(report.artifact.matrix_entry, set()).add(report.artifact.device)
        on: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for f in self.failing:
            if len(ran.get(f.entry, ())) > 1:
                on[f.entry, f.node_id].append(f.device)
        everywhere = sum(ran[entry].issubset(devices) for (entry, _), devices in on.items())
        alone = Counter(devices[0] for devices in on.values() if len(devices) == 1)
        words = [f"{everywhere:,} on every device"] if everywhere else []
        words += [
            f"{alone[device]:,} only on {escape(label)}" for device, label in self.devices.items() if alone[device]
        ]
        return f"*Failing tests:* {', '.join(words)}" if words else ""

    def _tables(self) -> Iterator[str]:
        category_of = self.profile.category_of
        categories = _counted((category_of(f.node_id), f.device) for f in self.failing)
        if len(categories) > 1:
            order = [*self.profile.categories, *categories]
            yield self._table("Category", [(c, categories[c]) for c in dict.fromkeys(order) if c in categories])
        entries = _counted(map(attrgetter("entry", "device"), self.failing))
        if len(entries) > 1:
            for entry, new in Counter(f.entry for f in self.failing if f.is_new).items():
                entries[entry]["new"] = new
            rows = sorted(entries.items(), key=lambda item: (-item[1]["new"], -item[1].total(), item[0]))
            yield self._table("Most failures", [(self.display(e), c) for e, c in rows])

    def _table(self, title: str, rows: Sequence[tuple[str, Counter[str]]]) -> str:
        columns = {"new": "New"} if any(counts["new"] for _, counts in rows) else {}
        columns |= {device: clip(label, 12) for device, label in list(self.devices.items())[:COLUMNS]}
        lines = ["  ".join([*(f"{label:>6}" for label in columns.values()), title])]
        for name, counts in rows[:TABLE_ROWS]:
            cells = [f"{counts[column] or '·':>{max(6, len(label))}}" for column, label in columns.items()]
            lines.append("  ".join([*cells, clip(name, 80)]))
        if len(rows) > TABLE_ROWS:
            lines.append(f"… and {len(rows) - TABLE_ROWS:,} more")
        return "```\n" + clip(escape("\n".join(lines).replace("`", "ˋ")), SECTION - 8) + "\n```"

    # --- the replies

    def _groups(self) -> list[Group]:
        """By what the machines did, then by an error that several entries share, then by entry."""
        groups: list[Group] = []
        left = self.failing

        def take(name: str, entries: int) -> Iterator[tuple[str, list[Failing]]]:
            nonlocal left
            found, value_of = _by(left, name), attrgetter(name)
            taken = {k: v for k, v in found.items() if k and len({f.entry for f in v}) >= entries}
            left = [f for f in left if value_of(f) not in taken]
            yield from taken.items()

        for cause, failing in take("infrastructure", 2):
            groups.append(Group(f"cause/{cause}", cause, f"🏗 *{cause.capitalize()}*", failing, cause=True))
        for error, failing in take("error", 3):
            example = _line_and_error(failing[0].trace)[1]
            key = f"error/{hashlib.sha1(error.encode()).hexdigest()[:12]}"
            groups.append(Group(key, clip(example, 60), code(clip(example, TRACE)), failing, example))
        for entry, failing in _by(left, "entry").items():
            name = self.display(entry)
            groups.append(Group(f"entry/{entry}", name, f"*{escape(name)}*", failing))
        return sorted(groups, key=lambda g: (-sum(f.is_new for f in g.failing), -len(g.failing), g.key))

    def _replies(self) -> list[SlackMessage]:
        groups = self._groups()
        room = MESSAGES - 2  # the main message, the file
        if len(groups) <= room:
            return [self._reply(group.key, [group], self._lines(group, TEXT)) for group in groups]
        pages: list[tuple[list[Group], list[str]]] = []
        used = TEXT
        for group in groups:
            lines = self._lines(group, GROUP_TEXT)
            size = sum(map(len, lines))
            if used + size > TEXT:
                if len(pages) == room:
                    self._cut.append("groups")
                    break
                pages.append(([], []))
                used = 0
            pages[-1][0].append(group)
            pages[-1][1].extend(lines)
            used += size
        return [self._reply(f"page/{number}", *page) for number, page in enumerate(pages, 1)]

    def _reply(self, key: str, groups: Sequence[Group], lines: Sequence[str]) -> SlackMessage:
        from slack_sdk.models.blocks import MarkdownTextObject, SectionBlock

        sections: list[str] = []
        for line in lines:
            if sections and len(sections[-1]) + 1 + len(line) <= SECTION:
                sections[-1] += f"\n{line}"
            else:
                sections.append(line)
        blocks = [SectionBlock(text=MarkdownTextObject(text=text)).to_dict() for text in sections]
        count = _n(sum(len(group.failing) for group in groups), "failure")
        return SlackMessage(clip(key, 200), f"{count}: {_some([escape(group.name) for group in groups], 3)}", blocks)

    def _lines(self, group: Group, limit: int) -> list[str]:
        """A group in lines of mrkdwn, in all at most `limit` characters: what it is, then its tests."""
        new = sum(f.is_new for f in group.failing)
        count = _n(len(group.failing), "failure") + (f", {new:,} new" if new and new < len(group.failing) else "")
        entries = _by(group.failing, "entry")
        shared = len(entries) > 1
        if shared:
            where = f"in {_n(len(entries), 'entry')}"
            lines = [f"{group.title} — {count} {where}{' · infrastructure, probably' if group.cause else ''}"]
        else:
            [entry] = entries
            asked = self._oncall([entry], job=False)
            lines = [
                " · ".join(filter(None, [f"{group.title} — {count}", self._job_links(entry), asked and f"ask {asked}"]))
            ]
        used, shown = len(lines[0]), 0
        for entry, failing in entries.items():
            heading = [" · ".join(filter(None, [f"*{escape(self.display(entry))}*", self._job_links(entry)]))]
            for tests in _by(failing, "node_id", "trace").values():
                added = [*(heading if shared else ()), self._test(tests, group)]
                heading = []
                size = sum(map(len, added)) + len(added)
                if used + size > limit - 60:
                    self._cut.append(group.key)
                    return [*lines, f"… and {_n(len(group.failing) - shown, 'failure')} more, in the attached file"]
                lines += added
                used, shown = used + size, shown + len(tests)
        return lines

    def _test(self, tests: Sequence[Failing], group: Group) -> str:
        """One test that fails in the same way on some devices."""
        tests = sorted(tests, key=lambda t: list(self.devices).index(t.device))
        test = min(tests, key=lambda t: not t.is_new)
        since: dict[str, list[str]] = {}
        for t in tests:
            label = self.label(t.device)
            day = f"since {_day(t.row.since)}" if t.row and t.row.since and not t.is_new else ""
            since.setdefault(day, []).append(label)
        where = [" ".join(filter(None, [", ".join(filter(None, labels)), day])) for day, labels in since.items()]
        facts = [
            f"{'🆕' if test.is_new else '•'} {code(clip(test.node_id, NODE_ID))}",
            escape("; ".join(filter(None, where))),
        ]
        if any(t.row and t.row.change == "changed_error" for t in tests):
            facts.append("another error than before")
        if any(t.only_here for t in tests):
            facts.append("only here")
        line, error = _line_and_error(test.trace)
        if group.example:
            # The error is the group's, but for its numbers.
            facts.append(line)
            trace = ""
        else:
            trace = f"\n      {code(clip(test.trace or 'no trace in its report', TRACE))}"
        if len(test.node_id) > NODE_ID or len(test.trace) > TRACE or (group.example and error != group.example):
            self._cut.append(test.node_id)
        return clip(" · ".join(filter(None, facts)) + trace, SECTION)

    # --- the file

    def _file(self) -> SlackFile:
        """Everything that failed and everything that was not seen, whole."""
        report = self.report
        lines = [self.verdict, report.run.html_url, ""]
        labels = {device: self.label(device) for device in self.devices}
        lines += [f"not seen: {f'{p.subject} {self.label(p.device)}'.rstrip()}: {p.reason}" for p in report.problems]
        for entry, failing in sorted(_by(self.failing, "entry").items()):
            lines += ["", f"== {self.display(entry)}: {_n(len(failing), 'failure')}"]
            for tests in _by(failing, "node_id", "trace", "is_new").values():
                test = tests[0]
                devices = ", ".join([labels[t.device] for t in tests])
                change = test.row.change.replace("_", " ") if test.row else "failure"
                since = f" since {_day(test.row.since)}" if test.row and not test.is_new and test.row.since else ""
                lines += [f"{test.node_id}", f"    {devices}: {change}{since}: {test.trace}"]
        name = re.sub(r"[^\w.-]+", "-", f"failures-{report.test_job}-{report.run.run_id}.txt")
        return SlackFile(name, f"{self.job.test}: everything that failed", "\n".join([*lines, ""]))

    # --- words

    def _job_links(self, entry: str) -> str:
        result = self.report.results.get(entry or self.report.test_job, {})
        links = {self.devices.get(device, "CI job"): url for device, url in result.get("job_link", {}).items()}
        links |= {f"{self.devices.get(d, 'CI')} output": url for d, url in result.get("captured_info", {}).items()}
        return _some([link(url, label) for label, url in links.items() if url_of(url)], 4)

    def _oncall(self, entries: Iterable[str], *, job: bool = True) -> str:
        """Whom to ask about these matrix entries; `job`: about which, and also whom to ask about all others."""
        people: dict[str, list[str]] = {}
        for entry in dict.fromkeys(entries):
            if person := self.profile.oncall_of(self.report.test_job, entry):
                people.setdefault(person, []).append(escape(self.display(entry)))
            elif job and (person := self.profile.oncall.get(self.report.test_job)):
                people.setdefault(person, [])
        return ", ".join(
            _mention(who) + (f" ({_some(what, 3)})" if job and what else "") for who, what in people.items()
        )

    def _earlier(self, earlier: EarlierRun) -> str:
        run = earlier.run
        number = f" #{run.run_number}" if run.run_number else f" {run.run_id}"
        day = f" of {_day(run.created_at)}" if run.created_at else ""
        return link(run.html_url or self._run_url(run.run_id), f"{earlier.label}{number}") + day

    def _run_url(self, run_id: int) -> str:
        return f"{self.profile.web_url}/{self.report.run.repository}/actions/runs/{run_id}"


def _line_and_error(trace: str) -> tuple[str, str]:
    """`(line 42)  ValueError: text` taken apart: `line 42`, which is "" where it is not known, and the rest."""
    line = _LINE.match(trace)
    return (line[1], trace[line.end() :]) if line else ("", trace)


def _kind(error: str) -> tuple[str, str]:
    """The error without what differs from one place to another, and what of the infrastructure it is about, or ""."""
    return _VOLATILE.sub("0", error[:200]), infrastructure(error)


def _mention(person: str) -> str:
    """Slack ids become mentions; anything else is a name."""
    if re.fullmatch(r"[UW][A-Z0-9]{6,}", person):
        return f"<@{person}>"
    return f"<!subteam^{person}>" if re.fullmatch(r"S[A-Z0-9]{6,}", person) else escape(person)


def _by(items: Iterable[Failing], *names: str) -> dict[Any, list[Failing]]:
    """Items by what they have in common, in the order in which that first appears."""
    found: defaultdict[Any, list[Failing]] = defaultdict(list)
    key = attrgetter(*names)
    for item in items:
        found[key(item)].append(item)
    return found


def _counted(pairs: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """How often each second word comes with each first one."""
    found: dict[str, Counter[str]] = {}
    for (first, second), count in Counter(pairs).items():
        found.setdefault(first, Counter())[second] = count
    return found


def _fit(lines: Sequence[str], room: int) -> str:
    """As many whole lines as `room` characters hold."""
    shown = list[str]()
    for line in lines:
        room -= len(line) + 1
        if room < 2:
            return "\n".join([*shown, "…"])
        shown.append(line)
    return "\n".join(shown)


def _some(names: Sequence[str], limit: int) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _n(count: int, word: str) -> str:
    return f"{count:,} {word if count == 1 else word[:-1] + 'ies' if word.endswith('y') else word + 's'}"


def _day(time: datetime | None) -> str:
    return f"{time.day} {time:%b %Y}" if time else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s" if minutes else f"{rest}s"

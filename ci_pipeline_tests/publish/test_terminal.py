import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from ci_pipeline.publish.terminal import draw
from ci_pipeline.publish.thread import SlackFile, SlackMessage, SlackThread

THREAD = SlackThread(
    SlackMessage(
        "main",
        "❌ Models: 12 new failures",
        [
            {"type": "header", "text": {"type": "plain_text", "text": "❌ Models: 12 new failures"}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": "*<https://x.test/run|Daily CI #1203>*"}]},
            {
                "type": "section",
                "text": {"type": "mrkdwn", "text": "• *New:* 12 in bert 4, vit 3 &amp; " + "others, " * 20},
            },
            {
                "type": "section",
                "text": {"type": "mrkdwn", "text": "```\nSingle  Multi\n     1      2  " + "x" * 200 + "\n```"},
            },
            {
                "type": "actions",
                "elements": [
                    {"type": "button", "text": {"type": "plain_text", "text": name}, "url": "https://x.test"}
                    for name in ("CI run", "All failures", "Result files")
                ],
            },
        ],
    ),
    [SlackMessage(f"r{n}", f"{n} failures: &lt;b&gt; " + "long " * 50) for n in range(12)],
    [SlackFile("failures.txt", "All", "a\nb\n")],
)


def drawn(thread: SlackThread, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    draw(thread, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_it_fits_the_terminal_and_says_everything(width: int):
    lines = drawn(THREAD, width)
    text = " ".join(" ".join(lines).replace("│", " ").split())
    assert max(map(cell_len, lines)) <= width
    for said in ("❌ Models: 12 new failures", "Daily CI #1203", "bert 4, vit 3 & others", "[ Result files ]"):
        assert said in text
    assert [line.strip()[:24] for line in lines if "failures: <b>" in line][:1] == ["▸ 0 failures: <b> long lo"[:24]]
    assert "▸ and 2 more replies" in text
    assert "≡ failures.txt (2 lines)" in text


def section(text: str, kind: str = "mrkdwn", **more: Any) -> dict[str, Any]:
    return {"type": "section", "text": {"type": kind, "text": text}, **more}


def test_a_message_is_drawn_as_slack_shows_it():
    url = "https://x.test/some-org/some-repo/actions/runs/19500000001"
    button = {"type": "button", "text": {"type": "plain_text", "text": "Open"}, "url": url}
    context = [{"type": "mrkdwn", "text": text} for text in ("*<https://x.test|run>*", "main")]
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": "✅ *as it is*"}},
        {"type": "context", "elements": context},
        section("• *New:* one two three four five six seven\n🆕 `a_b`\nplain _text_"),
        section(f"before\n```\nSingle  {'x' * 40}\n     1  y\n```"),
        section("2 * 3 <b>", "plain_text", accessory=button),
        {"type": "actions", "elements": [button, {**button, "url": ""}]},
    ]
    replies = [SlackMessage(str(n), f"reply {n} {'long ' * 9}") for n in range(10)]
    thread = SlackThread(SlackMessage("main", "✅ green", blocks), replies, [SlackFile("f.txt", "t", "a\n" * 1500)])
    assert drawn(thread, 36) == [
        "╭──────────────────────────────────╮",
        "│ ✅ *as it is*                    │",
        "│ run                              │",
        "│ main                             │",
        "│                                  │",
        "│ • New: one two three four five   │",
        "│   six seven                      │",
        "│ 🆕 a_b                           │",
        "│ plain text                       │",
        "│                                  │",
        "│ before                           │",
        "│ Single  xxxxxxxxxxxxxxxxxxxxxxx… │",
        "│      1  y                        │",
        "│                                  │",
        "│ 2 * 3 <b>                        │",
        "│ [ Open ]                         │",
        "│                                  │",
        "│ [ Open ]                         │",
        "╰──────────────────────────────────╯",
        *(f"  ▸ reply {n} long long long long lon…" for n in range(10)),
        "  ≡ f.txt (1,500 lines)",
        f"  → Open: {url}",
        f"  → Open: {url}",
    ]
    assert cell_len(drawn(thread, 200)[0]) == 110


def test_what_is_styled_in_slack_is_styled_in_the_terminal():
    file = io.StringIO()
    thread = SlackThread(SlackMessage("main", "*b* _i_ ~s~ `c`"))
    draw(thread, Console(file=file, force_terminal=True, color_system="standard"))
    assert "\x1b[1mb\x1b[0m \x1b[3mi\x1b[0m \x1b[9ms\x1b[0m \x1b[36mc\x1b[0m" in file.getvalue()


@pytest.mark.parametrize(
    ("verdict", "colour"),
    [
        ("❌ Models: 1 failure · ⚠️ incomplete", 31),
        ("⚪ Models: no failures in what was seen · ⚠️ incomplete", 33),
        ("✅ Models: all 3 tests passed", 32),
        ("🟡 Models: no new failures, 1 known", 37),
    ],
)
def test_the_frame_has_the_colour_of_the_verdict(verdict: str, colour: int):
    file = io.StringIO()
    draw(SlackThread(SlackMessage("main", verdict)), Console(file=file, force_terminal=True, color_system="standard"))
    assert file.getvalue().startswith(f"\x1b[{colour}m╭")


def test_a_button_is_a_link_in_a_terminal_and_has_no_line_of_its_own():
    file = io.StringIO()
    draw(THREAD, Console(file=file, force_terminal=True, color_system="standard"))
    assert file.getvalue().count("https://x.test\x1b\\") == 3
    assert "→" not in file.getvalue()

import io

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


def test_a_code_block_keeps_its_columns():
    assert any(line.startswith("│ Single  Multi") for line in drawn(THREAD, 60))


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


def test_a_message_without_blocks_is_drawn_too():
    assert "plain" in "\n".join(drawn(SlackThread(SlackMessage("main", "plain")), 60))

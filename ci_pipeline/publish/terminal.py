"""Draws a Slack thread in the terminal: the main message as a person would see it, each reply folded to a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from ci_pipeline.publish.mrkdwn import spans, unescape

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from ci_pipeline.publish.thread import SlackThread

STYLES = {"bold": "bold", "italic": "italic", "strike": "strike", "code": "cyan"}
LINK = "not dim bright_blue underline"
MARKS = ("•", "⚠️", "🆕")
REPLIES = 10
WIDTH = 110


def draw(thread: SlackThread, console: Console, *, replies: int = REPLIES) -> None:
    """The main message in a panel, then the first `replies` replies and the files, one line each.

    Where this is no terminal a button leads nowhere: then its address has a line, too.
    """
    from rich.console import Group
    from rich.panel import Panel

    text = [{"type": "section", "text": {"type": "mrkdwn", "text": thread.main.text}}]
    body = [part for block in thread.main.blocks or text for part in _draw_block(block)]
    colour = _colour(thread.main.text)
    console.print(Panel(Group(*body), border_style=colour, padding=(0, 1), width=min(console.width, WIDTH)))
    lines = [_line("▸", unescape(reply.text)) for reply in thread.replies[:replies]]
    if len(thread.replies) > replies:
        lines.append(_line("▸", f"and {len(thread.replies) - replies} more replies"))
    lines += [_line("≡", f"{file.name} ({file.content.count(chr(10)):,} lines)") for file in thread.files]
    for line in lines:
        console.print(line, no_wrap=True, overflow="ellipsis")
    if not console.is_terminal:
        for button in chain.from_iterable(map(_buttons, thread.main.blocks)):
            console.print(_line("→", f"{button['text']['text']}: {button['url']}"), soft_wrap=True)


def _draw_block(block: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.styled import Styled
    from rich.text import Text

    match block["type"]:
        case "section":
            yield Text()
            yield from _draw_text(block.get("text") or {})
            if buttons := _buttons(block):
                yield _draw_buttons(buttons)
        case "context":
            for element in block["elements"]:
                yield from (Styled(part, "dim") for part in _draw_text(element))
        case "actions":
            yield Text()
            yield _draw_buttons(_buttons(block))
        case "header":
            yield Text(block["text"]["text"], "bold")
        case _:
            pass


def _draw_text(element: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A text object in parts: a code block keeps its columns, everything else wraps."""
    from rich.text import Text

    if element.get("type") != "mrkdwn":
        yield Text(element.get("text", ""))
        return
    text = Text()
    for span in spans(element["text"]):
        if span.style == "block":
            yield from _draw_lines(text)
            yield Text(span.text.strip("\n"), "cyan", no_wrap=True, overflow="ellipsis")
            text = Text()
        elif span.style == "link":
            text.append(span.text, f"{LINK} link {span.url}" if span.url else LINK)
        else:
            text.append(span.text, STYLES.get(span.style, ""))
    yield from _draw_lines(text)


def _draw_lines(text: Text) -> Iterator[RenderableType]:
    """Lines that begin with a mark hang from it."""
    from rich.table import Table

    text.rstrip()
    for line in text.split("\n") if text.plain.strip() else ():
        mark = line.plain.partition(" ")[0]
        if mark in MARKS:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(mark, line[len(mark) + 1 :])
            yield grid
        else:
            yield line


def _buttons(block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that lead somewhere, of a section or a row of buttons."""
    accessory = block.get("accessory")
    elements = [accessory] if accessory else block["elements"] if block["type"] == "actions" else []
    return [element for element in elements if element.get("url")]


def _draw_buttons(buttons: Sequence[Mapping[str, Any]]) -> RenderableType:
    from rich.columns import Columns
    from rich.text import Text

    return Columns([Text(f"[ {b['text']['text']} ]", f"link {b['url']}") for b in buttons], (0, 2))


def _line(mark: str, text: str) -> Text:
    from rich.text import Text

    return Text(f"  {mark} ", "dim").append(" ".join(text.split()), "not dim")


def _colour(verdict: str) -> str:
    if "⚠️" in verdict or "❌" in verdict:
        return "red" if "❌" in verdict else "yellow"
    return "green" if "✅" in verdict else "white"

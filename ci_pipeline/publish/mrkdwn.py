"""Slack's mrkdwn: text of other people made safe for it, and read back for a terminal or a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ci_pipeline.web_address import is_web

LABEL_LIMIT = 2000
"""Characters of a link's label: a section holds 3,000."""


def escape(text: str) -> str:
    """Text that Slack shows as it is: no link, no mention, no `<!channel>`."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def code(text: str) -> str:
    """Text in one line and in a code span, where `_` and `*` mean nothing."""
    shown = " ".join(text.split()).replace("`", "ˋ")
    return f"`{escape(shown)}`" if shown else ""


def link(url: str, label: str) -> str:
    """A link, or its label alone where the address is none that a person should follow; without a label nothing."""
    shown = clip(escape(label), LABEL_LIMIT)
    return f"<{url_of(url)}|{shown}>" if shown and url_of(url) else shown


def url_of(url: str) -> str:
    """The address where it is one of the web (https, or http on loopback), ready for mrkdwn; else ""."""
    if len(url) > 500 or re.search(r"[\s<>|\x00-\x20\x7f]", url):
        return ""
    return url.replace("&", "&amp;") if is_web(url) else ""


def clip(text: str, limit: int) -> str:
    """At most `limit` characters; what is cut off is marked, and no escape sequence is cut in two."""
    return text if len(text) <= limit else re.sub(r"&\w{0,3}$", "", text[: max(limit - 1, 0)]) + "…"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of mrkdwn, unescaped. `style`: "", bold, italic, strike, code, block (a code block) or link."""

    text: str
    style: str = ""
    url: str = ""


_SPAN = re.compile(
    r"```(?P<block>.*?)```"
    r"|`(?P<code>[^`\n]+)`"
    r"|<(?P<url>[^<>|\s]+)(?:\|(?P<label>[^<>]*))?>"
    r"|(?<![\w*])\*(?P<bold>[^*\n]+)\*(?![\w*])"
    r"|(?<![\w_])_(?P<italic>[^_\n]+)_(?![\w_])"
    r"|(?<![\w~])~(?P<strike>[^~\n]+)~(?![\w~])",
    re.DOTALL,
)


def spans(text: str) -> Iterator[Span]:
    """Take mrkdwn apart; what is styled may itself hold links and styles: those come as spans of their own."""
    end = 0
    for found in _SPAN.finditer(text):
        if found.start() > end:
            yield Span(unescape(text[end : found.start()]))
        end = found.end()
        kind = found.lastgroup or ""
        if kind in ("url", "label"):
            url = unescape(found["url"])
            yield Span(unescape(found["label"] or url), "link", url if url.startswith("http") else "")
        elif kind in ("bold", "italic", "strike"):
            for inner in spans(found[kind]):
                yield Span(inner.text, inner.style or kind, inner.url)
        else:
            yield Span(unescape(found[kind]), kind)
    if end < len(text):
        yield Span(unescape(text[end:]))


def to_markdown(blocks: Sequence[Mapping[str, Any]]) -> str:
    """A message's blocks as Markdown."""
    return "\n\n".join(filter(None, map(_block_to_markdown, blocks))) + "\n"


def _block_to_markdown(block: Mapping[str, Any]) -> str:
    kind, text = block["type"], block.get("text")
    if kind == "header":
        return f"## {block['text']['text']}"
    elements = [*([text] if text else []), *block.get("elements", ()), *filter(None, [block.get("accessory")])]
    return (" · " if kind != "section" else "\n\n").join(filter(None, map(_element_to_markdown, elements)))


def _element_to_markdown(element: Mapping[str, Any]) -> str:
    if element["type"] == "button":
        return f"[{element['text']['text']}]({element['url']})" if element.get("url") else ""
    if element["type"] == "mrkdwn":
        return "".join(map(_span_to_markdown, spans(str(element["text"]))))
    return str(element.get("text", "")) if element["type"] == "plain_text" else ""


def _span_to_markdown(span: Span) -> str:
    match span.style:
        case "block":
            return f"```\n{span.text.strip(chr(10))}\n```"
        case "code":
            return f"`{span.text}`"
        case "bold":
            return f"**{span.text}**"
        case "italic":
            return f"*{span.text}*"
        case "link" if span.url:
            return f"[{span.text}]({span.url})"
        case _:
            # Two spaces keep a line's end; the rest is text and shall stay text.
            return re.sub(r"([\\`*_<\[])", r"\\\1", span.text).replace("\n", "  \n")

from hypothesis import given
from hypothesis import strategies as st

from ci_pipeline.publish.mrkdwn import Span, clip, code, escape, link, spans, to_markdown, unescape

ANY = st.text() | st.text("<>&`*_~| \nab")


@given(ANY)
def test_what_is_escaped_is_shown_as_it_was(text: str):
    assert unescape(escape(text)) == text
    assert not set("<>") & set(escape(text))


@given(ANY)
def test_code_shows_text_whatever_is_in_it(text: str):
    shown = " ".join(text.split()).replace("`", "ˋ")
    assert list(spans(code(text))) == ([Span(shown, "code")] if shown else [])


@given(ANY, st.integers(1, 50))
def test_a_clipped_text_fits_and_cuts_no_entity_in_two(text: str, limit: int):
    clipped = clip(escape(text), limit)
    assert len(clipped) <= limit
    assert unescape(clipped).removesuffix("…") == text[: len(unescape(clipped).removesuffix("…"))]


def test_links_lead_only_to_the_web():
    assert link("https://x.test/?a=1&b=2", "a <b>|c") == "<https://x.test/?a=1&amp;b=2|a &lt;b&gt;|c>"
    assert link("http://127.0.0.1:3000/runs/1", "here").startswith("<http://127.0.0.1")
    for url in (
        "javascript:alert(1)",
        "slack://x",
        "http://x.test",
        "https://a b",
        "https://x.test/<!channel>",
        "https://",
        "https://[",
        "",
        "x",
    ):
        assert link(url, "label") == "label"
    assert link("https://x.test/", "") == ""


@given(ANY)
def test_any_text_can_be_read_back(text: str):
    assert unescape(text) == text or "&" in text
    list(spans(text))
    to_markdown([{"type": "section", "text": {"type": "mrkdwn", "text": text}}])


def test_mrkdwn_is_taken_apart():
    text = "*New:* 2 in <https://x.test|bert &amp; vit> · `a_b_c` _soon_ ~not~ snake_case_name 2*3*4\n```\n a  b\n```"
    assert [(s.text, s.style) for s in spans(text) if s.style] == [
        ("New:", "bold"),
        ("bert & vit", "link"),
        ("a_b_c", "code"),
        ("soon", "italic"),
        ("not", "strike"),
        ("\n a  b\n", "block"),
    ]


def test_what_is_styled_may_hold_links_and_code_holds_none():
    text = "*see <https://x.test|this> now* `<https://x.test|this>`"
    assert [(s.text, s.style) for s in spans(text) if s.style] == [
        ("see ", "bold"),
        ("this", "link"),
        (" now", "bold"),
        ("<https://x.test|this>", "code"),
    ]


def test_a_message_becomes_a_markdown_page():
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": "1 failure"}},
        {
            "type": "context",
            "elements": [{"type": "mrkdwn", "text": "*<https://x.test|run>*"}, {"type": "mrkdwn", "text": "main"}],
        },
        {"type": "section", "text": {"type": "mrkdwn", "text": "*a*\n```\nn  x\n```"}},
        {"type": "section", "text": {"type": "plain_text", "text": "2 * 3"}},
        {
            "type": "actions",
            "elements": [{"type": "button", "text": {"type": "plain_text", "text": "Go"}, "url": "https://x.test"}],
        },
    ]
    assert to_markdown(blocks) == (
        "## 1 failure\n\n[run](https://x.test) · main\n\n**a**  \n```\nn  x\n```\n\n2 * 3\n\n[Go](https://x.test)\n"
    )

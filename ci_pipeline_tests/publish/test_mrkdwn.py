import pytest
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
        f"https://x.test/{'x' * 500}",
        "",
        "x",
    ):
        assert link(url, "label") == "label"
    assert link("https://x.test/", "") == ""


def test_a_link_whose_label_is_long_is_closed_and_fits_a_section():
    shown = link(f"https://x.test/{'x' * 400}", "&" * 5000)
    assert shown.endswith("&amp;…>")
    assert len(shown) < 3000


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


@pytest.mark.parametrize(("mark", "style"), [("*", "bold"), ("_", "italic"), ("~", "strike")])
def test_what_is_styled_may_hold_links_and_code_holds_none(mark: str, style: str):
    text = f"{mark}see <https://x.test|this> now{mark} `<https://x.test|this>`"
    assert [(s.text, s.style) for s in spans(text) if s.style] == [
        ("see ", style),
        ("this", "link"),
        (" now", style),
        ("<https://x.test|this>", "code"),
    ]


def test_links_are_read_back_and_a_mention_leads_nowhere():
    assert list(spans("<https://x.test/?a=1&amp;b=2|a &lt;b&gt;><https://x.test><@U012ABCDEF> &amp; more")) == [
        Span("a <b>", "link", "https://x.test/?a=1&b=2"),
        Span("https://x.test", "link", "https://x.test"),
        Span("@U012ABCDEF", "link"),
        Span(" & more"),
    ]


def test_a_message_becomes_a_markdown_page():
    button = {"type": "button", "text": {"type": "plain_text", "text": "Go"}, "url": "https://x.test"}
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": "1 failure"}},
        {
            "type": "context",
            "elements": [{"type": "mrkdwn", "text": "*<https://x.test|run>*"}, {"type": "mrkdwn", "text": "main"}],
        },
        {"type": "section", "text": {"type": "mrkdwn", "text": "*a*\n```\nn  x\n```"}},
        {"type": "section", "text": {"type": "plain_text", "text": "2 * 3"}, "accessory": button},
        {"type": "actions", "elements": [button, button]},
    ]
    assert to_markdown(blocks) == (
        "## 1 failure\n\n[run](https://x.test) · main\n\n**a**  \n```\nn  x\n```\n\n"
        "2 * 3\n\n[Go](https://x.test)\n\n[Go](https://x.test) · [Go](https://x.test)\n"
    )


def test_styles_become_markdowns_and_text_stays_text():
    text = "`a_b` _soon_ *now* x_y 2*3 &lt;b&gt; [z]"
    page = to_markdown([{"type": "section", "text": {"type": "mrkdwn", "text": text}}])
    assert page == "`a_b` *soon* **now** x\\_y 2\\*3 \\<b> \\[z]\n"

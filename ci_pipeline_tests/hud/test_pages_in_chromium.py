"""The pages in a real browser: nothing of other people runs, nothing is too wide, times are the reader's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ci_pipeline.hud.app import create_app
from ci_pipeline.profile import load_profile
from ci_pipeline.settings import load_settings
from ci_pipeline.warehouse.client import connect, migrate
from ci_pipeline.warehouse.embedded import Embedded
from ci_pipeline_tests.hud.oot_rows import HOSTILE, job, put
from ci_pipeline_tests.servers.application import serving

pytestmark = pytest.mark.slow

PATHS = (
    "/",
    "/oot",
    "/oot/org/backend",
    "/oot/org/backend?job=%3Cscript%3Ealert(1)%3C/script%3E",
    "/oot/org/backend/jobs/d0/1",
    "/oot/org/wide",
    "/oot/org/deep/jobs/delivery-1/1",
    "/pr/7",
    "/history?test=%3Cscript%3Ealert(1)%3C/script%3E",
)


LOW_CONTRAST = """() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number).concat(1).slice(0, 4);
  const over = (front, back) => back.map((value, n) => front[n] * front[3] + value * (1 - front[3]));
  const linear = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("");
    if (!text || !element.checkVisibility()) continue;
    const grounds = [];
    let opacity = 1;
    for (let at = element; at; at = at.parentElement) {
      grounds.unshift(parts(getComputedStyle(at).backgroundColor));
      opacity *= getComputedStyle(at).opacity;
    }
    const ground = grounds.reduce((back, front) => over(front, back), [255, 255, 255]);
    const color = parts(getComputedStyle(element).color);
    const [dark, light] = [over([...color.slice(0, 3), color[3] * opacity], ground), ground]
      .map(luminance).sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) low.push([text.slice(0, 40), element.className, ratio.toFixed(2)]);
  }
  return low;
}"""
"""Texts with a contrast below 4.5 to 1."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, embedded_warehouse: Embedded) -> Iterator[str]:
    """The pages on loopback, over jobs that mean no good in every field."""
    url = embedded_warehouse.url.removesuffix("default") + "chromium"
    client = connect(url)
    migrate(client)
    for n, payload in enumerate(HOSTILE):
        test = dict.fromkeys(("name", "file", "message", "stacktrace"), payload)
        fields = ("downstream_repo_level", "workflow_name", "workflow_run_url", "job_name", "run_id", "artifact_url")
        put(
            client,
            job(
                **dict.fromkeys(fields, payload),
                delivery_id=f"d{n}",
                pytorch_head_sha=payload,
                conclusion="failure",
                failed_tests=1,
                total_tests=1,
                failed_tests_json=json.dumps([test]),
                environment=json.dumps({payload: payload}),
            ),
        )
    put(client, job("org/" + "very-long-name-" * 12, conclusion=""))
    long = json.dumps([{"name": "test", "file": "deep/" * 60}])
    put(
        client,
        job("org/deep", conclusion="failure", failed_tests_json=long, environment=json.dumps({"x" * 90: "/y" * 90})),
    )
    put(client, *(job("org/wide", job_name=f"{'long words ' * 12}{n}", pr_author="x" * 39) for n in range(30)))
    settings = load_settings(CI_PIPELINE_HOME=tmp_path_factory.mktemp("home"), CI_PIPELINE_WAREHOUSE_URL=url)
    with serving(create_app(settings, load_profile("transformers"))) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser is here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, **options: object) -> tuple[Page, list[str]]:
    """A page, and what went wrong on it: dialogs, errors, refusals by the policy, requests elsewhere."""
    page = browser.new_context(**options).new_page()  # pyright: ignore[reportArgumentType]
    wrong: list[str] = []
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if "//127.0.0.1:" in request.url else wrong.append(request.url))
    return page, wrong


def test_nothing_that_a_backend_sends_runs(site: str, browser: Browser) -> None:
    page, wrong = opened(browser)
    for path in PATHS:
        page.goto(site + path)
        for details in page.query_selector_all("details:not([open]) > summary"):
            details.click()
        assert page.evaluate("document.querySelectorAll('script').length") == 1
        hrefs = page.evaluate("[...document.links].map(link => link.protocol)")
        assert set(hrefs) <= {"http:", "https:"}
    assert wrong == []


@pytest.mark.parametrize("width", [360, 1440])
def test_no_page_is_wider_than_the_screen(site: str, browser: Browser, width: int) -> None:
    page, wrong = opened(browser, viewport={"width": width, "height": 900})
    for path in PATHS:
        page.goto(site + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert wrong == []


def test_what_to_do_next_is_in_sight_on_a_phone(site: str, browser: Browser) -> None:
    page, _ = opened(browser, viewport={"width": 360, "height": 900})
    for path, link in (("/oot?view=nightlies", "look at 30 days"), ("/oot/org/wide?job=none", "show all")):
        page.goto(site + path)
        box = page.get_by_role("link", name=link).bounding_box()
        assert box
        assert box["x"] + box["width"] < 345, path


@pytest.mark.parametrize("width", [390, 1440])
def test_many_jobs_with_long_names_leave_the_matrix_in_sight(site: str, browser: Browser, width: int) -> None:
    page, _ = opened(browser, viewport={"width": width, "height": 900})
    page.goto(f"{site}/oot/org/wide")
    box = "[...document.querySelectorAll('.matrix %s')].map(head => head.getBoundingClientRect().%s)"
    assert len(heads := page.evaluate(box % ("th.job", "height"))) == 30
    assert max(heads) < 300
    assert max(page.evaluate(box % ("tbody th", "width"))) < width / 2
    assert page.evaluate(box % (".cell", "left"))[0] < width


def test_times_are_in_the_readers_zone_with_utc_on_hover(site: str, browser: Browser) -> None:
    page, _ = opened(browser, timezone_id="Asia/Tokyo", locale="en-GB")
    page.goto(f"{site}/oot/org/backend")
    times = "[...document.querySelectorAll('time')].map(time => [time.dateTime, time.textContent, time.title])"
    for at, shown, title in page.evaluate(times):
        hour = int(at[11:13])
        assert f", {(hour + 9) % 24:02}:{at[14:16]}" in shown
        assert title == f"{at[:10]} {at[11:19]}.{at[20:23] if at[19] == '.' else '000'} UTC"
    assert "Asia/Tokyo" in page.inner_text("footer")


def test_the_pages_work_without_javascript(site: str, browser: Browser) -> None:
    page, _ = opened(browser, java_script_enabled=False)
    page.goto(f"{site}/oot")
    page.click("text=30d")
    page.click("text=org/backend")
    page.select_option("select[name=conclusion]", "failure")
    page.click("text=Show")
    page.click(".cell a.bad >> nth=0")
    assert "/jobs/d" in page.url
    assert "UTC" in page.inner_text("footer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_against_its_ground(site: str, browser: Browser, scheme: str) -> None:
    page, wrong = opened(browser, color_scheme=scheme)
    for path in PATHS:
        page.goto(site + path)
        assert page.evaluate(LOW_CONTRAST) == [], path
    assert wrong == []

"""The page in headless Chromium, as a reader opens it: from a file, offline. Skipped where there is no Chromium."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import browser
import pytest
from report_run import make_run

from mmcompress.pipeline import standalone
from mmcompress.pipeline.recipe import parse_assignments

pytestmark = pytest.mark.skipif(browser.EXECUTABLE is None, reason="no chromium on the PATH (apt install chromium)")

BOXES = """[...document.querySelectorAll('svg.chart')].map((chart) => ({
  name: chart.getAttribute('aria-label'),
  box: chart.getBoundingClientRect().toJSON(),
  marks: [...chart.querySelectorAll('.mark, .bar, .area, .estimate, .dumbbell, .module, .line')].map(
    (mark) => mark.getBoundingClientRect().toJSON()),
}))"""
CONTRAST = """(() => {
  const channels = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((c) => +c / 255);
  const light = (text) => channels(text).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => { for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!colour.endsWith(', 0)')) return colour;
  } return 'rgb(255, 255, 255)'; };
  let worst = 21;
  const told = 'p, li, td, th, dt, dd, h1, h2, h3, a, button, caption, footer, code, span, strong, b, svg text';
  for (const one of document.querySelectorAll(told)) {
    if (!one.getClientRects().length || !one.textContent.trim()) continue;
    const style = getComputedStyle(one);
    const [a, b] = [light(one instanceof SVGElement ? style.fill : style.color), light(ground(one))];
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    """The report of the invented run, loaded once; tests look at it in turn."""
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    report = standalone.report([folder], None, parse_assignments(["gates.max_drop.i2t_r10=0.01", "gates.max.p99_ms=5"]))
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        opened.load(report.file("report.html").absolute().as_uri())
        yield opened


def test_no_console_error_and_no_request_leaves_the_page(page: browser.Page) -> None:
    assert page.complaints() == []
    urls = [request["request"]["url"] for request in page.of("Network.requestWillBeSent")]
    own = [url for url in urls if url.startswith("file:")]
    assert len(own) == 1 and own[0].endswith("/report.html")
    assert all(url.startswith("data:image/webp") for url in urls if url not in own)


def test_the_policy_forbids_requests(page: browser.Page) -> None:
    """What the page does not do, it could not do either: the browser itself refuses."""
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    blocked = page.complaints()
    assert any("Content Security Policy" in text for text in blocked)
    page.events.clear()


def test_each_plot_is_drawn(page: browser.Page) -> None:
    """Every chart and every mark in it has a box with an area, the marks inside of their chart."""
    charts: list[dict[str, Any]] = page.evaluate(BOXES)
    names = " ".join(chart["name"] for chart in charts)
    wanted = ("R@10 against latency", "Spread of single calls", "Latency at batch 1", "Latency at batch 8")
    wanted += ("Change of R@10", "Cosine of int8's", "classes that lost most", "Modules by drift", "Signal to noise")
    assert [name for name in wanted if name not in names] == []
    for chart in charts:
        frame = chart["box"]
        assert frame["width"] > 100 and frame["height"] > 50 and chart["marks"], chart["name"]
        for mark in chart["marks"]:
            assert mark["width"] > 0.5 and mark["height"] > 0.5, (chart["name"], mark)
            assert mark["left"] >= frame["left"] - 1 and mark["right"] <= frame["right"] + 1, chart["name"]
            assert mark["top"] >= frame["top"] - 1 and mark["bottom"] <= frame["bottom"] + 1, chart["name"]


def test_gallery_images_are_decoded(page: browser.Page) -> None:
    sizes = page.evaluate("[...document.images].map((image) => [image.naturalWidth, image.alt !== ''])")
    assert sizes == [[96, True]] * (7 + 6)  # three of them with two maps each


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page: browser.Page, theme: str) -> None:
    """4.5 to 1, WCAG 2.2 success criterion 1.4.3, of all text against the ground that it stands on."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(252, 252, 250)") == (theme == "light")
    assert page.evaluate(CONTRAST) >= 4.5


def test_theme_switch_needs_no_storage(page: browser.Page) -> None:
    """A page from a file may be refused its storage; the switch works all the same, by keyboard too."""
    page.evaluate("(Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } }), true)")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    page.evaluate("document.getElementById('theme').focus()")
    grounds = []
    for _ in range(3):
        for kind in ("keyDown", "keyUp"):
            page.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )
        grounds.append(
            page.evaluate(
                "[document.getElementById('theme').textContent, getComputedStyle(document.body).backgroundColor]"
            )
        )
    light, dark = "rgb(252, 252, 250)", "rgb(20, 20, 19)"
    assert grounds == [["Theme: light", light], ["Theme: dark", dark], ["Theme: auto", light]]
    assert page.complaints() == []


def test_narrow_page_does_not_scroll_sideways(page: browser.Page) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.call("Emulation.clearDeviceMetricsOverride")


def test_page_prints(page: browser.Page) -> None:
    """A PDF of several pages, in the colours of paper whatever the screen has, without the switch."""
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.getElementById('theme').getClientRects().length") == 0
    page.call("Emulation.setEmulatedMedia", media="", features=dark)
    made = base64.b64decode(page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])
    assert made.startswith(b"%PDF") and made.count(b"/Type /Page\n") >= 3

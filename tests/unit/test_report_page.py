"""The report page in a real browser."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_factory import CLASSES, make_run
from webdriver import Browser, find_browser

from cdul_fast.reporting import write_report

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
QUOTES = "\"quoted\" 'name' & more.jpg"
GONE = "gone.jpg"
LONG = "photos_of_" + "x" * 100
CLASS = '"><script>alert(2)</script>'
FAILED = "<script>alert(3)</script>.png"

CONTRAST = """
const luminance = (c) => {
  const [r, g, b] = c.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const parse = (text) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] === 255) return c;
  }
  return [255, 255, 255, 255];
};
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !e.checkVisibility({ visibilityProperty: true })) continue;
  if (e.closest('script, .unseen, .tile')) continue;
  const a = luminance(parse(getComputedStyle(e).color).slice(0, 3)), b = luminance(ground(e).slice(0, 3));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push([ratio.toFixed(2), e.className || e.tagName, walker.currentNode.data.trim()]);
}
return bad;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    names = [HOSTILE, QUOTES, GONE, *(f"album/photo {i:02d}.jpg" for i in range(21))]
    run = make_run(
        folder / "run",
        photos=len(names),
        names=names,
        classes=[*CLASSES, CLASS],
        failures=[(FAILED, "unsupported", "cannot <b>identify</b> image file")],
        root=folder / LONG,
    )
    (folder / LONG / GONE).unlink()
    return write_report(run)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = find_browser()
    if found is None:
        pytest.skip("needs chromium and chromedriver, one of which is absent")
    folder = tmp_path_factory.mktemp("chromium")
    with Browser(*found, profile=folder / "profile", log=folder / "log.txt") as window:
        yield window


@pytest.fixture
def window(browser: Browser, page: Path) -> Browser:
    browser.resize(1360, 900)
    browser.prefer("light")
    browser.open(page)
    return browser


def test_photos_and_bars_are_visible_and_the_console_is_silent(window: Browser) -> None:
    assert window.console() == []
    sizes = window.run(
        "return [...document.querySelectorAll('.card img')].map((i) =>"
        " [i.complete, i.naturalWidth, i.getBoundingClientRect().width, i.getBoundingClientRect().height])"
    )
    assert len(sizes) == 23
    assert all(complete and min(rest) > 20 for complete, *rest in sizes)
    bars = window.run(
        "return [...document.querySelectorAll('.card')].map((c) => [...c.querySelectorAll('.bar')].map((b) =>"
        " [b.querySelector('.track').getBoundingClientRect().width, b.querySelector('.value').innerText]))"
    )
    assert all(len(card) >= 5 and all(width > 60 and value for width, value in card) for card in bars)


def test_parts_of_a_bar_have_the_length_of_its_score(window: Browser) -> None:
    lengths = window.run(
        "return [...document.querySelectorAll('.bar')].map((b) => {"
        " const w = (s) => { const e = b.querySelector(s); return e ? e.getBoundingClientRect().width : 0; };"
        " return [w('.part.whole'), w('.part.tiles'), w('.track'), b.querySelector('.value').innerText]; })"
    )
    assert len(lengths) >= 24 * 5
    for whole, tiles, track, value in lengths:
        assert (whole + tiles) / track == pytest.approx(float(value), abs=0.006)
    assert {whole > tiles for whole, tiles, *_ in lengths} == {True, False}


def test_hostile_names_stay_text(window: Browser) -> None:
    text = window.run("return document.body.innerText")
    for name in (HOSTILE, QUOTES, CLASS, FAILED, "cannot <b>identify</b> image file"):
        assert name in text
    assert window.run("return document.scripts.length") == 1
    assert (
        window.run("return document.querySelectorAll('img:not([src^=\"data:image/jpeg;base64,\"])').length")
        == 0
    )
    assert (
        window.run(
            "return [...document.querySelectorAll('*')].filter((e) =>"
            " [...e.attributes].some((a) => a.name.startsWith('on'))).length"
        )
        == 0
    )


def test_no_script_runs_but_the_page_s_own(window: Browser) -> None:
    window.run(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s);"
        "const i = new Image(); i.setAttribute('onerror', 'window.ran = 2'); i.src = 'data:,';"
        "document.body.append(i);"
    )
    assert window.run("return window.ran === undefined")
    window.console()


def test_a_photo_that_is_gone_has_a_placeholder(window: Browser) -> None:
    assert window.run("return [...document.querySelectorAll('.gone')].map((e) => e.innerText)") == [
        "photo not found"
    ]


def test_pointing_at_a_bar_outlines_its_tile(window: Browser) -> None:
    state = (
        "const c = document.querySelector('.card'); return [...c.querySelectorAll('.tile')].filter((t) =>"
        " getComputedStyle(t).visibility === 'visible').map((t) => t.dataset.bar)"
    )
    assert window.run(state) == []
    window.hover(".card li:nth-child(2) .bar")
    assert window.run(state) == ["1"]
    window.hover(".card li:nth-child(1) .bar")
    assert window.run(state) == ["0"]
    box = window.run(
        "const c = document.querySelector('.card'), f = c.querySelector('.frame').getBoundingClientRect(),"
        " t = c.querySelector('.tile.on').getBoundingClientRect();"
        " return [(t.left - f.left) / f.width, (t.top - f.top) / f.height,"
        " t.width / f.width, t.height / f.height]"
    )
    assert box[2] == pytest.approx(1 / 3, abs=0.02)
    assert box[3] == pytest.approx(1 / 3, abs=0.02)
    assert all(abs(side * 3 - round(side * 3)) < 0.1 for side in box[:2])
    window.hover("h1")
    assert window.run(state) == []


def test_the_keyboard_does_what_the_mouse_does(window: Browser) -> None:
    window.press("tab")
    assert window.run("return document.activeElement.className") == "skip"
    window.run("document.querySelector('.card .bar').focus()")
    seen = []
    for _ in range(3):
        seen.append(window.run("return document.querySelector('.card .tile.on').dataset.bar"))
        window.press("down")
    assert seen == ["0", "1", "2"]
    assert (
        window.run(
            "const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth"
        )
        == "solid2px"
    )
    window.press("tab")  # one stop a photo
    assert (
        window.run(
            "return [...document.querySelectorAll('.card')].indexOf(document.activeElement.closest('.card'))"
        )
        == 1
    )
    window.press("escape")
    assert window.run("return document.querySelectorAll('.tile.on').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(window: Browser, scheme: str) -> None:
    window.prefer(scheme)
    assert window.run(CONTRAST) == []


def test_the_theme_can_be_chosen(window: Browser) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = window.run(ground)
    window.prefer("dark")
    dark = window.run(ground)
    assert light != dark
    click = "document.getElementById('theme').click(); " + ground
    assert [window.run(click) for _ in range(3)] == [light, dark, dark]


@pytest.mark.parametrize("width", [360, 390, 768, 1360])
def test_nothing_sticks_out_sideways(window: Browser, width: int) -> None:
    window.resize(width, 800)
    assert window.run("return document.documentElement.scrollWidth") <= width
    wide = window.run(
        "return [...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth + 1"
        " || e.tabIndex === 0)"
    )
    assert wide


def test_headings_are_in_order_and_everything_has_a_name(window: Browser) -> None:
    levels = window.run("return [...document.querySelectorAll('h1,h2,h3')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    tree = window.command("Accessibility.getFullAXTree")["nodes"]
    needing = [n for n in tree if n.get("role", {}).get("value") in ("button", "link", "image", "region")]
    assert len(needing) > 100
    assert [n["role"]["value"] for n in needing if not n.get("name", {}).get("value")] == []


def test_it_prints(window: Browser, tmp_path: Path) -> None:
    window.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000

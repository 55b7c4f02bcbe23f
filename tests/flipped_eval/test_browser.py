"""The page in a real browser: nothing is cut off, nothing overlaps, tables sort, on wide and narrow screens."""

from __future__ import annotations

import html
import json
import pathlib
import shutil
import subprocess

import pytest

from flipped_eval.report import write_report

from .conftest import evaluate

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")

# Runs in the page when it is loaded, sorts the first table by its last column, and leaves what it saw as text.
PROBE = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const shown = one => one.getClientRects().length > 0;
  const wide = [...document.querySelectorAll("main *")].filter(one => shown(one) && !one.closest("svg, .scroll, pre")
    && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName + "." + one.className);
  const table = document.querySelector("table.sortable"), last = table.tHead.rows[0].cells.length - 1;
  const values = () => [...table.tBodies[0].rows].filter(row => !row.classList.contains("total"))
    .map(row => Number(row.cells[last].dataset.sort));
  const head = table.tHead.rows[0].cells[last];
  head.querySelector("button").click();
  const down = values();
  head.querySelector("button").click();
  const seen = {
    overflow: document.documentElement.scrollWidth - innerWidth, wide: wide.slice(0, 5),
    plots: [...document.querySelectorAll(".plot")].filter(shown).map(one => one.className),
    all: document.querySelectorAll(".plot").length, down, up: values(), sorted: head.getAttribute("aria-sort"),
    scrolled: [...document.querySelectorAll("table.pin")].filter(one => shown(one)
      && one.parentElement.scrollWidth > one.parentElement.clientWidth + 1)
      .map(one => `${one.caption.textContent}: ${one.parentElement.scrollWidth} of ${one.parentElement.clientWidth}`),
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    empty: [...document.querySelectorAll("main section")].filter(one => one.innerText.trim().length < 20)
      .map(one => one.id),
  };
  const place = parent.document.createElement("script");
  place.type = "application/json"; place.id = "seen"; place.textContent = JSON.stringify(seen);
  parent.document.body.append(place);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, small_vocab_path) -> str:
    folder = tmp_path_factory.mktemp("page")
    suites = ["super_glue/rte", "super_glue/cb", "labels"]
    job = {"methods": ["direct", "flipped"], "suites": suites, "max_examples": 8, "resamples": 30}
    evaluate(folder, small_vocab_path, **job)
    write_report([folder], folder)
    return (folder / "report.html").read_text()


def see(page: str, folder: pathlib.Path, width: int, dark: bool = False) -> dict:
    file = folder / "page.html"
    probed = page.replace("</body>", f"{PROBE}</body>")
    if width < 500:  # a window is at least so wide
        frame = f'<iframe style="width:{width}px;height:9000px" srcdoc="{html.escape(probed)}"></iframe>'
        probed = f"<!doctype html><body>{frame}</body>"
    file.write_text(probed)
    words = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},900",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    if dark:
        words.insert(1, "--blink-settings=preferredColorScheme=0")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    found = done.stdout.split('id="seen">')[1].split("</script>")[0]
    return json.loads(found)


@pytest.mark.parametrize("width", [1280, 500, 390])
def test_nothing_is_cut_off(page, tmp_path, width):
    seen = see(page, tmp_path, width)
    assert seen["overflow"] <= 0 and seen["wide"] == []
    form = "wide" if width > 640 else "narrow"
    assert len(seen["plots"]) == seen["all"] / 2 > 2
    assert all(form in name for name in seen["plots"])
    assert seen["empty"] == []
    assert seen["scrolled"] == [], "two methods stand side by side"


def test_tables_sort_both_ways(page, tmp_path):
    seen = see(page, tmp_path, 1280)
    assert seen["down"] == sorted(seen["down"], reverse=True) and seen["sorted"] == "ascending"
    assert seen["up"] == sorted(seen["up"]) and len(seen["up"]) > 1


def test_dark_is_dark(page, tmp_path):
    def brightness(colour: str) -> float:
        return sum(map(float, colour.strip("rgb()").split(","))) / 3

    light, dark = (see(page, tmp_path, 1280, dark) for dark in (False, True))
    assert brightness(light["paper"]) > 200 > 100 > brightness(light["ink"])
    assert brightness(dark["paper"]) < 60 < 180 < brightness(dark["ink"])

"""The page of a table in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from experiments.report.columns import chosen
from experiments.report.page import page
from experiments.report.render import PUBLISHED
from experiments.report.rows import FIELDS
from tests.experiments.support import page_table
from tests.experiments.support.page_probes import CONTRASTS, COVERED, LONG_OPTIONS, OUTSIDE, OVERLAPS

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `make browser` installs Debian's, as root"),
]
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def one_tab() -> Iterator[Page]:
    """Each launch of the browser has a new profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser.new_page()
        browser.close()


@pytest.fixture
def opened(one_tab: Page, tmp_path: Path) -> Iterator[Open]:
    """Opens a page; at the end nothing may have gone wrong or out."""
    wrong: list[str] = []
    allowed = ["data:,"]
    listeners: dict[Any, Callable[[Any], None]] = {
        "console": lambda message: wrong.append(f"{message.type}: {message.text}"),
        "pageerror": lambda error: wrong.append(str(error)),
        "requestfailed": lambda request: wrong.append(f"failed: {request.url}"),
        "request": lambda request: wrong.append(request.url) if request.url not in allowed else None,
    }
    for event, listener in listeners.items():
        one_tab.on(event, listener)

    def visit(path: Path | None = None, width: int = 1280, scheme: Any = "light") -> Page:
        path = path or page_table.write_page(tmp_path / "table.html")
        allowed.append(path.as_uri())
        one_tab.set_viewport_size({"width": width, "height": 900})
        one_tab.emulate_media(media="screen", color_scheme=scheme)
        one_tab.goto(path.as_uri())
        return one_tab

    yield visit
    for event, listener in listeners.items():
        one_tab.remove_listener(event, listener)
    assert wrong == []


def shown(tab: Page) -> list[int]:
    """The rows that are visible, from above."""
    return [int(value) for value in tab.eval_on_selector_all(
        ".rows tbody:not([hidden])", "bodies => bodies.map(body => body.dataset.row)"
    )]  # fmt: skip


def names(tab: Page) -> list[str]:
    every = [row["id"] for row in page_table.rows()]
    return [every[index] for index in shown(tab)]


def test_each_header_sorts_numbers_as_numbers_and_blanks_last(opened: Open) -> None:
    tab, order = opened(), list(range(len(page_table.rows())))
    for index, column in enumerate(chosen(page_table.COLUMNS)):
        keys = [column.value(row) for row in page_table.rows()]
        known = [number for number in order if keys[number] is not None]
        blank = [number for number in order if keys[number] is None]
        header = tab.locator(".rows thead th").nth(index)
        for reverse, way in ((False, "ascending"), (True, "descending")):
            header.get_by_role("button").dispatch_event("click")
            assert header.get_attribute("aria-sort") == way
            assert shown(tab) == sorted(known, key=lambda number: keys[number], reverse=reverse) + blank, column.name
        header.get_by_role("button").dispatch_event("click")
        assert (header.get_attribute("aria-sort"), shown(tab)) == ("none", order)


def test_the_keyboard_sorts_and_expands(opened: Open) -> None:
    tab = opened()
    tab.get_by_role("button", name="after FT").focus()
    tab.keyboard.press("Enter")
    assert names(tab)[0] == "a/svd-60"  # 9.5 % comes before 70 %
    body = tab.locator(".rows tbody[data-row='2']")
    body.get_by_role("button").focus()
    tab.keyboard.press("Space")
    assert body.locator(".command").inner_text() == "python -m experiments run table9/a/svd-40 --seeds 0"
    told = body.locator(".details").inner_text()
    for text in ("0123456789abcdef", "89abcdef", "torch 2.15.0", "cpu", "6,000 parameters, dense 10,000"):
        assert text in told
    tab.keyboard.press("Space")
    assert not body.locator(".details").is_visible()


def test_filters_work_and_combine(opened: Open) -> None:
    tab = opened()

    def choose(name: str, value: str) -> list[str]:
        tab.locator(f"#filters [name={name}]").select_option(value)
        return names(tab)

    assert choose("architecture", "Alpha") == [row["id"] for row in page_table.rows() if row["architecture"] == "Alpha"]
    assert choose("method", "Ours") == ["a/ours-40", "a/ours-60"]
    assert choose("status", "stale") == ["a/ours-40"]
    assert tab.locator("#count").inner_text() == "1 of 8 rows"
    assert tab.locator("#panels .mark").count() == 1
    tab.get_by_role("button", name="Reset").click()
    tab.locator("#count").get_by_text("8 rows", exact=True).wait_for()
    assert choose("protocol", "partial-ft, 1 epoch") == ["b/svd-40"]
    tab.get_by_role("button", name="Reset").click()
    tab.locator("[name=search]").fill("SVD alpha")
    assert names(tab) == ["a/svd-40", "a/svd-60"]
    tab.locator("[name=search]").fill("dense")  # is in the details of every row, which are not searched
    assert names(tab) == ["a/baseline"]
    tab.locator("[name=search]").fill("nowhere")
    assert names(tab) == []
    assert "Nothing was measured" in tab.locator("#panels").inner_text()


def test_the_plot_has_one_mark_for_each_measured_row(opened: Open) -> None:
    tab = opened()
    done = [row["id"] for row in page_table.rows() if row["status"] == "done"]
    ids = tab.eval_on_selector_all("#panels .mark", "marks => marks.map(mark => mark.dataset.id)")
    assert sorted(ids) == sorted(done)
    tab.locator("#plot-y").select_option("top1_before_finetune")
    assert tab.locator("#panels .mark").count() == len(done)
    tab.locator("#plot-x").select_option("file_bytes")
    ids = tab.eval_on_selector_all("#panels .mark", "marks => marks.map(mark => mark.dataset.id)")
    assert sorted(ids) == ["a/ours-60", "a/svd-40"]


def test_marks_lie_where_the_numbers_say(opened: Open) -> None:
    """More parameters further right, a better accuracy further up, in proportion."""
    tab = opened()
    box = {
        name: tab.locator(f"#panels .mark[data-id='{name}']").bounding_box()
        for name in ("a/baseline", "a/svd-40", "a/svd-60", "a/ours-40", "a/ours-60")
    }
    x = {name: place["x"] + place["width"] / 2 for name, place in box.items() if place}
    y = {name: place["y"] + place["height"] / 2 for name, place in box.items() if place}
    assert x["a/svd-40"] == pytest.approx(x["a/ours-40"], abs=1.5)
    assert (x["a/baseline"] - x["a/svd-40"]) / (x["a/svd-40"] - x["a/svd-60"]) == pytest.approx(4000 / 2000, rel=0.05)
    assert (y["a/svd-60"] - y["a/svd-40"]) / (y["a/svd-60"] - y["a/ours-40"]) == pytest.approx(70.5 / 80.5, rel=0.05)


def test_the_front_leaves_out_what_another_row_beats(opened: Open) -> None:
    tab = opened()
    path = tab.locator("#panels figure").first.locator(".front").get_attribute("d") or ""
    places = {
        name: re.findall(r"[\d.]+", tab.locator(f"#panels [data-id='{name}']").get_attribute("transform") or "")
        for name in ("a/ours-60", "a/ours-40", "a/baseline")
    }
    assert re.findall(r"[\d.]+", path) == [number for place in places.values() for number in place]


def test_hover_focus_and_tap_name_the_row(opened: Open) -> None:
    tab = opened()
    tip, mark = tab.locator("#tip"), tab.locator("#panels .mark[data-id='a/svd-40']")
    assert not tip.is_visible()
    mark.hover()
    told = tip.inner_text()
    assert "Alpha · SVD · -40%" in told
    assert "6,000 parameters (-40.0 %)" in told
    assert "80.00 ± 1.50 %" in told
    tab.mouse.move(1, 1)
    assert not tip.is_visible()
    tab.locator("#panels .mark[tabindex='0']").first.focus()
    first = tip.inner_text()
    tab.keyboard.press("ArrowRight")
    assert tip.is_visible()
    assert tip.inner_text() != first
    tab.keyboard.press("Escape")
    assert not tip.is_visible()
    mark.click()
    assert "Alpha · SVD" in tip.inner_text()


def test_printed_numbers_are_a_layer_of_their_own(opened: Open, tmp_path: Path) -> None:
    tab = opened()
    assert not tab.locator("#reported").is_checked()
    assert tab.locator("figure.reported").count() == 0
    tab.locator("#reported").check()
    assert "reported, ImageNet" in tab.locator("figure.reported figcaption").first.inner_text()
    assert tab.locator("#panels figure:not(.reported) .mark.hollow").count() == 0
    alpha = tab.locator("figure.reported").first.locator(".mark")
    assert alpha.count() == 4  # dense, the other paper's, and two that SVD and Ours have in common
    real = opened(page_table.write_page(tmp_path / "real.html", imagenet=True))
    assert real.locator("#reported").is_checked()
    assert real.locator("figure.reported").count() == 0
    assert real.locator("#panels figure").first.locator(".mark.hollow").count() == 4


def test_ranks_and_errors_of_the_layers(opened: Open) -> None:
    tab = opened()
    heads = tab.locator("#heat thead th").all_inner_texts()
    assert heads == ["Layer", "SVD", "Ours"]
    cells = [row.locator("td").all_inner_texts() for row in tab.locator("#heat tbody tr").all()]
    assert cells == [["100", "100"], ["65", "dense"], ["64", "dense"]]
    assert tab.locator("#errors .mark").count() == 2 * (3 + 1)
    assert tab.locator("#errors .mark.hollow").count() == 3 + 1  # on calibration images
    tab.locator("#layers-method").select_option("Ours")
    assert tab.locator("#errors .mark").count() == 2
    tab.locator("#errors .mark.hollow").hover()
    assert "calibration images: 0.01" in tab.locator("#tip").inner_text()
    tab.locator("#layers-architecture").select_option("Beta")
    assert tab.locator("#heat thead th").all_inner_texts() == ["Layer", "SVD"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_and_can_be_read(opened: Open, width: int, scheme: str) -> None:
    tab = opened(width=width, scheme=scheme)
    tab.locator("#reported").check()
    tab.locator(".expand").nth(2).click()
    tab.evaluate(LONG_OPTIONS)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate(OUTSIDE) == []
    low = {
        name: ratio for name, ratio in tab.evaluate(CONTRASTS).items() if ratio < (3 if name.startswith("--") else 4.5)
    }
    assert low == {}


@pytest.mark.parametrize("width", [400, 1280])
def test_no_name_covers_a_number(opened: Open, width: int) -> None:
    """Wherever the table is scrolled to, and names stay in sight."""
    tab = opened(width=width)
    tab.evaluate("document.querySelector('#table').scrollIntoView()")
    seen: dict[str, bool] = {}
    for left in range(0, 800 if width == 400 else 1, 90):
        tab.evaluate("(left) => { document.querySelector('#table .scroll').scrollLeft = left; }", left)
        for text, covered in tab.evaluate(COVERED):
            seen[text] = seen.get(text, False) or covered
            assert not covered, f"{text} at {left}"
        box = tab.locator(".rows .expand").nth(2).bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= width
    assert {"6.0k (-40.0%)".replace("6.0k", "6.00k"), "80.00 ± 1.50", "100.0"} <= set(seen)


def test_architectures_are_parted_where_they_stand_together(opened: Open) -> None:
    tab = opened()
    parted = "bodies => bodies.map(body => body.classList.contains('first'))"

    def first() -> list[bool]:
        return tab.eval_on_selector_all(".rows tbody", parted)

    alpha, beta = [True, *[False] * 5], [True, False]
    assert first() == alpha + beta
    tab.get_by_role("button", name="after FT").click()
    assert first() == [False] * 8
    header = tab.locator(".rows thead .architecture").get_by_role("button")
    header.click()
    assert first() == alpha + beta
    header.click()
    assert first() == beta + alpha
    header.click()
    assert first() == alpha + beta


def test_filters_are_those_of_the_tables_columns(opened: Open, tmp_path: Path) -> None:
    rows = [
        page_table.measured("a/none", "Alpha", "SVD", 40, 80.0),
        page_table.measured("a/z", "Alpha", "SVD", 40, 81.0, z="diagonal"),
    ]
    path = tmp_path / "few.html"
    path.write_text(page(page_table.content(rows=rows, columns=["architecture", "z", "top1"]), {}, False, None))
    tab = opened(path)
    assert tab.locator("#filters label:has(select)").evaluate_all("all => all.map(one => one.firstChild.data.trim())") == [
        "Architecture", "Z",
    ]  # fmt: skip
    for value, count in (("none", 1), ("diagonal", 1), ("", 2)):
        tab.locator("#filters [name=z]").select_option(value)
        assert len(shown(tab)) == count
    assert tab.locator("header code").count() == 0  # no command is known


def test_one_seed_is_not_ranked_among_means(opened: Open, tmp_path: Path) -> None:
    rows = [*page_table.rows(), page_table.measured("a/lucky", "Alpha", "Lucky", 60, 99.0, top1_std=None, seeds=[0])]
    path = tmp_path / "lucky.html"
    path.write_text(page(page_table.content(rows=rows), {}, False, "run"))
    tab = opened(path)
    ranked = [
        row["id"]
        for row in sorted(rows, key=lambda row: row["top1"] or 0)
        if row["top1"] and row["protocol"] != "dense"
    ]
    for expected in (ranked, [*ranked[-2::-1], "a/lucky"]):
        tab.get_by_role("button", name="after FT").click()
        assert [rows[index]["id"] for index in shown(tab)][: len(ranked)] == expected  # last, either way
    tab.get_by_role("button", name="Params measured").click()
    assert "a/lucky" in [rows[index]["id"] for index in shown(tab)][:3]  # its size is as sure as any
    assert tab.locator(".rows tbody .expand", has_text="Lucky (n=1)").count() == 1
    assert tab.locator("#panels .mark.fewer").evaluate_all("all => all.map(one => one.dataset.id)") == ["a/lucky"]
    assert "Lucky (n=1)" in tab.locator("#plot-key").all_inner_texts()[0]
    corners = (tab.locator("#panels figure").first.locator(".front").get_attribute("d") or "").count(",")
    assert corners == 3  # as without it: it would beat all of them but the dense model
    tab.locator("#panels .mark.fewer").hover()
    assert "n=1: fewer seeds" in tab.locator("#tip").inner_text()


def test_the_tip_says_what_the_images_leave_open(opened: Open, tmp_path: Path) -> None:
    rows = [page_table.measured("a/svd", "Alpha", "SVD", 40, 80.0, images=500, target="m_tiny")]
    path = tmp_path / "images.html"
    path.write_text(page(page_table.content(rows=rows), {}, False, "run"))
    tab = opened(path)
    tab.locator("#panels .mark").hover()
    assert "500 images: 95 % interval 76.3 to 83.3 %" in tab.locator("#tip").inner_text()
    assert "Top-1 of 500 images: one is 0.2 points" in tab.locator("#plot .hint").inner_text()
    assert tab.locator("#panels figcaption").inner_text() == "Alpha m_small at the size of m_tiny"


def test_paper_and_colours_at_will(opened: Open) -> None:
    tab = opened()
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(background)
    tab.get_by_role("button", name="Change to dark colours").click()
    assert tab.evaluate(background) != light
    tab.set_viewport_size({"width": 1040, "height": 720})  # A4 across, without margins
    tab.emulate_media(media="print")
    assert tab.evaluate(background) == light
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(OUTSIDE) == []
    assert not tab.locator("#filters").is_visible()
    assert tab.pdf().startswith(b"%PDF")


def test_markup_in_the_data_is_text(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page(*page_table.hostile(), False, page_table.HOSTILE))
    tab = opened(path)
    for button in tab.locator(".expand").all():
        button.click()
    tab.locator("#reported").check()
    tab.locator("#layers-architecture").select_option(page_table.HOSTILE)
    tab.locator("#panels .mark[data-id='a/svd-40']").hover()
    assert page_table.HOSTILE in tab.locator("#tip").inner_text()
    assert page_table.HOSTILE in tab.locator("#heat").inner_text()
    assert tab.locator(".rows tbody[data-row='2'] .expand").inner_text() == page_table.HOSTILE
    assert tab.title() == page_table.HOSTILE
    assert tab.locator("img, b:not(#tip b)").count() == 0


def test_a_table_of_bits_is_drawn_over_the_size_of_its_files(opened: Open, tmp_path: Path) -> None:
    rows = [
        page_table.measured(
            f"a/{bits}",
            "Alpha",
            f"Ours, {bits}-bit",
            50,
            90.0 - 8 / bits,
            bits=bits,
            file_bytes=1000 * bits,
            size_reported=10.0 * bits,
        )
        for bits in (16, 8, 4)
    ]
    path = tmp_path / "bits.html"
    path.write_text(page(page_table.content(rows=rows, columns=["method", "bits", "file_bytes"]), {}, False, "run"))
    tab = opened(path)
    assert tab.locator("#plot-x").input_value() == "file_bytes"
    assert "file on disk, KiB" in tab.locator("#panels").inner_text()
    tab.locator("#reported").check()
    assert tab.locator("figure.reported .mark").count() == 3
    assert "file on disk, MiB" in tab.locator("figure.reported").inner_text()
    assert tab.locator("#panels .series").count() == 1  # one model, three numbers of bits
    assert tab.locator("#plot-key li").all_inner_texts()[0] == "Ours"
    assert not tab.locator("#layers").is_visible()


def test_a_file_of_a_given_size_is_drawn(opened: Open, tmp_path: Path) -> None:
    """Its row has neither a dense top-1 nor a size in parameters that means anything."""
    rows = [
        page_table.row(
            f"a/at-{size}", "Alpha", f"at once, {size} MiB", params=10_000, params_dense=10_000, stored_bytes=size * 2**20,
            stored_top1=80.0 + size, reduction=1 - size / 20, seeds=[0], stale=False,
        )
        for size in (2, 4)
    ]  # fmt: skip
    path = tmp_path / "files.html"
    path.write_text(page(page_table.content(rows=rows, columns=["method", "stored_bytes"]), {}, False, "run"))
    tab = opened(path)
    assert tab.locator("#plot-x option").all_inner_texts() == ["file on disk"]
    assert tab.locator("#plot-y option").all_inner_texts() == ["measured here"]  # nothing is trained
    assert tab.locator("#panels .mark").count() == 2
    assert tab.locator("#panels .series").count() == 1  # one way at two sizes
    tab.locator("#panels .mark").first.hover()
    assert "top-1 82.00 %" in tab.locator("#tip").inner_text()


PUBLISHED_TABLES = sorted(path.relative_to(PUBLISHED).as_posix() for path in PUBLISHED.glob("*/table*.json"))


def test_tables_are_published() -> None:
    assert len(PUBLISHED_TABLES) > 20


@pytest.mark.parametrize("name", PUBLISHED_TABLES)
def test_every_published_table_opens(opened: Open, tmp_path: Path, name: str) -> None:
    """Its script runs to its end, whatever the table measures, and the page fits a phone."""
    content = json.loads((PUBLISHED / name).read_text())
    rows = [dict.fromkeys(FIELDS) | row for row in content["rows"]]
    path = tmp_path / "table.html"
    path.write_text(page({**content, "rows": rows}, {}, False, None))
    tab = opened(path, width=400)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.locator("#plot").is_visible() == (tab.locator("#panels .mark").count() > 0)
    headers = tab.locator(".rows thead th").get_by_role("button")
    headers.last.dispatch_event("click")
    assert tab.locator(".rows thead th").last.get_attribute("aria-sort") == "ascending"

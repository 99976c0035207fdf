"""The pages build strictly, lack no public name, and fetch nothing from elsewhere; the README is short."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Literal

import pytest

import lowrank_vit
from tests.support.sources import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DOCS = ROOT / "docs"
PAGES = (
    "index.html", "guides/budgets.html", "methods/best.html", "results/table_rivals.html", "open-questions.html",
    "reference/index.html", "tutorials/five-minutes.html",
)  # fmt: skip
LOCAL = ("file:", "data:", "blob:")
REMOTE = re.compile(
    r"<(?:script|img|iframe|source|embed)\b[^>]*?\bsrc=[\"'](?:https?:)?//[^\"']*"
    r"|<link\b[^>]*?\bhref=[\"'](?:https?:)?//[^\"']*"
    r"|(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]*"
    r"|\bimport(?:\s[^;\"']*from)?\s*\(?[\"'](?:https?:)?//[^\"']*"
)


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What ``make docs`` does."""
    command = f"{shlex.quote(sys.executable)} -m mkdocs build --strict --config-file {config} --site-dir {site}"
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(shlex.split(command), cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def inventory(site: Path) -> set[str]:
    """The names that the pages of the reference explain."""
    *_, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_pages_build_strictly_and_have_every_public_name(site: Path) -> None:
    assert {f"lowrank_vit.{name}" for name in lowrank_vit.__all__} <= inventory(site)
    assert {"lowrank_vit.records.report.Report", "lowrank_vit.linalg.metric.gram"} <= inventory(site)
    for page in ("index.html", "guides/budgets.html", "published/digits/table2.html", "tutorials/five-minutes.html"):
        assert (site / page).stat().st_size > 1000


def test_snippets_are_written_so_that_they_are_found() -> None:
    """A formatter of code took the arrow of a snippet for operators, and the pages showed the line instead of the code."""
    lines = [line for page in DOCS.rglob("*.md") for line in page.read_text(encoding="utf-8").splitlines()]
    like = [line.strip() for line in lines if re.search(r"-- *8 *< *--", line)]
    assert len(like) > 10
    assert [line for line in like if not re.fullmatch(r'--8<-- "[\w./:]+"', line)] == []


@pytest.mark.slow
def test_the_pages_fetch_nothing(site: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in site.rglob("*") if path.suffix in (".html", ".css")}
    assert len(texts) > 40
    assert {
        str(path.relative_to(site)): found[0] for path, text in texts.items() if (found := REMOTE.search(text))
    } == {}


def test_the_reference_lists_every_public_name_and_no_other() -> None:
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: lowrank_vit\.(\w+)$", text, re.MULTILINE)) == sorted(lowrank_vit.__all__)


def test_every_public_name_is_explained() -> None:
    """A function or a class by its docstring, a constant by a sentence of the page."""
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    things = {name: getattr(lowrank_vit, name) for name in lowrank_vit.__all__}
    coded = {name for name, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    assert len(coded) > 30
    assert [name for name in sorted(coded) if not inspect.getdoc(things[name])] == []
    assert [name for name in sorted(set(things) - coded) if f"`{name}` " not in text] == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `make browser` installs Debian's, as root")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_pages_fit_the_window_and_ask_for_nothing(site: Path, width: int, scheme: Literal["light", "dark"]) -> None:
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.set_default_timeout(120_000)  # milliseconds; a busy machine takes its time
        tab.on("request", lambda request: None if request.url.startswith(LOCAL) else wrong.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        for name in PAGES:
            tab.goto((site / name).as_uri())
            if tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                wrong.append(f"{name} is wider than the window")
            schemes = tab.evaluate("getComputedStyle(document.body).colorScheme")
            assert ("dark" in schemes) == (scheme == "dark")
        browser.close()
    assert wrong == []


TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 120


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXT) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []

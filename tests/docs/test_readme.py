"""The README is short, its links lead somewhere, and no result on its first screen was typed by hand."""

from __future__ import annotations

import re

from experiments.report.render import PLACE
from tests.support.sources import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = TEXT.partition("\n## ")[0]
RESULT = re.compile(r"\d[\d.,]*\s?(?:%|points|M\b|top-1|times)")


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 180


def test_results_of_the_first_screen_are_rendered() -> None:
    places = list(PLACE.finditer(FIRST_SCREEN))
    assert any(RESULT.search(place[0]) for place in places)
    assert RESULT.findall(PLACE.sub("", FIRST_SCREEN)) == []


def test_the_first_screen_says_how_to_begin() -> None:
    for line in ("pip install", "import lowrank_vit", "lowrank_vit.compress(", "make reproduce-table2", "make test"):
        assert line in FIRST_SCREEN
    assert len(re.findall(r"^lowrank-vit \w+", FIRST_SCREEN, re.MULTILINE)) == 5


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXT) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []

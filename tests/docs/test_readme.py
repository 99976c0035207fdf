"""The README is short, its links lead somewhere, and no result on its first screen was typed by hand."""

import re

from tests.support.sources import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 120


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXT) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []

"""The first pictures of the pages: of what is published, and legible on light and on dark paper."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from experiments.report.overview import NAMES, TABLES, THEMES, methods, write_figures
from experiments.report.publish import ROOT
from experiments.report.render import PUBLISHED
from experiments.report.styles import COLOURS, STYLES

SAMPLES = PUBLISHED / "imagenet-samples"
FIGURES = sorted(f"{name}-{theme}.svg" for name in ("blocks", "pareto") for theme in THEMES)
ROW = {
    "id": "deit_t/best-40", "method": "Beyond (best)", "status": "done", "reduction": 0.4, "top1": 70.0,
    "protocol": "training-free, 900 calibration images",
}  # fmt: skip


def written(folder: Path, **tables: list[dict[str, object]]) -> Path:
    """Published tables."""
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps({"rows": rows}))
    return folder


def luminance(colour: str) -> float:
    """Of a colour #rrggbb, as WCAG has it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_of_what_is_published(name: str, tmp_path: Path) -> None:
    """``python -m experiments publish`` draws it."""
    write_figures(SAMPLES, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FIGURES
    assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "figures" / name).read_bytes()


def test_every_method_has_a_line_and_a_name() -> None:
    series = methods(SAMPLES)
    assert len(series) >= 7
    shown = "".join(ElementTree.parse(ROOT / "docs" / "figures" / "pareto-dark.svg").getroot().itertext())
    for name in series:
        assert NAMES[name] in shown
    assert "of DeiT-Tiny" in shown


def test_rows_are_of_one_model_untrained_and_of_the_first_table_that_has_them(tmp_path: Path) -> None:
    others = [
        ROW | {"id": "deit_b/best-40"},
        ROW | {"protocol": "calibration-distilled", "reduction": 0.5},
        ROW | {"status": "reported", "reduction": 0.6},
        ROW | {"method": "of no known look", "reduction": 0.7},
        ROW | {"method": "Baseline", "reduction": None},
    ]
    larger = ROW | {"id": "deit_t/best-25", "reduction": 0.25}
    folder = written(tmp_path, table3=[ROW | {"top1": 1.0}, larger], table_best=[ROW, *others])
    assert methods(folder) == {"best": [larger, ROW]}


def test_blocks_are_drawn_as_means_over_the_seeds(tmp_path: Path) -> None:
    """Of 0 and 2x as of x and x."""
    drawn = []
    for name, factors in (("apart", (0, 2)), ("alike", (1, 1))):
        (folder := tmp_path / name).mkdir()
        for table in TABLES:
            shutil.copy(SAMPLES / f"{table}.json", folder)
        content = json.loads((SAMPLES / "figure_loss.json").read_text())
        results = next(iter(content["measured"].values()))
        results[:] = [_scaled(results[0], factor) for factor in factors]
        (folder / "figure_loss.json").write_text(json.dumps(content))
        write_figures(folder, folder / "figures")
        drawn.append((folder / "figures" / "blocks-light.svg").read_bytes())
    assert drawn[0] == drawn[1]


def _scaled(result: dict[str, Any], factor: float) -> dict[str, Any]:
    parts = {
        name: {**part, "measured": [factor * value for value in part["measured"]]}
        for name, part in result["parts"].items()
    }
    return {**result, "parts": parts}


@pytest.mark.parametrize(("theme", "paper"), [("light", "#ffffff"), ("dark", "#1e2129")])
def test_what_is_drawn_is_seen_on_its_paper(theme: str, paper: str) -> None:
    index, ink, _ = THEMES[theme]
    assert contrast(ink, paper) > 7
    assert all(contrast(COLOURS[STYLES[name].name][index], paper) > 3 for name in NAMES)

"""The first pictures of the pages: of what is published, and legible on light and on dark paper."""

import json
from pathlib import Path

import pytest

from experiments.report.overview import THEMES, methods, write_figures
from experiments.report.publish import ROOT
from experiments.report.render import PUBLISHED

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_of_what_is_published(name: str, tmp_path: Path) -> None:
    """``python -m experiments publish`` draws it."""
    write_figures(SAMPLES, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FIGURES
    assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "figures" / name).read_bytes()


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

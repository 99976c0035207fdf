"""The folders of the experiments import in one direction, no modules import each other, and one folder knows of wandb."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.import_graph import faults, graph_of

ROOT = Path(__file__).parent.parent.parent / "experiments"
LAYERS = {  # lowest first: a folder, and the folders that it may import
    "tables": (),
    "tracking": (),
    "jobs": ("tables", "tracking"),
    "measures": ("jobs",),
    "runner": ("tables", "tracking", "jobs"),
    "report": ("tables", "jobs", "runner"),
    "__main__": ("tables", "tracking", "jobs", "runner", "report"),
}
OUTSIDE = {"wandb": "tracking", "wandb_workspaces": "tracking"}  # a library, and the folder that alone may import it


def test_folders_import_in_one_direction() -> None:
    assert faults(ROOT, LAYERS, OUTSIDE) == []


def test_the_graph_is_the_real_one() -> None:
    inside, outside = graph_of(ROOT)
    assert "experiments.jobs.stages" in inside["experiments.jobs.run"]  # within a function
    assert "experiments.report.drawing.energy" in inside["experiments.report.pictures"]
    assert "experiments.jobs.measure" in inside["experiments.measures.energy"]
    assert "wandb" in outside["experiments.tracking.runs"]


ORDER = {"low": (), "high": ("low",)}
SECRET = {"secret": "high"}
USE = """
from shop.low.data import x
"""
OTHER = """
def f():
    from shop.high import use
    import secret.part
"""
FILES = {"high/use.py": USE, "high/other.py": OTHER, "low/data.py": "import json\n"}
CYCLE = "cycle: shop.high.other -> shop.high.use -> shop.high.other"
UPWARDS = ["shop.low.new imports shop.high", "shop.low.new imports shop.high.use"]


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A package in order, to plant faults in."""
    root = tmp_path / "shop"
    for name, text in (FILES | dict.fromkeys(("__init__.py", "low/__init__.py", "high/__init__.py"), "")).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_an_ordered_package_has_no_faults(planted: Path) -> None:
    assert faults(planted, ORDER, SECRET) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("high/use.py", "def f():\n    from shop.high.other import f\n", [CYCLE]),
        ("high/use.py", "from . import other\n", [CYCLE]),
        ("high/use.py", "if TYPE_CHECKING:\n    import shop.high.other\n", [CYCLE]),
        ("low/new.py", "def f():\n    from shop.high import use\n", UPWARDS),
        ("low/new.py", "from ..high.use import x\n", UPWARDS),
        ("low/new.py", "def f():\n    import secret\n", ["shop.low.new imports secret"]),
        ("stray.py", "", ["shop.stray is in no layer"]),
        ("high/__init__.py", "from shop.high.use import x\n", ["cycle: shop.high -> shop.high.use -> shop.high"]),
    ],
)
def test_a_planted_fault_is_reported(planted: Path, name: str, text: str, expected: list[str]) -> None:
    (planted / name).write_text(text)
    assert faults(planted, ORDER, SECRET) == expected

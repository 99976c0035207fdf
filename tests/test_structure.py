"""The way of the data is one direction: no stage imports another stage, and experiments read public names only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = [
    "data",
    "calibrate",
    "decompose",
    "allocate",
    "compensate",
    "fold",
    "measured",
    "refit",
    "finetune",
    "distill",
    "quantize",
    "evaluate",
    "skeleton",
    "storage",
    "export",
    "benchmark",
]
SHARED_GROUND = {"storage": {"skeleton"}, "skeleton": {"compensate"}}  # a saved Z is rebuilt by the code that made it


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(name: str) -> list[Path]:
    folder = ROOT / "lowrank_vit" / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another(stage: str) -> None:
    assert sources(stage)
    others = [
        f"lowrank_vit.{other}" for other in STAGES if other != stage and other not in SHARED_GROUND.get(stage, ())
    ]
    for path in sources(stage):
        for name in imports(path):
            assert not any(name == other or name.startswith(f"{other}.") for other in others), f"{path}: {name}"


def test_experiments_read_public_names_only() -> None:
    files = sorted((ROOT / "experiments").rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            if name.startswith("lowrank_vit"):
                assert not any(part.startswith("_") for part in name.split(".")), f"{path}: {name}"


def test_the_package_does_not_know_of_experiments() -> None:
    files = sorted((ROOT / "lowrank_vit").rglob("*.py"))
    assert len(files) > 20
    for path in files:
        assert not any(name.split(".")[0] in ("experiments", "tests", "wandb") for name in imports(path)), path


def test_the_lock_names_the_public_index_only() -> None:
    lock = (ROOT / "uv.lock").read_text()
    hosts = {line.split("://")[1].split("/")[0] for line in lock.replace('"', "\n").splitlines() if "://" in line}
    assert hosts == {"pypi.org", "files.pythonhosted.org"}

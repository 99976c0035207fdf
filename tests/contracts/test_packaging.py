"""What is imported is declared, and an extra that is missing is named in one line."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

import lowrank_vit
from experiments.__main__ import main as experiments
from experiments.report import publish
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.extras import EXTRAS, require
from tests.support.commands import STANDIN, refused
from tests.support.sources import ROOT

DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
OURS = {"lowrank_vit", "experiments"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXPERIMENTS = "pip install 'lowrank-vit[experiments]'"


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", requirement)[0] for requirement in requirements}


def distribution(package: str) -> str:
    return DISTRIBUTIONS.get(package, package.replace("_", "-"))


def third_party(path: Path) -> set[str]:
    """What a file imports of others: at its top, within functions, and for the type checker."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return {distribution(name) for name in found - OURS - sys.stdlib_module_names}


def imported_by(package: str) -> set[str]:
    return set().union(*(third_party(path) for path in (ROOT / package).rglob("*.py")))


def undeclared(package: str) -> set[str]:
    in_extras = {distribution(name) for packages in EXTRAS.values() for name in packages}
    return imported_by(package) - names(PROJECT["dependencies"]) - in_extras


def test_the_version_is_written_once_and_told_by_the_changelog_and_the_citation() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert f"\nversion: {lowrank_vit.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    latest = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert latest == lowrank_vit.__version__


@pytest.mark.parametrize("package", sorted(OURS))
def test_every_import_is_declared(package: str) -> None:
    assert {"torch", "matplotlib"} <= imported_by(package)
    assert undeclared(package) == set()


def test_the_scan_sees_imports_within_functions_and_of_modules(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text("import os, a.b\nfrom lowrank_vit import c\ndef f():\n    from d_e.g import h\n")
    assert third_party(tmp_path / "new.py") == {"a", "d-e"}


def test_no_dependency_is_declared_for_nothing() -> None:
    assert names(PROJECT["dependencies"]) <= imported_by("lowrank_vit")


def test_the_lines_name_the_extras_that_are_declared() -> None:
    declared = {extra: names(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}
    assert {extra: set(map(distribution, packages)) for extra, packages in EXTRAS.items()} == declared
    assert not set().union(*declared.values()) & names(PROJECT["dependencies"])


def test_what_is_missing_is_named_with_all_its_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "jinja2"):
        monkeypatch.setitem(sys.modules, package, None)
    require("this", "matplotlib", "onnxruntime")
    with pytest.raises(InputError, match=r"^this needs onnx, jinja2: pip install 'lowrank-vit\[export,experiments\]'$"):
        require("this", "onnx", "matplotlib", "jinja2")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lowrank_vit.data import digits

    digits._splits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    line = refused(capsys, "evaluate", "--model", STANDIN, "--data", "digits")
    assert line == f"error: this needs sklearn: {EXPERIMENTS}"


def test_a_failed_import_of_anything_else_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank_vit.cli import main

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="timm"):
        main(["list", "models"])


def test_wandb_is_missed_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = tmp_path / "out"
    line = refused(capsys, "finetune", tmp_path / "none", "--data", "digits", "--logger", "wandb", "--out", out)
    assert line == f"error: --logger wandb needs wandb: {EXPERIMENTS}"
    assert list(tmp_path.iterdir()) == []


def said_by_experiments(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        experiments(arguments)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("jinja2", ["list"]), ("matplotlib", ["report", "table1"]), ("sklearn", ["run", "table1", "--results", "none"])],
)
def test_experiments_without_their_extra(
    missing: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    line = said_by_experiments(capsys, *arguments)
    assert line == f"error: python -m experiments needs {missing}: {EXPERIMENTS}\n"


def test_an_installed_package_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")  # the wheel has none
    assert "run it in a checkout" in said_by_experiments(capsys, "publish", "table1")
    assert list(tmp_path.iterdir()) == []

"""What is imported is declared, and an extra that is missing is named in one line."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

import lowrank_vit
from lowrank_vit.runtime.extras import EXTRAS
from tests.support.sources import ROOT

DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
OURS = {"lowrank_vit", "experiments"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(OURS))
def test_every_import_is_declared(package: str) -> None:
    assert {"torch", "matplotlib"} <= imported_by(package)
    assert undeclared(package) == set()


@pytest.mark.slow
def test_no_dependency_is_declared_for_nothing() -> None:
    assert names(PROJECT["dependencies"]) <= imported_by("lowrank_vit")


def test_the_lines_name_the_extras_that_are_declared() -> None:
    declared = {extra: names(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}
    assert {extra: set(map(distribution, packages)) for extra, packages in EXTRAS.items()} == declared
    assert not set().union(*declared.values()) & names(PROJECT["dependencies"])

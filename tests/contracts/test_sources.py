"""What the sources promise: imports are declared, nothing that is opened runs code, and the examples give what they say."""

import ast
import doctest
import importlib
import re
import subprocess
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


PACKAGES = ("lowrank_vit", "experiments", "benchmarks")


def written(path: Path) -> int:
    """How many examples a file has."""
    return sum(line.lstrip().startswith(">>> ") for line in path.read_text().splitlines())


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if written(path))


def test_the_examples_of_every_file() -> None:
    assert len(FILES) > 20
    for path in FILES:
        result = doctest.testmod(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)))
        assert (result.attempted, result.failed) == (written(path), 0), path


OPEN = ("torch.load", "trainer.fit", "trainer.validate", "trainer.test")  # Lightning's: only where a file is named


def unsafe(text: str) -> list[str]:
    """The calls of a source that would unpickle a file."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    options = {ast.unparse(call): {word.arg: ast.unparse(word.value) for word in call.keywords} for call in calls}
    opening = {c: o for c, o in options.items() if c.startswith(OPEN) and ("torch" in c or "ckpt_path" in o)}
    found = [call for call, own in opening.items() if own.get("weights_only") != "True"]
    return found + [call for call, own in options.items() if own.get("allow_pickle") == "True"]


def test_nothing_that_is_opened_is_unpickled() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    assert sum("torch.load(" in text for text in texts) >= 3
    assert [call for text in texts for call in unsafe(text)] == []
    for line in (
        "torch.load(x)",
        "torch.load(x, weights_only=no)",
        "trainer.fit(m, ckpt_path=x)",
        "np.load(x, allow_pickle=True)",
    ):
        assert unsafe(line) == [line]


OFFLINE = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError(f"a socket was opened: {arguments}")

class Refused(socket.socket):
    def __init__(self, *arguments, **options):
        refuse(*arguments)

socket.socket, socket.create_connection, socket.getaddrinfo = Refused, refuse, refuse
sys.addaudithook(lambda event, arguments: refuse(event) if event in ("socket.connect", "socket.bind") else None)
import lowrank_vit
listed = lowrank_vit.__all__ if sys.argv[1] == "all" else []
for name in listed:
    getattr(lowrank_vit, name)
print("imported", len(listed))
"""


@pytest.mark.parametrize("listed", ["none", pytest.param("all", marks=pytest.mark.slow)])
def test_importing_the_package_opens_no_socket(listed: str) -> None:
    """Nor does importing what is behind its public names, which is done when they are first asked for."""
    command = [sys.executable, "-c", OFFLINE, listed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("imported "), done.stderr

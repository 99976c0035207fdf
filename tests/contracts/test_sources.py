"""What the sources promise: nothing that is opened runs code, the examples give what they say, public names are there."""

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

DISTRIBUTIONS = {"sklearn": "scikit-learn"}
TIMM_TYPES = re.compile(r"from timm\.(layers|models)\S* import .*[A-Z]")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_written_once_and_told_by_the_changelog_and_the_citation() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert f"\nversion: {lowrank_vit.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    latest = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert latest == lowrank_vit.__version__


def test_the_lines_name_the_extras_that_are_declared() -> None:
    declared = {
        extra: {re.split(r"[<>=\[ ]", requirement)[0] for requirement in requirements}
        for extra, requirements in PROJECT["optional-dependencies"].items()
    }
    known = {
        extra: {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names} for extra, names in EXTRAS.items()
    }
    assert known == declared


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


@pytest.mark.slow
def test_every_public_name_is_there() -> None:
    for name in lowrank_vit.__all__:
        assert getattr(lowrank_vit, name) is not None
    assert dir(lowrank_vit) == sorted(lowrank_vit.__all__)  # what a notebook completes


def test_types_of_timm_are_known_to_families_only() -> None:
    root = ROOT / "lowrank_vit"
    using = [path for path in root.rglob("*.py") if TIMM_TYPES.search(path.read_text(encoding="utf-8"))]
    assert {path.relative_to(root).parts[0] for path in using} == {"architectures", "models"}


def test_the_lock_names_the_public_index_only() -> None:
    lock = (ROOT / "uv.lock").read_text()
    hosts = {line.split("://")[1].split("/")[0] for line in lock.replace('"', "\n").splitlines() if "://" in line}
    assert hosts == {"pypi.org", "files.pythonhosted.org"}

"""Every example in a docstring is run, and gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

from tests.support.sources import ROOT

PACKAGES = ("lowrank_vit", "experiments", "benchmarks")


def written(path: Path) -> int:
    """How many examples a file has."""
    return sum(line.lstrip().startswith(">>> ") for line in path.read_text().splitlines())


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if written(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_examples_of_a_file(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted == written(path)
    assert result.failed == 0

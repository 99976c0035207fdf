"""Every example in a docstring is run, and gives what it says."""

import doctest
import importlib
from pathlib import Path

from tests.support.sources import ROOT

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

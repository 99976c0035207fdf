"""Fixtures that several files share."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import become
from tests.support.sources import ROOT


def pytest_configure(config: pytest.Config) -> None:
    """Tests compute on the CPU, also where there is a GPU, but for those of ``pytest -m gpu``."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that the other process does the rest meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("real_data") is None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and images; tests that use it carry the marker ``real_data``."""
    folder = Path(os.environ.get("LOWRANK_VIT_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "weights").is_dir() or not (folder / "imagenet-samples").is_dir():
        pytest.skip(f"no real data: {folder} has no weights/ and imagenet-samples/ (set LOWRANK_VIT_DATA)")
    return folder


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes ``torch.distributed`` say that this is one of several processes."""
    return functools.partial(become, monkeypatch)

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and images; tests that use it carry the marker ``real_data``."""
    folder = Path(os.environ.get("LOWRANK_VIT_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "weights").is_dir() or not (folder / "imagenet-samples").is_dir():
        pytest.skip(f"no real data: {folder} has no weights/ and imagenet-samples/ (set LOWRANK_VIT_DATA)")
    return folder

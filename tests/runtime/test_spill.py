"""Tensors on the disk: what comes back is what was put there, and nothing is left behind."""

import sys
from pathlib import Path

import pytest
import torch

from lowrank_vit.runtime.tensors import Spill


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def open_files(folder: Path) -> list[str]:
    """The files in a folder that this process has open, those without a name among them."""
    links = list(Path("/proc/self/fd").iterdir())
    return [target for target in (str(link.readlink()) for link in links if link.is_symlink()) if str(folder) in target]


def test_tensors_come_back_bit_for_bit(cache: Path) -> None:
    """Of any type and shape, replaced by smaller and by larger ones, from memory that is not contiguous."""
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
    first = {(kind, size): torch.randn(size, 3, size).to(kind).mT for kind in kinds for size in (0, 1, 7)}
    smaller = {key: torch.randn(2).to(torch.float16) for key in list(first)[2::3]}
    larger = {key: torch.randn(50, 11) for key in list(first)[1::2]}
    with Spill() as kept:
        expected: dict[tuple[torch.dtype, int], torch.Tensor] = {}
        for tensors in (first, smaller, larger):
            for key, tensor in tensors.items():
                kept[key] = tensor
            expected |= tensors
            assert len(kept) == len(first)
            for found, (key, tensor) in zip(kept, expected.items(), strict=True):
                for again in (found, kept[key]):
                    assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
                    assert torch.equal(again, tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names the files that are open")
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind(cache: Path, error: type[BaseException] | None) -> None:
    try:
        with Spill() as kept:
            kept["x"] = torch.ones(1000)
            assert list(cache.iterdir()) == []
            assert len(open_files(cache)) == 1
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert list(cache.iterdir()) == open_files(cache) == []

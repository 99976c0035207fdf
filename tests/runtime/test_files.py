"""Files whole or not at all, whatever kills a process; and tensors on the disk, of which nothing is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowrank_vit import InputError
from lowrank_vit.runtime.files import TEMPORARY, replacing, write_json, write_text
from lowrank_vit.runtime.tensors import Spill
from tests.support.hostile import full_disk


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path, folder: bool
) -> None:
    source = f"""
import os
from pathlib import Path
from lowrank_vit.runtime.files import replacing
with replacing(Path({str(tmp_path / "x")!r}), folder={folder}):
    print("there", flush=True)
    input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        (left,) = tmp_path.iterdir()
        assert left.name.endswith(TEMPORARY)
        write_text(tmp_path / "x.y", "another file")
        write_text(tmp_path / "x", "first")
        assert left.exists()
        other.kill()
    write_text(tmp_path / "x.y", "whose name begins alike")
    assert left.exists()
    write_text(tmp_path / "x", "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.y"]
    assert (tmp_path / "x").read_text() == "second"


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    for culprit in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, culprit, full_disk)
            with pytest.raises(InputError, match=r"file\.json: No space left on device; free some space") as caught:
                write_json(path, {"new": 2})
        assert "\n" not in str(caught.value)
        assert path.read_text() == '{\n  "old": 1\n}\n'
        assert list(tmp_path.iterdir()) == [path]


def make(target: Path, text: str, failing: Exception | None = None) -> None:
    with replacing(target, folder=True) as temporary:
        (temporary / "file").write_text(text)
        if failing is not None:
            raise failing


def test_a_folder_is_there_with_all_its_files_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with pytest.raises(ZeroDivisionError):
        make(target, "half", ZeroDivisionError())
    assert list(tmp_path.iterdir()) == []
    make(target, "whole")
    assert (target / "file").read_text() == "whole"
    with pytest.raises(InputError, match="not empty"):
        make(target, "another")
    assert (target / "file").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


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

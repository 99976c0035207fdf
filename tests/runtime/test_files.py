"""Files whole or not at all: what a full disk, a killed process and a living one leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_vit import InputError
from lowrank_vit.runtime.files import TEMPORARY, replacing, write_json, write_text
from tests.support.disks import full_disk


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

"""Every registered format of exported files: what it says of itself, and that its files do what the model does."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import timm
import torch

from lowrank_vit.stages.export.export import export
from lowrank_vit.stages.export.formats import EXPORTERS
from tests.support.models import tiny
from tests.support.sources import ROOT

FORMATS = EXPORTERS.names()


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_folder_of_this_machine_is_in_the_file(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    export(tiny(), path, file_format)
    parts = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    for folder in (ROOT, Path(torch.__file__).parents[1], Path(timm.__file__).parents[1]):
        assert not any(str(folder).encode() in part for part in parts)

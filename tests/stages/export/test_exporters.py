"""Every registered format of exported files: what it says of itself, and that its files do what the model does."""

import zipfile
from pathlib import Path

import pytest
import timm
import torch

from lowrank_vit import compress, get_recipe
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.runtime.extras import EXTRA_OF
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.export.export import export
from lowrank_vit.stages.export.formats import EXPORTERS, files
from tests.support.models import images, tiny
from tests.support.sources import ROOT

FORMATS = EXPORTERS.names()


def test_there_are_formats_with_suffixes_of_their_own() -> None:
    suffixes = {EXPORTERS.get(name).suffix for name in FORMATS}
    assert len(suffixes) == len(FORMATS) >= 2
    assert all(suffix.startswith(".") for suffix in suffixes)


@pytest.mark.parametrize("name", FORMATS)
def test_an_extra_installs_what_it_needs(name: str) -> None:
    assert set(EXPORTERS.get(name).packages) <= set(EXTRA_OF)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_no_folder_of_this_machine_is_in_the_file(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{EXPORTERS.get(file_format).suffix}"
    export(tiny(), path, file_format)
    parts = [each.read_bytes() for each in tmp_path.iterdir()]
    assert len(parts) == len(files(EXPORTERS.get(file_format)(), path))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    for folder in (ROOT, Path(torch.__file__).parents[1], Path(timm.__file__).parents[1]):
        assert not any(str(folder).encode() in part for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_every_z(file_format: str, tmp_path: Path) -> None:
    """One model with a Z of each kind, each in a layer of its own."""
    model, names = tiny(), ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    for z, name in zip(COMPENSATIONS.names(), names, strict=True):
        recipe = get_recipe("paper").but(compensation=z, solver="closed_form", allocator="uniform")  # none stays dense
        layer = compress(tiny(), [images(12)], recipe, 0.3)[0].get_submodule(f"blocks.0.{name}")
        assert isinstance(layer, LowRankLinear)
        assert (layer.correction is None) == (z == "low_rank")  # that one folds
        replace_module(model, f"blocks.0.{name}", layer)
    assert export(model, tmp_path / f"model{EXPORTERS.get(file_format).suffix}", file_format)[3] < 1e-4

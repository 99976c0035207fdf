"""The model that comes with the package loads, and sees what is in a photograph."""

from pathlib import Path

import pytest
from PIL import Image

import lowrank_vit
from lowrank_vit.cli import main
from lowrank_vit.storage.contents import check_contents, file_bytes, load_report
from lowrank_vit.storage.shipped import shipped, shipped_folder
from tests.support.commands import refused

NAME = "deit_tiny_4mib"


def test_it_is_whole_and_small_and_free_to_be_given_away() -> None:
    folder = shipped_folder(NAME)
    assert shipped() == [NAME]
    assert folder is not None
    assert check_contents(folder)
    assert file_bytes(folder) <= 4 * 2**20
    assert load_report(folder)["budget"]["asked"] == "bytes=4MiB"
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    for file in folder.iterdir():
        assert not any(part in file.read_bytes() for part in (b"/work", b"/home", b"/root"))


def test_it_loads_and_names_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 200), (250, 250, 250)).save(tmp_path / "white.png")
    model = lowrank_vit.load(NAME)
    found = lowrank_vit.classify(model, tmp_path / "white.png", top=3)
    assert len(found) == 3
    assert all(0 < percent <= 100 and not name.startswith("class ") for name, percent in found)
    assert [percent for _, percent in found] == sorted((percent for _, percent in found), reverse=True)
    main(["classify", NAME, str(tmp_path / "white.png"), "--top", "3"])
    assert all(name in capsys.readouterr().out for name, _ in found[:1])
    (tmp_path / "text.jpg").write_text("no image")
    assert "cannot read the image" in refused(capsys, "classify", NAME, tmp_path / "text.jpg").partition("\n")[0]


@pytest.mark.slow
@pytest.mark.real_data
def test_it_sees_what_photographs_show(real_data: Path) -> None:
    classes = sorted((real_data / "imagenet-samples" / "validation").iterdir())
    photographs = [next(folder.iterdir()) for folder in classes]
    from timm.data import ImageNetInfo

    info, model, hits = ImageNetInfo(), lowrank_vit.load(NAME), 0
    for photograph in photographs[::20]:
        wanted = info.label_name_to_description(photograph.parent.name).partition(",")[0]
        hits += wanted in [name for name, _ in lowrank_vit.classify(model, photograph)]
    assert hits >= 0.8 * len(photographs[::20])

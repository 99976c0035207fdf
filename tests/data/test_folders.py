"""Folders of images: classes and their numbers, what is left out, what is broken."""

from pathlib import Path

import pytest

from lowrank_vit.data import open_source
from lowrank_vit.runtime.errors import InputError
from tests.support.cases import in_turn
from tests.support.image_folders import TENCH, TOILET_PAPER, data, labels, one_line, write


def test_a_wnid_is_labelled_by_its_place_in_imagenet(tmp_path: Path) -> None:
    write(tmp_path / "train" / TENCH, 1)
    write(tmp_path / "train" / TOILET_PAPER, 2)
    write(tmp_path / "val" / TOILET_PAPER, 3)
    source = open_source(f"imagefolder:{tmp_path}")
    assert source.num_classes == 1000
    assert list(source.split("train").labels) == [0, 999]
    assert list(source.split("validation").labels) == [999]
    assert source.split("validation")[0][1] == 999


def test_other_classes_are_ranked_over_both_splits(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat", 1)
    write(tmp_path / "train" / "emu", 2)
    write(tmp_path / "validation" / "dog", 3)
    write(tmp_path / "validation" / "emu", 4)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    source = open_source(f"imagefolder:{tmp_path}")
    assert source.num_classes == 3
    assert list(source.split("train").labels) == [0, 2]
    assert list(source.split("validation").labels) == [1, 2]


@pytest.mark.real_data
def test_real_sample_labels(real_data: Path) -> None:
    source = open_source(f"imagefolder:{real_data}/imagenet-samples")
    assert list(source.split("train").labels) == list(range(1000))
    validation = source.split("validation")
    assert len(validation) == 1000
    assert len(set(validation.labels)) == 430
    assert max(validation.labels) > 430  # a rank among the folders present would stay below


def test_one_folder_for_both_splits_is_refused(folder: Path) -> None:
    for file in sorted((folder / "validation").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (folder / "validation").rmdir()
    (folder / "validation").symlink_to(folder / "train")
    with pytest.raises(InputError, match="same folder"):
        open_source(f"imagefolder:{folder}")


@pytest.mark.parametrize(("workers", "content"), in_turn([0, 1], [b"", b"junk", "truncated"]))
def test_a_broken_image_is_named(folder: Path, workers: int, content: bytes | str) -> None:
    file = folder / "validation" / "b" / "110.png"
    file.write_bytes(file.read_bytes()[:200] if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"110\.png") as error:
        labels(data(folder, workers=workers).val_dataloader())
    assert one_line(error).startswith("cannot read the image")


@pytest.mark.parametrize("name", ["valid", "Val", "VALIDATION"])
def test_other_names_of_validation(name: str, tmp_path: Path) -> None:
    for split in ("Train" if name == "Val" else "train", name):
        for value, kind in enumerate("ab"):
            write(tmp_path / split / kind, value)
    assert [int(label) for _, labels in data(tmp_path).val_dataloader() for label in labels] == [0, 1]
    assert len(data(tmp_path).source.split("train")) == 2


def test_an_empty_class_folder_is_told_and_what_archives_leave_is_no_class(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for value, kind in enumerate("bc"):
            write(tmp_path / split / kind, value)
        (tmp_path / split / "__MACOSX").mkdir()
    assert data(tmp_path).source.names == ("b", "c")
    (tmp_path / "train" / "a").mkdir()
    with pytest.warns(UserWarning, match="class folder 'a' has no images, and counts as a class all the same"):
        assert data(tmp_path).source.names == ("a", "b", "c")
    write(tmp_path / "validation" / "bb", 3)
    with pytest.warns(
        UserWarning, match="class folder 'bb' is in validation/ alone, and counts as a class all the same"
    ):
        assert data(tmp_path).source.names == ("a", "b", "bb", "c")


def test_a_link_to_nowhere_is_named(folder: Path) -> None:
    (folder / "validation" / "b" / "lost.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(InputError, match=r"lost\.png \(No such file or directory\): replace or remove it"):
        labels(data(folder).val_dataloader())

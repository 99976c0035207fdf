"""Folders of images: what class names mean, what is left out, what is broken."""

from pathlib import Path

import pytest

import lowrank_vit
from lowrank_vit.data import open_source
from lowrank_vit.data.classes import class_labels, imagenet_wnids
from lowrank_vit.runtime.errors import InputError
from tests.support.cases import in_turn
from tests.support.image_folders import TENCH, TOILET_PAPER, data, labels, one_line, write
from tests.support.models import tiny


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


def test_other_names_of_validation(tmp_path: Path) -> None:
    for train, name in (("train", "valid"), ("Train", "Val"), ("train", "VALIDATION")):
        for split in (train, name):
            for value, kind in enumerate("ab"):
                write(tmp_path / name / split / kind, value)
        assert labels(data(tmp_path / name).val_dataloader()) == [0, 1]
        assert len(data(tmp_path / name).source.split("train")) == 2


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


TWELVE = [str(number) for number in range(12)]


@pytest.fixture
def twelve(tmp_path: Path) -> Path:
    for name in TWELVE:
        write(tmp_path / "data" / "train" / name, int(name))
    return tmp_path / "data"


def test_numbers_are_the_labels_themselves(twelve: Path) -> None:
    with pytest.warns(UserWarning, match="labels themselves"):
        source = open_source(f"imagefolder:{twelve}")
    split = source.split("train")
    assert source.num_classes == 12
    assert sorted(split.labels) == list(range(12))
    assert all(split[index][1] == split.labels[index] for index in range(12))
    assert [Path(file).parent.name for file in split.files] == [str(label) for label in split.labels]  # type: ignore[attr-defined]


def test_other_numbers_are_ranked_as_numbers() -> None:
    """As of Oxford's flowers, 1 .. 102; torchvision ranks 10 before 2."""
    names = [str(number) for number in range(1, 13)]
    with pytest.warns(UserWarning, match=r'1, 2, 3, 4, ... are ranked as numbers.*1, 10, 11.*`class_order="text"`'):
        labels, count = class_labels(names, "flowers")
    assert count == 12
    assert labels == {str(number): number - 1 for number in range(1, 13)}
    with pytest.warns(UserWarning, match="ranked as numbers"):
        assert class_labels(names, "flowers", classes=12)[0] == labels
    with pytest.warns(UserWarning, match="labels themselves"):
        assert class_labels(["7", "10"], "some", classes=12) == ({"7": 7, "10": 10}, 12)
    assert class_labels(names, "flowers", "text")[0]["10"] == 1


def test_padded_numbers_need_no_word(recwarn: pytest.WarningsRecorder) -> None:
    assert class_labels(["001", "002", "010"], "flowers")[0] == {"001": 0, "002": 1, "010": 2}
    assert class_labels(["1", "01", "2"], "twice")[0] == {"01": 0, "1": 1, "2": 2}
    assert not recwarn.list


def test_wnids_are_those_of_the_models_imagenet() -> None:
    chosen = sorted(imagenet_wnids())[5::300]
    assert class_labels(chosen, "some", classes=1000)[0] == {name: imagenet_wnids()[name] for name in chosen}
    assert class_labels(chosen, "all", classes=len(chosen)) == ({name: i for i, name in enumerate(chosen)}, len(chosen))
    labels, count = class_labels(chosen, "some", classes=21843)
    assert count == 21843
    assert labels == {name: imagenet_wnids(21843)[name] for name in chosen}
    assert labels[chosen[0]] != imagenet_wnids()[chosen[0]]
    assert class_labels(chosen, "some", classes=37)[1] == 1000


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [(name, f"give the folder that holds {name}/") for name in ("train", "val")]
    + [("", "move class folders into train/")],
)
def test_class_folders_without_splits_are_refused_with_the_way_out(folder: str, remedy: str, tmp_path: Path) -> None:
    write(tmp_path / folder / "cat", 1)
    with pytest.raises(InputError, match=remedy):
        open_source(f"imagefolder:{tmp_path / folder}")
    with pytest.raises(InputError, match="is a folder: name the files in it"):
        lowrank_vit.classify(tiny(), tmp_path / folder)

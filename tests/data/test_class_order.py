"""What class names mean: wnids, numbers, and names whose natural order is not that of text."""

from pathlib import Path

import pytest

from lowrank_vit.data import open_source
from lowrank_vit.data.classes import class_labels, imagenet_wnids
from tests.support.image_folders import write

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
    assert [Path(file).parent.name for file in split.given.files] == [str(label) for label in split.labels]  # type: ignore[attr-defined]


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

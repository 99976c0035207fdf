"""The loaders of a model's images: transforms, order, workers, and what unlabelled images can be used for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch.utils.data import DataLoader

from lowrank_vit.data import ImageData, open_source
from lowrank_vit.data.loading import training_transform
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import (
    CONFIG,
    GREY,
    data,
    images,
    labels,
    one_line,
    write,
)


def test_unlabelled_images_calibrate_but_do_not_evaluate(tmp_path: Path) -> None:
    write(tmp_path / "train", *range(7))
    write(tmp_path / "validation", 50, 51)
    loose = data(tmp_path)
    assert loose.num_classes is None
    assert labels(loose.calibration_dataloader()) == [-1] * 6
    assert labels(loose.held_out_dataloader()) == [-1]
    for loader, purpose in ((loose.val_dataloader, "evaluation"), (loose.train_dataloader, "fine-tuning")):
        with pytest.raises(InputError, match=f"which {purpose} needs") as error:
            loader()
        one_line(error)
    with pytest.raises(InputError, match="labels"):
        data(tmp_path, stratified=True).calibration_dataloader()


def test_the_evaluation_transform_is_timms(folder: Path) -> None:
    loaded = images(data(folder).val_dataloader())
    source = open_source(f"imagefolder:{folder}").split("validation")
    transform = timm.data.create_transform(**CONFIG, is_training=False)
    assert loaded.equal(torch.stack([transform(source[index][0]) for index in range(len(source))]))


def test_the_augmentation_recorded_is_the_one_used(folder: Path) -> None:
    """The transform is timm's own, less jitter and erasing, and the record has its settings."""
    used, record = training_transform(CONFIG), data(folder).training_record["augmentation"]
    plain = {"color_jitter": None, "auto_augment": None, "re_prob": 0.0}
    settings = {name: CONFIG[name] for name in ("input_size", "interpolation", "mean", "std")}
    assert str(used) == str(timm.data.create_transform(**settings, **plain, is_training=True))
    crop, flip = used.transforms[:2]
    assert (record["crop_area"], record["crop_ratio"]) == ([*crop.scale], [*crop.ratio])
    assert (record["flips"], record["interpolation"]) == (flip.p, str(crop.interpolation).rpartition(".")[2].lower())
    assert data(folder, augment=False).training_record["augmentation"] is None


def test_training_is_resumed_in_the_same_order(folder: Path) -> None:
    def epoch(number: int, workers: int = 0, **options: Any) -> torch.Tensor:
        loader = data(folder, workers=workers, **options).train_dataloader()
        loader.sampler.set_epoch(number)
        return images(loader)

    torch.manual_seed(5)
    first = epoch(2)
    torch.manual_seed(6)
    assert first.shape == (9, 3, 16, 16)
    assert epoch(2).equal(first)
    assert epoch(2, workers=2).equal(first)  # the augmentation too, whatever the workers
    assert not epoch(3).equal(first)
    assert not epoch(2, seed=1).equal(first)
    assert not epoch(2, augment=False).equal(first)


def test_loading_leaves_the_global_randomness_alone(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for loader in (data(folder).train_dataloader(), data(folder).val_dataloader()):
        images(loader)
    assert torch.rand(3).equal(expected)


def test_digits_are_neither_mirrored_nor_cropped() -> None:
    digits = ImageData("digits", GREY, batch_size=2000)
    (train, target), *_ = digits.train_dataloader()
    order = [draw.position for draw in digits.train_dataloader().sampler]
    split = digits.source.split("train")
    plain = torch.stack([torch.from_numpy(np.array(split[index][0])) for index in order])
    assert train.equal((plain.float() / 255 - 0.5).div(0.5).unsqueeze(1))
    assert target.tolist() == [split.labels[index] for index in order]


def test_digits_in_colour() -> None:
    batch, _ = next(iter(ImageData("digits", CONFIG, batch_size=3).val_dataloader()))
    assert batch.shape == (3, 3, 16, 16)
    assert batch[:, 0].equal(batch[:, 2])


@pytest.mark.slow
def test_spawned_workers(folder: Path) -> None:
    loader = data(folder).val_dataloader()
    pickle.loads(pickle.dumps(data(folder)))
    spawned = DataLoader(loader.dataset, 5, num_workers=1, multiprocessing_context="spawn")
    assert images(spawned).equal(images(loader))


@pytest.mark.parametrize("size", [None, (4, 8, 8), (8, 8)])
def test_a_data_config_for_other_channels(folder: Path, size: tuple[int, ...] | None) -> None:
    with pytest.raises(InputError, match="input_size"):
        data(folder, {**CONFIG, "input_size": size})

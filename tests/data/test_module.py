"""The loaders of a model's images: transforms, order, and workers that are kept and gone with their loader."""

import multiprocessing
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.data import DataLoader

from lowrank_vit.data import open_source
from lowrank_vit.data.loading import training_transform
from tests.support.image_folders import CONFIG, data, images


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


@pytest.mark.slow
def test_spawned_workers(folder: Path) -> None:
    loader = data(folder).val_dataloader()
    pickle.loads(pickle.dumps(data(folder)))
    spawned = DataLoader(loader.dataset, 5, num_workers=1, multiprocessing_context="spawn")
    assert images(spawned).equal(images(loader))


def pids() -> set[int | None]:
    """This process's children."""
    return {child.pid for child in multiprocessing.active_children()}


def left(before: set[int | None]) -> list[str]:
    """Describe the children that are not of before and do not end within seconds: on a busy machine that takes a moment."""
    deadline = time.monotonic() + 20
    while pids() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    children = [child for child in multiprocessing.active_children() if child.pid not in before]
    return [f"{child!r}: {state(child.pid)}" for child in children]


def state(pid: int | None) -> str:
    """Return what the kernel says of a process, for the message of a failing test."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError as error:
        return str(error)
    return ", ".join(line for line in lines if line.startswith(("State", "SigBlk", "SigIgn", "SigCgt", "PPid")))


@pytest.mark.slow
def test_kept_workers_load_what_new_ones_load(folder: Path) -> None:
    """Order and augmentation of every epoch, bit by bit, whether or not another epoch came before."""

    def epoch(loader: Any, number: int) -> torch.Tensor:
        loader.sampler.set_epoch(number)
        return images(loader)

    kept, before = data(folder, workers=2).train_dataloader(), pids()
    first, team = epoch(kept, 0), pids() - before
    assert len(team) == 2
    next(iter(kept))  # broken off
    for number in (1, 5, 2):
        assert epoch(kept, number).equal(epoch(data(folder).train_dataloader(), number))
    assert epoch(kept, 0).equal(first)
    assert pids() - before == team  # the same processes in all of them
    del kept
    assert left(before) == []

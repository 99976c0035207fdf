"""Which images are drawn, in which order, on which process; and how files of every mode become grey or RGB."""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowrank_vit.data import ImageData
from lowrank_vit.data.decoding import MARGIN, read_image, to_channels
from lowrank_vit.data.sampling import CALIBRATION, EVALUATION, TRAINING, draw
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import GREY, data, images, one_line, write


def test_the_calibration_subset_is_reproducible(folder: Path) -> None:
    first, second, other = data(folder), data(folder), data(folder, seed=1)
    assert first.calibration_record == second.calibration_record
    assert first.calibration_record["samples"] == 6
    assert first.calibration_record["source"] == f"imagefolder:{folder}"
    assert first.calibration_record["indices_sha256"] != other.calibration_record["indices_sha256"]
    json.dumps(first.calibration_record)
    tensor = first.calibration_tensor()
    assert tensor.shape == (6, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.equal(images(second.calibration_dataloader()))
    assert tensor.equal(images(first.calibration_dataloader()))  # and again


def test_calibration_on_the_evaluation_split_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="refused") as error:
        data(folder, calibration_split="validation")
    one_line(error)


@pytest.mark.parametrize("name", ["val_dataloader", "calibration_dataloader", "held_out_dataloader"])
def test_processes_share_the_images_without_padding(folder: Path, as_rank: Callable[..., None], name: str) -> None:
    options = {"calibration_samples": 7, "held_out_samples": 3}
    write(folder / "train" / "a", *range(30, 51))
    alone = images(getattr(data(folder, **options), name)())
    shares = []
    for rank in range(2):
        as_rank(rank, 2)
        shares.append(images(getattr(data(folder, **options), name)()))
    assert sum(map(len, shares)) == len(alone)
    assert len(alone) % 2 == 1
    for rank, share in enumerate(shares):
        assert share.equal(alone[rank::2])


def test_training_shares_are_of_one_size(folder: Path, as_rank: Callable[..., None]) -> None:
    shares = []
    for rank in range(2):
        as_rank(rank, 2)
        sampler = data(folder).train_dataloader().sampler
        shares.append([draw.position for draw in sampler])
        assert len(sampler) == len(shares[-1]) == 5
    assert set(shares[0] + shares[1]) == set(range(9))


STREAMS = (CALIBRATION, EVALUATION, TRAINING)


def test_every_stream_and_seed_draws_its_own_numbers() -> None:
    draws = [draw(1000, 50, seed, stream) for seed in (0, 1) for stream in STREAMS]
    for one, other in itertools.combinations(draws, 2):
        assert len(set(one) & set(other)) < 15, "50 of 1000 have 2.5 in common"


def test_a_draw_is_of_distinct_images_from_all_over() -> None:
    chosen = draw(1000, 300, 0, CALIBRATION)
    assert len(set(chosen)) == 300
    assert set(chosen) < set(range(1000))
    assert min(np.bincount(np.array(chosen) // 250, minlength=4)) > 45  # 75 of each quarter
    assert chosen != sorted(chosen)
    assert draw(1000, 100, 0, CALIBRATION) == chosen[:100]
    assert sorted(draw(10, 99, 0, CALIBRATION)) == list(range(10))


def shown(loaded: torch.Tensor) -> list[bytes]:
    """What every image is, in order."""
    return [image.numpy().tobytes() for image in loaded]


@pytest.mark.parametrize("stratified", [False, True])
def test_held_out_images_are_training_images_that_calibration_does_not_use(stratified: bool) -> None:
    """Whatever is chosen by them is chosen without the images that are evaluated."""
    digits = ImageData("digits", GREY, calibration_samples=1290, held_out_samples=90, stratified=stratified)
    with pytest.warns(UserWarning, match="less 90 that are held out"):
        seen, unseen = set(digits.calibration_indices), digits.held_out_indices
    assert len(set(unseen)) == 90
    assert seen.isdisjoint(unseen)
    assert seen.union(unseen) == set(range(1297))
    train, validation = (digits.source.split(name) for name in ("train", "validation"))
    contents = {train.content(index) for index in unseen}
    assert contents.isdisjoint(validation.content(index) for index in range(len(validation)))
    assert digits.held_out_tensor().equal(images(digits.held_out_dataloader()))
    assert torch.cdist(digits.held_out_tensor().flatten(1), digits.calibration_tensor().flatten(1)).min() > 0.1


def test_a_limit_draws_by_the_seed_from_all_over_the_split() -> None:
    def limited(limit: int | None, seed: int = 0) -> list[bytes]:
        return shown(images(ImageData("digits", GREY, limit=limit, seed=seed, batch_size=500).val_dataloader()))

    every, some = limited(None), limited(100)
    places = sorted(map(every.index, some))
    assert len(set(places)) == 100
    assert max(places) > 400  # the first hundred end at 99
    assert sum(place < 250 for place in places) > 25
    assert limited(50) == some[:50]
    assert set(limited(100, seed=1)) != set(some)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    assert np.array_equal(to_channels(deep, 1), [[0, 128, 255]])
    assert np.array_equal(to_channels(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), 1), [[0, 128, 255]])
    assert np.array_equal(to_channels(Image.fromarray(np.array([[0, 7, 255]], np.int32)), 1), [[0, 7, 255]])


def test_every_mode_becomes_grey_or_rgb() -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "YCbCr", "I;16", "I", "F"):
        for channels, expected in ((1, "L"), (3, "RGB")):
            result = to_channels(Image.new(mode, (5, 4)), channels)
            assert (result.mode, result.size) == (expected, (5, 4))


def test_exif_orientation_is_applied() -> None:
    upright = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    file = io.BytesIO()
    upright.save(file, "PNG", exif=exif)
    turned = to_channels(Image.open(file), 1)
    assert np.array_equal(turned, np.rot90(np.array(upright), -1))


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    """A smooth picture with some noise, which has details at every scale."""
    random = np.random.default_rng(0)
    rough = Image.fromarray(random.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize((width, height))
    noise = random.normal(0, 8, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(rough) + noise).clip(0, 255).astype(np.uint8)).convert(mode).save(file, "JPEG")
    return file.getvalue()


DECODED = [  # width and height, the side that is asked for, and what is decoded
    ((320, 240), 64, (320, 240)),  # below four times the side
    ((320, 255), 64, (320, 255)),
    ((256, 320), 64, (128, 160)),
    ((1500, 511), 64, (750, 256)),  # a half, rounded up
    ((600, 512), 64, (150, 128)),
    ((640, 512), 16, (80, 64)),  # an eighth: there is no less
    ((1280, 1024), 16, (160, 128)),
]


def test_large_jpegs_are_decoded_at_the_smallest_size_with_a_margin() -> None:
    for size, side, decoded in DECODED:
        content = jpeg(*size)
        assert read_image(content, "here", side).size == decoded
        assert read_image(content, "here").size == size
        assert min(decoded) >= min(*size, MARGIN * side)
        assert read_image(jpeg(*size, mode="L"), "here", side).size == decoded

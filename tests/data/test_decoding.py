"""Images of every mode become grey or RGB, upright and on white; large JPEGs are decoded at reduced size."""

import io

import numpy as np
import pytest
from PIL import Image

from lowrank_vit.data.decoding import MARGIN, read_image, to_channels
from tests.support.cases import in_turn


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    assert np.array_equal(to_channels(deep, 1), [[0, 128, 255]])
    assert np.array_equal(to_channels(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), 1), [[0, 128, 255]])
    assert np.array_equal(to_channels(Image.fromarray(np.array([[0, 7, 255]], np.int32)), 1), [[0, 7, 255]])


@pytest.mark.parametrize(
    ("mode", "channels"), in_turn(["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "YCbCr", "I;16", "I", "F"], [1, 3])
)
def test_every_mode_becomes_grey_or_rgb(mode: str, channels: int) -> None:
    result = to_channels(Image.new(mode, (5, 4)), channels)
    assert result.mode == {1: "L", 3: "RGB"}[channels]
    assert result.size == (5, 4)


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


@pytest.mark.parametrize(
    ("size", "side", "decoded"),
    [
        ((320, 240), 64, (320, 240)),  # below four times the side
        ((320, 255), 64, (320, 255)),
        ((256, 320), 64, (128, 160)),
        ((1500, 511), 64, (750, 256)),  # a half, rounded up
        ((600, 512), 64, (150, 128)),
        ((640, 512), 16, (80, 64)),  # an eighth: there is no less
        ((1280, 1024), 16, (160, 128)),
    ],
)
def test_large_jpegs_are_decoded_at_the_smallest_size_with_a_margin(
    size: tuple[int, int], side: int, decoded: tuple[int, int]
) -> None:
    content = jpeg(*size)
    assert read_image(content, "here", side).size == decoded
    assert read_image(content, "here").size == size
    assert min(decoded) >= min(*size, MARGIN * side)
    assert read_image(jpeg(*size, mode="L"), "here", side).size == decoded

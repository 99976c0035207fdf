"""Odd numbers, paths, specifications and images: they work, or are refused in one line, and nothing is left or lost."""

import io
import struct
import zlib
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from lowrank_vit.data import ImageData
from lowrank_vit.models import STANDINS
from lowrank_vit.runtime.errors import InputError
from tests.support.hostile import refused

MODEL = next(name for name in STANDINS if name.endswith("_tiny"))
GREY = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "interpolation": "bicubic", "crop_pct": 1.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


def flags(weights: Path, out: Path, **changes: object) -> list[str]:
    """``compress`` on a few digits."""
    given = {"model": MODEL, "checkpoint": weights, "data": "digits", "recipe": "svd", "reduction": 0.3}
    given |= {"calibration_samples": 8, "held_out_samples": 4, "device": "cpu", "workers": 0, "out": out, **changes}
    return ["compress", *[f"--{name.replace('_', '-')}={value}" for name, value in given.items()]]


@pytest.mark.parametrize(
    "change",
    [
        *({"reduction": value} for value in ("0", "nan", "x")),
        *({"batch_size": value} for value in ("0", "2.5")),
        *({name: "-5"} for name in ("calibration_samples", "held_out_samples", "workers", "rank_multiple", "steps")),
        *({"seed": value} for value in ("-1", str(2**70))),
        *({"sites": value} for value in ("(", "nothing")),
        *({"device": value} for value in ("cuda:77", "☃")),
        *({"model": value} for value in ("", "../../etc/passwd", "hf-hub:x/y")),
        *(
            {"data": value}
            for value in (":", "☃:x", "imagefolder:..", "tar:/x", "parquet:/nowhere", "parquet:/dev/null")
        ),
        *({"checkpoint": value} for value in ("/dev/null", "x.pth", "x" * 300)),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path, change: dict[str, str]) -> None:
    refused(*flags(checkpoint, tmp_path / "out", **change))
    assert not list(tmp_path.iterdir())


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (12, 8), "red"), "JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG that claims to be 60000 x 60000 pixels."""
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + encoded(Image.new("L", (8, 8)))[33:]


def palette() -> Image.Image:
    image = Image.new("P", (9, 9))
    image.putpalette([10, 20, 30] * 256)
    image.info["transparency"] = bytes(range(256))
    return image


GOOD = {
    "1x1": encoded(Image.new("RGB", (1, 1))),
    "grey": encoded(Image.new("L", (20, 10), 7)),
    "bilevel": encoded(Image.new("1", (9, 9), 1)),
    "16 bits": encoded(Image.new("I;16", (9, 9), 40000)),
    "transparent palette": encoded(palette(), transparency=bytes(range(256))),
    "transparent": encoded(Image.new("RGBA", (9, 9), (1, 2, 3, 0))),
    "cmyk": encoded(Image.new("CMYK", (9, 9)), "JPEG"),
    "turned": turned(),
    "corrupt exif": encoded(Image.new("RGB", (9, 9)), "JPEG", exif=b"Exif\0\0junkjunkjunk"),
    "another kind than it says": encoded(Image.new("RGB", (9, 9)), "GIF"),
    "long": encoded(Image.new("L", (800, 1))),
}
BAD = {
    "empty": b"",
    "junk": b"junk" * 30,
    "text": "☃".encode(),
    "truncated": encoded(Image.new("RGB", (99, 99), "red"), "JPEG")[:400],
    "strip": encoded(Image.new("L", (10000, 1))),
    "bomb": bomb(),
    "html": b"<html>404</html>",
}


def image_folder(root: Path, files: dict[str, bytes], split: str = "train") -> Path:
    for name, content in files.items():
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def loaded(root: Path, channels: int = 1, samples: int = 64) -> torch.Tensor:
    config = {**GREY, "input_size": (channels, 8, 8), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    return ImageData(
        f"imagefolder:{root}", config, workers=0, calibration_samples=samples, held_out_samples=0
    ).calibration_tensor()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named(name: str, checkpoint: Path, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", {"a/bad.jpg": BAD[name], "a/good.png": GOOD["grey"]})
    with pytest.raises(InputError, match=r"bad\.jpg"):
        loaded(root)
    image_folder(root, {"a/x.png": GOOD["grey"]}, "validation")
    line = refused(*flags(checkpoint, tmp_path / "out", data=f"imagefolder:{root}"))
    assert "bad.jpg" in line
    assert "remove" in line
    assert not list(tmp_path.glob("*out*"))

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
from tests.support.image_folders import GREY

MODEL = next(name for name in STANDINS if name.endswith("_tiny"))


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


CHANGES: dict[str, tuple[str, ...]] = {
    "reduction": ("0", "nan", "x"),
    "batch_size": ("0", "2.5"),
    **dict.fromkeys(("calibration_samples", "held_out_samples", "workers", "rank_multiple", "steps"), ("-5",)),
    "seed": ("-1", str(2**70)),
    "sites": ("(", "nothing"),
    "device": ("cuda:77", "☃"),
    "model": ("", "../../etc/passwd", "hf-hub:x/y"),
    "data": (":", "☃:x", "imagefolder:..", "tar:/x", "parquet:/nowhere", "parquet:/dev/null"),
    "checkpoint": ("/dev/null", "x.pth", "x" * 300),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_mistake_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path, name: str) -> None:
    for value in CHANGES[name]:
        refused(*flags(checkpoint, tmp_path / "out", **{name: value}))
        assert not list(tmp_path.iterdir())


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that claims to be 60000 x 60000 pixels."""
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + encoded(Image.new("L", (8, 8)))[33:]


GOOD = encoded(Image.new("L", (20, 10), 7))
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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bad_image_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for name, content in BAD.items():
        root = image_folder(tmp_path / name, {"a/bad.jpg": content, "a/good.png": GOOD})
        with pytest.raises(InputError, match=r"bad\.jpg"):
            ImageData(f"imagefolder:{root}", GREY, workers=0, calibration_samples=64).calibration_tensor()
        image_folder(root, {"a/x.png": GOOD}, "validation")
        line = refused(*flags(checkpoint, tmp_path / "out", data=f"imagefolder:{root}"))
        assert "bad.jpg" in line
        assert "remove" in line
        assert not list(tmp_path.glob("*out*"))

"""Images that one core decodes and transforms in a second, and what decoding at reduced size changes in the tensors.

    python -m benchmarks.loading --data FOLDER_OF_JPEGS [--sides 256,500,1200] [--images 64] [--json FILE]

The images are resized to each shorter side (256: as they are, if they are that large), with the noise of a sensor added,
and kept as JPEGs in memory. ``evaluation``: timm's transform; ``training``: the random crop and flip. ``reduced``: with
``read_image``'s reduction, which begins at four times the side that the transform needs. Errors are root mean squares over
the tensor's entries, normalised to unit variance, averaged over images: against the image decoded whole, and, as measure,
of bilinear and Lanczos against bicubic resizing.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.output import show, write
from lowrank_vit.data.decoding import read_image, to_channels
from lowrank_vit.data.loading import Transform, evaluation_transform, resized_side, training_transform

CONFIG = {  # DeiT's
    "input_size": (3, 224, 224),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
NOISE = 6.0  # standard deviation, of 255: enlarged pictures have no details of their own


def enlarged(path: Path, side: int) -> bytes:
    """Return the picture with this shorter side as a JPEG; a file of that size as it is."""
    picture = Image.open(path).convert("RGB")
    if min(picture.size) == side:
        return path.read_bytes()
    width, height = (round(length * side / min(picture.size)) for length in picture.size)
    noise = np.random.default_rng(0).normal(0, NOISE, (height, width, 1))
    pixels = (np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)) + noise).clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def per_second(files: Sequence[bytes], work: Callable[[bytes], Any]) -> float:
    """Return how many files one core processes per second of its own CPU time, whatever else runs."""
    work(files[0])
    start = time.process_time()
    for file in files:
        work(file)
    return len(files) / (time.process_time() - start)


def error(files: Sequence[bytes], one: Callable[[bytes], Tensor], other: Callable[[bytes], Tensor]) -> float:
    """Return the root mean square difference of the tensors, averaged over files."""
    return fmean((one(file) - other(file)).square().mean().sqrt().item() for file in files)


def measure(files: Sequence[bytes]) -> dict[str, float]:
    """Return images per second and differences."""
    side = resized_side(CONFIG)
    evaluation, training = evaluation_transform(CONFIG), training_transform(CONFIG)
    filters = {name: evaluation_transform({**CONFIG, "interpolation": name}) for name in ("bilinear", "lanczos")}

    def loaded(transform: Transform, side: int | None = None) -> Callable[[bytes], Tensor]:
        return lambda file: transform(to_channels(read_image(file, "memory", side), 3))

    return {
        "decode": per_second(files, lambda file: read_image(file, "memory")),
        "decode reduced": per_second(files, lambda file: read_image(file, "memory", side)),
        "evaluation": per_second(files, loaded(evaluation)),
        "evaluation reduced": per_second(files, loaded(evaluation, side)),
        "training": per_second(files, loaded(training)),
        "error reduced": error(files, loaded(evaluation), loaded(evaluation, side)),
        **{f"error {name}": error(files, loaded(evaluation), loaded(other)) for name, other in filters.items()},
    }


def main() -> None:
    """Measure all sizes and print the table."""
    parser = argparse.ArgumentParser(description="Images that one core loads in a second.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of JPEGs, at any depth")
    parser.add_argument("--sides", default="256,500,1200", metavar="N,...", help="shorter sides in pixels")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = sorted(args.data.expanduser().rglob("*.jp*g"))
    if not found:
        parser.error(f"there are no JPEGs in {args.data}: give --data FOLDER")
    random.seed(0)
    chosen = random.sample(found, min(args.images, len(found)))
    rows = {side: measure([enlarged(path, side) for path in chosen]) for side in map(int, args.sides.split(","))}
    title = f"images per second of one core, and differences; {len(chosen)} images"
    header = ("", *(f"shorter side {side}" for side in rows))
    lines = [
        [name, *(f"{row[name]:{'.4f' if name.startswith('error') else '.0f'}}" for row in rows.values())]
        for name in next(iter(rows.values()))
    ]
    show(title, header, lines)
    write(args.json, title, header, lines, {"images": len(chosen), "config": CONFIG, "sides": rows})


if __name__ == "__main__":
    main()

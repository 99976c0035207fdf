"""More images without labels beside the training images of another source."""

from dataclasses import replace
from pathlib import Path
from typing import Self

from PIL import Image

from lowrank_vit.data.folders import SUFFIXES, FileSplit
from lowrank_vit.data.sources import opened
from lowrank_vit.data.splits import NO_LABEL, ImageSource, ImageSplit, source, two_parts
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import given_path

FORM = "joined:FOLDER,SPEC"


class JoinedSplit(ImageSplit):
    """Serve the images of two splits, one split after the other."""

    def __init__(self, first: ImageSplit, second: ImageSplit) -> None:
        super().__init__([*first.labels, *second.labels])
        self.parts = first, second

    def _of(self, index: int) -> tuple[ImageSplit, int]:
        count = len(self.parts[0])
        return (self.parts[0], index) if index < count else (self.parts[1], index - count)

    def content(self, index: int) -> bytes:
        split, own = self._of(index)
        return split.content(own)

    def image(self, index: int) -> Image.Image:
        split, own = self._of(index)
        return split[own][0]

    def reduced(self, side: int) -> Self:
        return self.but(parts=tuple(part.reduced(side) for part in self.parts))


@source("joined", FORM)
def open_joined(spec: str, target: str) -> ImageSource:
    """Open ``joined:FOLDER,SPEC``: SPEC, with all images below FOLDER among its training images, without labels.

    They serve calibration and distillation; what is evaluated is SPEC's alone. FOLDER's path has no comma. Raises
    ``InputError`` where FOLDER is missing or has no images, and for a SPEC without training images.
    """
    folder, rest = two_parts(spec, target, FORM, "joined:PHOTOS,imagefolder:PATH")
    root, labelled = given_path(folder), opened(rest)
    if not root.is_dir():
        raise InputError(f"{spec}: there is no folder {root}")
    files = sorted(str(path) for path in root.rglob("*") if _is_image(path, root))
    if not files:
        raise InputError(f"{spec}: there are no images below {root}")
    more = FileSplit(files, [NO_LABEL] * len(files))
    return replace(labelled, spec=spec, train=JoinedSplit(labelled.split("train"), more))


def _is_image(path: Path, root: Path) -> bool:
    """Tell whether a file is an image that nobody has hidden."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.name.lower().endswith(SUFFIXES) and not hidden and path.is_file()

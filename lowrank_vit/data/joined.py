"""More images without labels beside the training images of another source."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lowrank_vit.data.folders import SUFFIXES, FileSplit
from lowrank_vit.data.sources import opened
from lowrank_vit.data.splits import NO_LABEL, ImageSource, ImageSplit, source
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import given_path

FORM = "joined:FOLDER,SPEC"


@dataclass(frozen=True)
class JoinedSplit:
    """Serve the images of two splits, one split after the other."""

    first: ImageSplit
    second: ImageSplit

    @property
    def labels(self) -> Sequence[int]:
        """Return the label of every image."""
        return [*self.first.labels, *self.second.labels]

    def _of(self, index: int) -> tuple[ImageSplit, int]:
        count = len(self.first)
        return (self.first, index) if index < count else (self.second, index - count)

    def content(self, index: int) -> bytes:
        """Return the bytes that identify the image's content."""
        split, own = self._of(index)
        return split.content(own)

    def reduced(self, side: int) -> "JoinedSplit":
        """Return the same images, large JPEGs decoded at a smaller size."""
        return JoinedSplit(self.first.reduced(side), self.second.reduced(side))

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        split, own = self._of(index)
        return split[own]


@source("joined", FORM)
def open_joined(spec: str, target: str) -> ImageSource:
    """Open ``joined:FOLDER,SPEC``: SPEC, with all images below FOLDER among its training images, without labels.

    They serve calibration and distillation; what is evaluated is SPEC's alone. FOLDER's path has no comma. Raises
    ``InputError`` where FOLDER is missing or has no images, and for a SPEC without training images.
    """
    folder, comma, rest = target.partition(",")
    if not (folder and comma and rest):
        raise InputError(
            f"the data source {spec!r} is incomplete: write {FORM}, such as joined:PHOTOS,imagefolder:PATH"
        )
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

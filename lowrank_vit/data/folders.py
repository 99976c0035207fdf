"""Image folders: ``train/`` and ``validation/`` (or ``val/``), one folder for each class in them."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowrank_vit.data.classes import are_ranks
from lowrank_vit.data.splits import NO_LABEL, ImageSource, ImageSplit, source
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import given_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jfif")
NO_CLASSES = ("__MACOSX", "@eaDir")  # folders that archives and file servers leave behind
TRAIN, VALIDATION = ("train",), ("validation", "val", "valid")
JOINED = "for calibration, pass them as joined:FOLDER,SPEC, from a folder of their own"
EXPECTED = "expected train/CLASS/*.jpg and validation/CLASS/*.jpg"


class FileSplit(ImageSplit):
    """Serve image files and their labels."""

    def __init__(self, files: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(labels)
        self.files = files

    def content(self, index: int) -> bytes:
        path = Path(self.files[index])
        try:
            if path.exists() and not path.is_file():  # reading a pipe would wait for ever
                raise InputError(f"cannot read the image {path}: it is no file; remove it")
            return path.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot read the image {self.files[index]} ({error.strerror}): replace or remove it"
            ) from error

    def where(self, index: int) -> str:
        return self.files[index]


@source("imagefolder", "imagefolder:PATH")
def open_folder(spec: str, target: str) -> ImageSource:
    """Open ``imagefolder:PATH``; see ``open_source``.

    A split without class folders gets the images that lie in it, without labels; so do the training images where there is
    no ``train/``, and the images lie in PATH itself.
    """
    root = given_path(target)
    if not root.is_dir():
        raise InputError(f"{spec}: there is no folder {root}; {EXPECTED}")
    train = _first_folder(root, TRAIN)
    validation = _first_folder(root, VALIDATION)
    loose = _loose(root)
    if train is None and loose:
        return _photographs(spec, root, loose, validation)
    if loose:
        warnings.warn(
            f"{spec}: {len(loose)} images that lie in {root} beside its folders are left out: {JOINED}", stacklevel=3
        )
    if train is None and validation is None:
        raise InputError(f"{spec}: {root} has neither train/ nor validation/{_hint(root)}; {EXPECTED}")
    if train and validation and train.resolve() == validation.resolve():
        raise InputError(f"{spec}: train/ and {validation.name}/ are the same folder: keep the evaluation images apart")
    folders = [folder for folder in (train, validation) if folder]
    files = {folder: _files_by_class(folder) for folder in folders}
    names = tuple(sorted({name for classes in files.values() for name in classes if name}))
    empty = [name for name in names if not any(classes.get(name) for classes in files.values())]
    _tell_odd(spec, empty, "has no images")
    if train and validation and are_ranks(names):
        _tell_odd(spec, [name for name in names if name not in files[train]], f"is in {validation.name}/ alone")
    labels = {name: rank for rank, name in enumerate(names)}
    splits = {folder: _file_split(spec, folder, files[folder], labels) for folder in folders}
    pair = (splits[train] if train else None, splits[validation] if validation else None)
    return ImageSource(spec, len(names) or None, *pair, names=names)


def _tell_odd(spec: str, names: Sequence[str], what: str) -> None:
    """Warn of class folders that a model may not have been trained with."""
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        warnings.warn(
            f"{spec}: the class folder {names[0]!r}{more} {what}, and counts as a class all the same: remove it if the model "
            "was trained without it",
            stacklevel=4,
        )


def _photographs(spec: str, root: Path, loose: list[str], validation: Path | None) -> ImageSource:
    """Return a source that calibrates on photographs without labels, and evaluates on ``validation/``, if there is one."""
    photographs = FileSplit(loose, [NO_LABEL] * len(loose))
    if validation is None:
        return ImageSource(spec, None, photographs, None)
    files = _files_by_class(validation)
    names = tuple(sorted(name for name in files if name))
    held = _file_split(spec, validation, files, {name: rank for rank, name in enumerate(names)})
    return ImageSource(spec, len(names) or None, photographs, held, names=names)


def _loose(root: Path) -> list[str]:
    """Return the image files that lie in the root itself."""
    files = (path for path in sorted(root.iterdir()) if path.suffix.lower() in SUFFIXES)
    return [str(path) for path in files if not path.name.startswith(".") and path.is_file()]


def _hint(root: Path) -> str:
    if root.name.lower() in (*TRAIN, *VALIDATION):
        return f": give the folder that holds {root.name}/"
    found = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return (
        f" but {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}: move class folders into train/"
        if found
        else ""
    )


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the folder of the first of these names; in other case where it is not there as it is written."""
    folders = {path.name.lower(): path for path in sorted(root.iterdir(), reverse=True) if path.is_dir()}
    exact = next((root / name for name in names if (root / name).is_dir()), None)
    return exact or next((folders[name] for name in names if name in folders), None)


def _files_by_class(folder: Path) -> dict[str, list[str]]:
    """Return the image files of each class folder; those in ``folder`` itself are under the name ""."""
    classes: dict[str, list[str]] = {"": []}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name in NO_CLASSES:
                continue  # .ipynb_checkpoints and the like are no classes
            if _is_folder(entry):
                classes[entry.name] = list(_images_under(entry.path))
            elif entry.name.lower().endswith(SUFFIXES):
                classes[""].append(entry.path)
    return classes


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _images_under(folder: str) -> Iterator[str]:
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            folders.clear()  # a link back to a folder that was visited
            continue
        seen.add(place)
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                yield str(Path(parent) / file)


def _file_split(spec: str, folder: Path, classes: dict[str, list[str]], labels: dict[str, int]) -> FileSplit:
    loose = classes[""]
    pairs = [(file, labels[name]) for name, files in classes.items() if name for file in files]
    if pairs and loose:
        warnings.warn(
            f"{spec}: {len(loose)} images that lie in {folder} beside the class folders are left out", stacklevel=4
        )
    if not pairs:
        pairs = [(file, NO_LABEL) for file in loose]
    if not pairs:
        raise InputError(f"{spec}: there are no images in {folder}; {EXPECTED}, or loose images for calibration alone")
    return FileSplit([file for file, _ in pairs], [label for _, label in pairs])

"""From class names to labels."""

import functools
import re
import warnings
from collections.abc import Sequence

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import given_path

WNID = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1000
ORDERS = ("natural", "text")
SHOWN = 4  # class names in a line


@functools.cache
def imagenet_wnids(classes: int = IMAGENET_CLASSES) -> dict[str, int]:
    """Return the label of each wnid in the models of an ImageNet of so many classes; nothing where there is none.

    ImageNet-1k's are numbered in sorted order; the 21,843 classes and others as timm lists them.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return {}
    names = ImageNetInfo(subset).label_names()
    return {wnid: index for index, wnid in enumerate(sorted(names) if classes == IMAGENET_CLASSES else names)}


def class_labels(
    names: Sequence[str], where: str, order: str | None = None, classes: int | None = None, *, declared: bool = False
) -> tuple[dict[str, int], int]:
    """Return the label of each class name, and the number of classes; ``where`` names the data in warnings.

    ``order``: "natural", "text", or a file with one class name a line. ``classes``: how many the model has, where that is
    known. ``declared``: the data number their classes, by the order of ``names``. Without an order:

    - Wnids have their label in the ImageNet of so many classes, however many are present; as many of them as the model
      has classes are these, in order; ImageNet-1k is meant otherwise.
    - The integers 0 .. N-1 are the labels themselves; of a model of N classes, some may be missing. Other integers, such as
      1 .. N, are ranked as numbers.
    - Other names are ranked as text. A warning says where text and natural order differ, and tells of a mixture with wnids.

    >>> class_labels(["dog", "cat"], "pets")
    ({'cat': 0, 'dog': 1}, 2)
    >>> class_labels(["n15075141"], "a folder with the last class only")
    ({'n15075141': 999}, 1000)
    >>> class_labels(["b10", "b9"], "birds", "natural")
    ({'b9': 0, 'b10': 1}, 2)
    """
    present = list(names) if declared else sorted(set(names))
    if order is not None:
        ordered = sorted(present, key=natural_key) if order == "natural" else sorted(present)
        ordered = ordered if order in ORDERS else _listed(order, present, where)
        return _ranks(ordered)
    if any(WNID.fullmatch(name) for name in present):
        found = _wnid_labels(present, where, classes, declared)
        if found is not None:
            return found
    if declared:
        return _ranks(present)
    natural = sorted(present, key=natural_key)
    if all(name.isascii() and name.isdecimal() for name in present):
        labels, count = _numbers(natural, classes) or _ranks(natural)
        if natural != present:
            what = "the labels themselves" if max(map(int, present)) in labels.values() else "ranked as numbers"
            _warn(
                f"{where}: the class names {_few(natural)} are {what}; for a model that was trained on them as text "
                f'({_few(present)}), give `class_order="text"`'
            )
        return labels, count
    if natural != present:
        _warn(
            f"{where}: labels are the ranks of the class names as text ({_few(present)}), as torchvision has them; timm has "
            f'them in natural order ({_few(natural)}): choose by `class_order="natural"` or `class_order="text"`'
        )
    return _ranks(present)


def natural_key(name: str) -> list[int | str]:
    """Return what timm sorts class folders by: numbers in a name count as such, and capitals do not.

    >>> sorted(["b10", "b9", "A"], key=natural_key)
    ['A', 'b9', 'b10']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


def are_ranks(names: Sequence[str]) -> bool:
    """Tell whether the labels of names can only be ranks among them: none is a wnid or a number."""
    return bool(names) and not any(WNID.fullmatch(name) or name.isdecimal() for name in names)


def _wnid_labels(
    present: Sequence[str], where: str, classes: int | None, declared: bool
) -> tuple[dict[str, int], int] | None:
    """Return the labels of wnids; None for a mixture, which is warned of unless the data declare its order."""
    for wnids in (imagenet_wnids(classes or IMAGENET_CLASSES), imagenet_wnids()):
        if all(name in wnids for name in present):
            return {name: wnids[name] for name in present}, len(wnids)
        if len(present) == classes and all(WNID.fullmatch(name) for name in present):
            return _ranks(present)
    known = sum(name in wnids for name in present)
    if known and not declared:
        stranger = next(name for name in present if name not in wnids)
        _warn(
            f"{where}: {stranger!r} is not a wnid of ImageNet-1k though {known} other classes are: labels are ranks "
            f"among the {len(present)} class names, which is not what ImageNet models predict"
        )
    return None


def _numbers(natural: Sequence[str], classes: int | None) -> tuple[dict[str, int], int] | None:
    """Return names as numbers, and how many classes, where they are labels: all of 0 .. N-1, or some of a model's."""
    numbers = {name: int(name) for name in natural}
    whole = [*numbers.values()] == list(range(len(natural)))
    if whole or (
        classes is not None and len(set(numbers.values())) == len(natural) and max(numbers.values()) < classes
    ):
        return numbers, len(natural) if whole else classes or 0
    return None


def _listed(file: str, present: Sequence[str], where: str) -> list[str]:
    """Read class names, one a line. Raises ``InputError`` where one is twice, or one that is present is missing."""
    try:
        names = [line.strip() for line in given_path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(
            f"the class order {file!r} cannot be read ({reason}): give natural, text or a file with one class name a line"
        ) from None
    twice = next((name for name in names if names.count(name) > 1), None)
    missing = next((name for name in present if name not in set(names)), None)
    if twice is not None or missing is not None:
        reason = f"names {twice!r} twice" if twice is not None else f"lacks {missing!r}, a class of {where}"
        raise InputError(f"the class order {file} {reason}: write every class name once, one a line")
    return names


def _ranks(names: Sequence[str]) -> tuple[dict[str, int], int]:
    return {name: rank for rank, name in enumerate(names)}, len(names)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)

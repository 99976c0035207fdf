"""From class names to labels."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable

WNID = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1000


@functools.cache
def imagenet_wnids() -> dict[str, int]:
    """Return the index of each of ImageNet-1k's 1000 wnids in sorted order: the label that pretrained models predict."""
    from timm.data import ImageNetInfo

    return {wnid: index for index, wnid in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


def class_labels(names: Iterable[str], where: str) -> tuple[dict[str, int], int]:
    """Return the label of each class name, and the number of classes; ``where`` names the data in warnings.

    Where all names are wnids of ImageNet-1k, a label is the index among its 1000 wnids, however many are present;
    otherwise it is the rank among the sorted names. A mixture is ranked, with a warning.

    >>> class_labels(["dog", "cat"], "pets")
    ({'cat': 0, 'dog': 1}, 2)
    >>> class_labels(["n15075141"], "a folder with the last class only")
    ({'n15075141': 999}, 1000)
    """
    present = sorted(set(names))
    wnids = imagenet_wnids() if any(WNID.fullmatch(name) for name in present) else {}
    known = [name for name in present if name in wnids]
    if present and len(known) == len(present):
        return {name: wnids[name] for name in present}, IMAGENET_CLASSES
    if known:
        stranger = next(name for name in present if name not in wnids)
        warnings.warn(
            f"{where}: {stranger!r} is not a wnid of ImageNet-1k though {len(known)} other classes are: labels are ranks "
            f"among the {len(present)} class names, which is not what ImageNet models predict",
            stacklevel=2,
        )
    return {name: rank for rank, name in enumerate(present)}, len(present)

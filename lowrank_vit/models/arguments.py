"""The arguments that timm makes a fine-tuned model with: given ones, and what a checkpoint's shapes say."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
from torch import nn

from lowrank_vit.models.checkpoints import read_checkpoint, tensor_names
from lowrank_vit.runtime.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
TOKENS = ("cls_token", "dist_token", "reg_token")  # beside the patches, in the position embeddings or not
FETCHING = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only")


def make_model(name: str, arguments: Mapping[str, Any], **options: Any) -> nn.Module:
    """Make the timm model ``name`` without weights; its images have the size ``img_size``, where that is given.

    Raises ``InputError`` for arguments that timm does not take.
    """
    for key in FETCHING:
        if key in arguments:
            raise InputError(f"{key!r} is not an argument of the architecture: leave it out")
    overlay = _changed_images(name, arguments)
    if overlay:
        options["pretrained_cfg_overlay"] = overlay
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options, **arguments)
    except Exception as error:  # timm's architectures raise errors of many kinds for invalid arguments
        if not arguments:
            raise
        reason = " ".join(str(error).split())  # of several lines
        raise InputError(f"timm cannot make {name!r} with {dict(arguments)}: {reason}") from None
    return model


def _changed_images(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to timm's description of a model's images that another size, or other channels, cause."""
    config, size, channels = timm.models.get_pretrained_cfg(name), arguments.get("img_size"), arguments.get("in_chans")
    if config is None or (size is None and channels is None):
        return {}
    pair = config.input_size[1:] if size is None else size if isinstance(size, list | tuple) else (size, size)
    images: dict[str, Any] = {"input_size": (channels or config.input_size[0], *pair)}
    if channels and channels != config.input_size[0]:
        images |= {key: (fmean(getattr(config, key)),) * channels for key in ("mean", "std")}
    return images


def fitting_arguments(name: str, checkpoint: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the ``given`` arguments what the shapes in a checkpoint say: the classes, and the images' size.

    The classifier's rows are the classes; position embeddings of a square grid of patches give the size. Nothing is
    inferred where they are missing, where the size is given, or from a file that cannot be read: loading it says why.
    """
    shapes, arguments = _shapes(name, checkpoint, given), dict(given)
    config = timm.models.get_pretrained_cfg(name)
    names = getattr(config, "classifier", None) or "head"
    head = names if isinstance(names, str) else names[0]  # a distilled DeiT has two
    rows = next((shapes[key][0] for key in (f"{head}.weight", "head.weight") if len(shapes.get(key, ())) == 2), None)
    if rows is not None and "num_classes" not in arguments and rows != getattr(config, "num_classes", rows):
        arguments["num_classes"] = rows
    size = None if "img_size" in arguments else _image_size(name, shapes)
    return arguments if size is None else {**arguments, "img_size": size}


def _shapes(name: str, checkpoint: Path, given: Mapping[str, Any]) -> Shapes:
    try:
        tensors = read_checkpoint(checkpoint, tensor_names(name, given)).tensors
    except InputError:
        return {}
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _image_size(name: str, shapes: Shapes) -> int | None:
    """Return the size of square images, where it is not the architecture's own."""
    embedding, patches = shapes.get("pos_embed", ()), shapes.get("patch_embed.proj.weight", ())
    config = timm.models.get_pretrained_cfg(name)
    if len(embedding) != 3 or len(patches) != 4 or config is None:
        return None
    side = config.input_size[-1] // patches[-1]
    tokens = sum(shapes[key][1] for key in TOKENS if len(shapes.get(key, ())) == 3)
    if embedding[1] - side * side in range(tokens + 1):
        return None
    sides = (math.isqrt(max(embedding[1] - prefix, 0)) for prefix in (tokens, 0))
    found = [side for side, prefix in zip(sides, (tokens, 0), strict=True) if side * side == embedding[1] - prefix]
    return found[0] * patches[-1] if found else None

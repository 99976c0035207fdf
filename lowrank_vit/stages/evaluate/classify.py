"""What a model sees in a picture, in words."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_vit.data.decoding import read_image, to_channels
from lowrank_vit.modules.predicting import predict
from lowrank_vit.objectives.classification import as_classes, classes_of
from lowrank_vit.runtime.errors import InputError


def classify(model: nn.Module, image: str | Path, top: int = 5) -> list[tuple[str, float]]:
    """Return the most probable classes of an image file, each with its probability in percent.

    Classes of an ImageNet have names, others numbers. Raises ``InputError`` for a file that is no image, and for a model
    without classes.
    """
    from timm.data import create_transform, resolve_model_data_config

    path = Path(image)
    if not path.is_file():
        reason = "is a folder: name the files in it" if path.is_dir() else "does not exist"
        raise InputError(f"the image {path} {reason}")
    count = classes_of(model)
    if not count:
        raise InputError("the model has no classes to choose from: it returns features")
    config: dict[str, Any] = resolve_model_data_config(model)
    picture = to_channels(read_image(path.read_bytes(), str(path)), config["input_size"][0])
    pixels: Any = create_transform(**config)(picture)
    parameter = next(model.parameters())
    with torch.inference_mode():
        logits = predict(model.eval(), pixels[None].to(parameter.device, parameter.dtype))
    shares = as_classes(logits)[0].float().softmax(0)
    found = shares.topk(min(top, len(shares)))
    names = class_names(count)
    return [
        (names.get(int(index), f"class {int(index)}"), 100 * float(share)) for share, index in zip(*found, strict=True)
    ]


def class_names(count: int) -> dict[int, str]:
    """Return the names of the classes of an ImageNet of so many; nothing for another number."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return {}
    info = ImageNetInfo(subset)
    return {index: str(info.index_to_description(index)).partition(",")[0] for index in range(count)}

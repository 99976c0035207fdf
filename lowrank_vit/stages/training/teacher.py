"""What a training has of its teacher: checks, images as both see them, outputs in memory, and the loss towards them."""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules.counting import model_hash
from lowrank_vit.modules.predicting import predict
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.objectives import Objective, Outputs, compared_outputs
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.runtime.errors import InputError

CROPS = (0.25, 1.0)  # shares of a photograph's area, within which a crop keeps its meaning
KNOWN_BYTES = 2**30  # the teacher's outputs are kept in memory up to this size, instead of computed every epoch
BATCH = 64
ALIGNED = (0, 1, -2, -1)  # blocks whose outputs are compared, as in COMCAT's code
LEAST = 0.01  # of the weight of that comparison, as training goes on


def augment(images: Tensor, draws: Tensor, flips: bool, crop_scale: tuple[float, float] | None) -> Tensor:
    """Mirror half of the images, (B, C, H, W), and enlarge a random crop of each. draws: (B, 4), uniform in [0, 1).

    ``crop_scale``: the least and the greatest share of the area that is left; crops keep the image's proportions.
    """
    if flips:
        images = torch.where((draws[:, 0] < 0.5)[:, None, None, None], images.flip(-1), images)
    if crop_scale is None:
        return images
    side = (crop_scale[0] + (crop_scale[1] - crop_scale[0]) * draws[:, 1]).sqrt()
    centre = (1 - side)[:, None] * (2 * draws[:, 2:] - 1)  # in units of half the image, from its middle
    corners = torch.cat([torch.diag_embed(side[:, None].expand(-1, 2)), centre[:, :, None]], -1).to(images.dtype)
    grid = F.affine_grid(corners, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def augmentations(mirrors: bool) -> dict[str, Any]:
    """Return the fields of ``Distillation`` for images that keep their meaning when mirrored and cropped, or for others."""
    return {"flips": mirrors, "crop_scale": CROPS if mirrors else None}


def check_settings(
    epochs: int,
    batch_size: int,
    rates: Mapping[str, float],
    weights: Sequence[float],
    warm_up: float,
    gradient_clip: float | None,
    crop_scale: tuple[float, float] | None,
    mix: float,
) -> None:
    """Raise ``InputError`` for settings of a distillation that are out of range."""
    if epochs < 1 or batch_size < 1 or not all(0 < value < math.inf for value in rates.values()):
        raise InputError("epochs, lr, vector_lr, temperature and batch_size must be positive, and finite")
    if not (all(0 <= weight < math.inf for weight in weights) and 0 <= warm_up < 1):
        raise InputError(
            "weight_decay, logit_weight, feature_weight and block_weight must not be negative; warm_up must be from 0 to "
            "below 1"
        )
    if gradient_clip is not None and gradient_clip <= 0:
        raise InputError("gradient_clip must be positive, or None for no clipping")
    if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(f"crop_scale {crop_scale} must be two shares of the area, the lesser first")
    if not 0 <= mix <= 0.5:
        raise InputError(f"mix is {mix}: the share of another image must be between 0 and 0.5")


def check_pair(model: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Raise ``InputError`` unless both models can be compared on the images, and the student can be trained."""
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)}: distillation needs (N, C, H, W), at least one")
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("a quantised model cannot be distilled: distil the one it was made from, then quantise that")
    shapes = []
    for each in (teacher, model):
        with torch.no_grad():
            seen = compared_outputs(each, images[:1].to(next(each.parameters())), blocks=True)
            shapes.append([output.shape[1:] for output in seen])
    names = ["features", "logits", *(f"block {index}'s outputs" for index in range(len(shapes[0]) - 2))]
    for name, dense, small in itertools.zip_longest(names, *shapes):
        if dense != small:
            raise InputError(
                f"the teacher's {name} are {dense and tuple(dense)}, the model's {small and tuple(small)}: "
                "pass the dense model that was compressed"
            )


def inputs_hash(model: nn.Module, teacher: nn.Module, images: Tensor) -> str:
    """Return the sha256 of what a distillation starts with: both models' weights, and the images."""
    digest = hashlib.sha256(f"{model_hash(model)} {model_hash(teacher)} {tuple(images.shape)}".encode())
    digest.update(images.contiguous().cpu().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def remember(
    teacher: nn.Module, images: Tensor, flips: bool, device: torch.device, blocks: bool = False
) -> Outputs | None:
    """Compute the teacher's outputs for all images (N, C, H, W) and, with ``flips``, for their mirror images.

    Returns (1 or 2, N, ...) of each output; None where that would take more than ``KNOWN_BYTES``.
    """
    size = sum(output.nbytes for output in compared_outputs(teacher, images[:1].to(device), blocks))
    if (1 + flips) * len(images) * size > KNOWN_BYTES:
        return None
    answers = [
        compared_outputs(teacher, batch.flip(-1) if mirrored else batch, blocks)
        for mirrored in range(1 + flips)
        for batch in (part.to(device) for part in images.split(BATCH))
    ]
    return tuple(torch.cat(parts).unflatten(0, (1 + flips, -1)) for parts in zip(*answers, strict=True))


def check_imitation(teacher: nn.Module | None, hard_teacher: bool, align_weight: float) -> None:
    """Raise ``InputError`` for a weight out of range, and for either option without a teacher."""
    if not 0 <= align_weight < math.inf:
        raise InputError(f"align_weight is {align_weight}: it must not be negative, and finite")
    if teacher is None and (hard_teacher or align_weight):
        raise InputError("hard_teacher and align_weight imitate the dense model: give a teacher (`teacher=`)")


def align_factor(weight: float, epoch: int, epochs: int) -> float:
    """Return the weight of aligned blocks in an epoch: ``weight cos(pi epoch / (2 epochs))``, at least ``LEAST``.

    COMCAT's code multiplies by the cosine cumulatively, so that nearly all of it is gone within some epochs.
    """
    return max(weight * math.cos(math.pi * epoch / (2 * epochs)), min(weight, LEAST))


def apart(small: list[Tensor], dense: list[Tensor]) -> Tensor:
    """Sum the mean squared errors of the ``ALIGNED`` blocks' outputs, (B, ..., n) each; each block counts once."""
    places = sorted({place % len(dense) for place in ALIGNED if place < len(dense)})
    return torch.stack([F.mse_loss(small[place].float(), dense[place].float()) for place in places]).sum()


def towards_teacher(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labelled: Callable[[Tensor], Tensor],
    objective: Objective,
    settings: Mapping[str, Any],
    epoch: int,
) -> Tensor:
    """Compute the loss of a batch with a teacher.

    ``labelled``: the loss of logits by labels. Of it, ``distillation_weight`` is replaced by the ``objective``'s pull with
    the ``temperature`` or, with ``hard_teacher``, by cross-entropy to the teacher's answer; ``align_weight`` times
    ``apart`` is added. Raises ``InputError`` for a hard teacher of several labels.
    """
    aligned = settings["align_weight"] > 0
    logits, *blocks = _outputs(model, images, aligned)
    with torch.no_grad():
        target, *known = _outputs(teacher, images, aligned)
    if settings["hard_teacher"]:
        if not isinstance(objective, Classification):
            raise InputError("images of several labels have no single answer of a teacher: leave out `hard_teacher=`")
        pull = F.cross_entropy(logits.float(), target.argmax(-1))
    else:
        pull = objective.pull(logits, target, settings["temperature"])
    weight = settings["distillation_weight"]
    loss = (1 - weight) * labelled(logits) + weight * pull
    if not aligned:
        return loss
    return loss + align_factor(settings["align_weight"], epoch, settings["epochs"]) * apart(blocks, known)


def _outputs(model: nn.Module, images: Tensor, blocks: bool) -> tuple[Tensor, ...]:
    """Return a model's logits and, with ``blocks``, the outputs of each block."""
    if not blocks:
        return (predict(model, images),)
    found = compared_outputs(model, images, True)[1:]
    if len(found) == 1:
        raise InputError(f"{type(model).__name__} has no blocks of a known name: leave out `align_weight=`")
    return found

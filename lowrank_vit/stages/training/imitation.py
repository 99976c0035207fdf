"""The loss of a fine-tune with a teacher: towards its predictions, soft or hard, and perhaps its blocks' outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules.predicting import predict
from lowrank_vit.objectives import compared_outputs
from lowrank_vit.objectives.classification import distillation_loss
from lowrank_vit.runtime.errors import InputError

ALIGNED = (0, 1, -2, -1)  # blocks whose outputs are compared, as in COMCAT's code
LEAST = 0.01  # of the weight of that comparison, as training goes on


def check_imitation(teacher: nn.Module | None, hard_teacher: bool, align_weight: float) -> None:
    """Raise ``InputError`` for a weight out of range, and for either option without a teacher."""
    if not 0 <= align_weight < math.inf:
        raise InputError(f"align_weight is {align_weight}: it must not be negative, and finite")
    if teacher is None and (hard_teacher or align_weight):
        raise InputError("hard_teacher and align_weight imitate the dense model: give a teacher (--distill)")


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
    settings: Mapping[str, Any],
    epoch: int,
) -> Tensor:
    """Compute the loss of a batch with a teacher.

    ``labelled``: the loss of logits by labels. Of it, ``distillation_weight`` is replaced by ``distillation_loss`` with
    the ``temperature`` or, with ``hard_teacher``, by cross-entropy to the teacher's answer; ``align_weight`` times
    ``apart`` is added.
    """
    aligned = settings["align_weight"] > 0
    logits, *blocks = _outputs(model, images, aligned)
    with torch.no_grad():
        target, *known = _outputs(teacher, images, aligned)
    pull = (
        F.cross_entropy(logits.float(), target.argmax(-1))
        if settings["hard_teacher"]
        else distillation_loss(logits, target, settings["temperature"])
    )
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
        raise InputError(
            f"{type(model).__name__} has no blocks of a known name: leave out align_weight (--align-weight)"
        )
    return found

"""Classification: the divergence of the model's own predictions. No label is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.architectures.linears import classifiers
from lowrank_vit.architectures.origin import is_clip, kind_of
from lowrank_vit.objectives import OBJECTIVES, SEVERAL, Objective, image_generators, image_signs
from lowrank_vit.runtime.registry import unknown

EMBEDDING = r"clip|pe_core"  # in the name of weights that were trained to embed images
UNCLASSED = ("regression", SEVERAL)  # what a configuration of transformers may say
LABELLED = (1000, 11821, 21841, 21843)  # classes of ImageNet, by which some of them were tuned afterwards


def as_classes(logits: Tensor) -> Tensor:
    """Return logits, (B, classes): a single one is that of yes against no, of which the softmax is the sigmoid.

    >>> as_classes(torch.tensor([[2.0]]))
    tensor([[2., 0.]])
    """
    return F.pad(logits, (0, 1)) if logits.ndim > 1 and logits.shape[-1] == 1 else logits


def sample_labels(logits: Tensor, images: Tensor, seed: int) -> Tensor:
    """Draw one label for each image from the model's own prediction, (batch,)."""
    draws = [torch.rand((), generator=each, dtype=torch.float64) for each in image_generators(images, seed)]
    cumulative = logits.detach().double().softmax(-1).cumsum(-1).cpu()
    chosen = torch.searchsorted(cumulative, torch.stack(draws)[:, None]).squeeze(1)
    return chosen.clamp_max(logits.shape[-1] - 1).to(logits.device)


def probe_labels(logits: Tensor, images: Tensor, seed: int) -> Tensor:
    """Compute the loss of labels sampled from the model's own prediction, summed over the batch.

    Its gradient's second moment is the Fisher information.
    """
    return torch.nn.functional.cross_entropy(logits.float(), sample_labels(logits, images, seed), reduction="sum")


def probe_signs(logits: Tensor, images: Tensor, seed: int) -> Tensor:
    """Compute a loss whose gradient has the Fisher information as its second moment, with less noise than labels.

    Random signs e for each image and class, and ``c = sqrt(p) e - p (sqrt(p)^T e)`` as the gradient at the logits:
    ``E[c c^T] = diag(p) - p p^T`` exactly. A confident prediction nearly always draws its own label, whose gradient is
    nearly zero, and rarely another, whose gradient is huge; here every image always has its full weight.
    """
    p = logits.detach().float().softmax(-1)
    weighted = p.sqrt() * image_signs(images, logits.shape[-1:], seed).to(p)
    return (logits.float() * (weighted - p * weighted.sum(-1, keepdim=True))).sum()


def classes_of(model: nn.Module) -> int | None:
    """Return how many classes a model tells apart: the rows of its classifier, or what it says; None where it does not."""
    ask: Any = getattr(model, "get_classifier", None)
    own = ask() if callable(ask) else None
    heads = [*(own if isinstance(own, tuple) else (own,)), *classifiers(model).values()]
    rows = next((each.out_features for each in heads if isinstance(each, nn.Linear)), None)
    told = getattr(model, "num_classes", None)
    return rows if rows is not None else told if isinstance(told, int) else None


def without_classifier(model: nn.Module) -> str:
    """Say why a model has no classifier; nothing for one that has.

    timm's weights of CLIP and of Perception Encoders have the projection of their embeddings where others have one.
    """
    classes, told = classes_of(model), getattr(getattr(model, "config", None), "problem_type", None)
    if classes == 1 or told in UNCLASSED:
        what = "a single output" if classes == 1 else f"the problem type {told!r}"
        return f"has {what}, which is no choice between classes,"
    if kind_of(model) and not any(isinstance(each, nn.Linear) for each in classifiers(model).values()):
        return "has no classifier"
    if classes is None and is_clip(model):
        return f"embeds images ({type(model).__name__}) and has no classifier"
    if classes == 0:
        return "has no classifier (num_classes is 0)"
    record = getattr(model, "pretrained_cfg", None) or {}
    name = f"{record.get('architecture')}.{record.get('tag')}"
    embeds = re.search(EMBEDDING, name) and classes == _as_trained(name, record) and classes not in LABELLED
    return f"embeds images in {classes} numbers (weights {name}) and has no classifier" if embeds else ""


def _as_trained(name: str, record: Mapping[str, Any]) -> int | None:
    """Return how many outputs timm's weights have, whatever a fine-tuned model's own record says."""
    import timm

    known = timm.models.get_pretrained_cfg(name)
    return record.get("num_classes") if known is None else known.num_classes


PROBES = {"labels": probe_labels, "signs": probe_signs}


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch. Logits: (batch, classes)."""
    log_student = F.log_softmax(as_classes(student).float() / temperature, dim=-1)
    log_teacher = F.log_softmax(as_classes(teacher).float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@OBJECTIVES.register("classification")
@dataclass(frozen=True)
class Classification(Objective):
    """Keep the predicted distribution: ``KL(dense || small)`` in nats per image.

    ``sampling``: how its Fisher information is probed, ``"labels"`` or ``"signs"`` (the same expectation, less noise).
    """

    sampling: str = "labels"

    measures: ClassVar[str] = "kl"

    unit: ClassVar[str] = "nats"

    def __post_init__(self) -> None:
        if self.sampling not in PROBES:
            raise unknown("probe", self.sampling, PROBES)

    @property
    def probe_name(self) -> str:
        return self.sampling

    def lacks(self, model: nn.Module) -> str:
        return without_classifier(model)

    def probe(self, outputs: Tensor, images: Tensor, seed: int) -> Tensor:
        """Return the probing loss of logits (B, classes), summed over the batch."""
        return PROBES[self.sampling](as_classes(outputs), images, seed)

    def reading(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities, (B, classes), float64; of a single output, those of yes and no."""
        return as_classes(outputs.double()).log_softmax(-1)

    def pull(self, small: Tensor, dense: Tensor, temperature: float) -> Tensor:
        return distillation_loss(small, dense, temperature)

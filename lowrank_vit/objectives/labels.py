"""The loss of labels that people gave: of one class for an image, or of several labels, each a yes or a no."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.objectives import Objective
from lowrank_vit.objectives.classification import Classification, classes_of
from lowrank_vit.objectives.multi_label import MultiLabel
from lowrank_vit.records.images import Batch, check_labels, labels_in, labels_of_several


class LabelLoss:
    """Compute the loss of batches by their labels: cross-entropy, or binary cross-entropy, summed over the labels.

    The first batch says which: several labels are a row of 0 and 1 for each image, of which not just one is 1.
    """

    def __init__(self, model: nn.Module, smoothing: float) -> None:
        self.model, self.smoothing = model, smoothing
        self._objective: Objective | None = None

    def objective(self, batch: Batch) -> Objective:
        """Return what a teacher's answers are compared by."""
        if self._objective is None:
            self._objective = Classification() if labels_of_several(batch) is None else MultiLabel()
        return self._objective

    def targets(self, batch: Batch) -> Tensor:
        """Return a batch's labels, (B,), or (B, labels). Raises ``InputError`` for any that the model has no output for."""
        classes = classes_of(self.model)
        if isinstance(self.objective(batch), MultiLabel):
            return labels_in(batch, several=classes)
        labels = labels_in(batch)
        check_labels(labels, classes)
        return labels

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch of the loss of logits, (B, classes), by ``targets``."""
        if targets.ndim == 1:
            return F.cross_entropy(logits.float(), targets, label_smoothing=self.smoothing)
        smooth = targets * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), smooth, reduction="sum") / max(len(targets), 1)

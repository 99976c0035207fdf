"""Refit of the classifier to the dense one's logits, on the features of the smaller model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import is_linear
from lowrank_vit.modules.predicting import predict
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.correct.regression import Folds, add_affine


@dataclass(frozen=True)
class ClassifierRefit:
    """Minimise ``sum_i ||z_i - z^_i - f_i W - b||^2 + ridge s ||W||^2`` over W and b, which are added to the classifier.

    z: the dense model's logits for an image; z^: the smaller model's; f: its features, which the classifier is given. No
    label is read. The ridge is chosen by cross-validation over ``folds`` groups of images.
    """

    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    folds: int = 4

    @torch.no_grad()
    def __call__(
        self,
        dense: nn.Module,
        small: nn.Module,
        sensitivities: Mapping[str, Tensor],
        batches: Iterable[Tensor],
        *,
        progress: bool = False,
    ) -> dict[str, float | None]:
        """Change the classifier of ``small`` in place; return its ridge, ``None`` where nothing was gained.

        ``batches``: the calibration images, (B, C, H, W); ``sensitivities`` are not read.
        Raises ``InputError`` for a model without a classifier that is one linear layer.
        """
        name, head = _classifier(small)
        folds = self._folds(dense, small, head, track(batches, "refit", shown=progress))
        change, shift, ridge = folds.fit(self.ridges)
        add_affine(head, change, shift)
        return {name: ridge}

    def _folds(self, dense: nn.Module, small: nn.Module, head: nn.Linear, batches: Iterable[Tensor]) -> Folds:
        """Sum up, in groups of images, the classifier's inputs and what its logits lack."""
        folds, features = Folds(head, self.folds), list[Tensor]()
        hook = head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        try:
            for images in (batch.to(head.weight.device) for batch in batches):
                missing = predict(dense, images) - predict(small, images)
                h = features.pop()
                folds.add(h[:, None], missing[:, None], torch.ones(len(h), 1, device=h.device))
        finally:
            hook.remove()
        return folds


def _classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """Find the classifier and its name."""
    found = getattr(model, "get_classifier", lambda: None)()
    name = next((name for name, module in model.named_modules() if module is found), "")
    if not is_linear(found):
        raise InputError(f"{type(model).__name__} has no linear classifier to refit: choose another recipe")
    return name, found

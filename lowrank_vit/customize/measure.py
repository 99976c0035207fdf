"""How good a customised small model is: what a judge recognises, how its features are spread, what was learnt by heart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Judged = tuple[Tensor, Tensor]


class Judge:
    """Judge images by an outside classifier of the digits: images (N, 1, 8, 8) in -1..1 to answers and features."""

    def __init__(self, classifier: nn.Module) -> None:
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(classifier)
        self.classifier = classifier.eval()
        self.mean, self.std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Judged:
        """Return the recognised digits (N,) and the pooled features before the classifier, float64 (N, width)."""
        classifier = self.classifier
        device = next(classifier.parameters()).device
        inputs = (((images + 1) / 2 - self.mean) / self.std).to(device)
        pooled = classifier.forward_head(classifier.forward_features(inputs), pre_logits=True)  # type: ignore[operator]
        return classifier.get_classifier()(pooled).argmax(1).cpu(), pooled.double().cpu()  # type: ignore[operator]


def accuracy(answers: Tensor, digits: Tensor | int) -> float:
    """Return how many answers are right, in percent."""
    return 100 * (answers == digits).double().mean().item()


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return the squared Wasserstein distance between normal distributions fitted to two sets of features, float64.

    ``|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)`` with means m and covariances A, B (n - 1); features: (N, width).

    >>> frechet_distance(torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[3.0], [7.0]]).double())  # 4^2 + (2 - 1)^2 2
    18.0
    """
    difference = features.mean(0) - others.mean(0)
    first, second = (torch.atleast_2d(torch.cov(each.T)) for each in (features, others))
    root = _root(first)
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    distance = difference.square().sum() + first.trace() + second.trace() - 2 * overlap
    return round(distance.item(), 10)


def _root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def distance_to_nearest(images: Tensor, known: Tensor) -> float:
    """Return the mean over images (N, C, H, W) of the Euclidean distance to the nearest of ``known``: 0 for copies."""
    return torch.cdist(images.flatten(1), known.flatten(1)).amin(1).mean().item()

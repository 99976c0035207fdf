"""Features: what a model without a classifier hands on, pooled or token by token. No label is read."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.modules.predicting import predict
from lowrank_vit.objectives import OBJECTIVES, Objective, image_signs
from lowrank_vit.records.images import Batches, each_image
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered

FLOOR = 1e-3  # of the mean variance: a feature that hardly varies is no reason to keep a model large
DIGITS = 6  # of a variance: fewer than rounding errors reach, whatever the batch size


def feature_sums(dense: Tensor, small: Tensor) -> Tensor:
    """Sum over images and tokens, feature by feature: 1, f, f^2 and (f - f')^2, (4, n). Both: (B, ..., n)."""
    if dense.ndim < 2:
        raise InputError(f"the model returns {tuple(dense.shape)} for a batch: features are (B, n) or (B, ..., n)")
    rows, error = dense.flatten(0, -2), (dense - small).flatten(0, -2)
    count = rows.new_full(rows.shape[1:], len(rows))
    return torch.stack([count, rows.sum(0), rows.square().sum(0), error.square().sum(0)])


def variances(sums: Tensor, floor: float = FLOOR) -> Tensor:
    """Compute every feature's variance, (n,), from ``feature_sums``: at least ``floor`` times their mean.

    Raises ``InputError`` where nothing varies, as in a single image, or is not finite.
    """
    count, first, second, _ = sums
    spread = second / count - (first / count).square()
    if not spread.isfinite().all():
        raise InputError("the features of the dense model are not finite: check the weights and the images")
    if not spread.mean() > 0:
        raise InputError("the features do not vary over the images: give several different ones")
    return spread.clamp_min(floor * float(spread.mean()))


def feature_error(sums: Tensor) -> Tensor:
    """Compute the mean over all features of ``E (f - f')^2 / Var f`` from ``feature_sums``.

    >>> dense, small = torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    >>> feature_error(feature_sums(dense, small))  # (0 / 1 + 2 / 4) / 2
    tensor(0.2500)
    """
    return (sums[3] / sums[0] / variances(sums)).mean()


@OBJECTIVES.register("features")
@dataclass(frozen=True)
class Features(Objective):
    """Keep what the model returns, (B, n) or (B, ..., n): ``mean_j (f_j - f'_j)^2 / v_j`` per image.

    The mean is over all features j, and all tokens where there are any; 0 is the dense model, and 1 what its mean feature
    would lose. ``variances``, v: of the dense model's features over the calibration images, at least ``floor`` of their
    mean; ``fitted`` measures them, so that the record says all that its numbers depend on.
    """

    variances: tuple[float, ...] = ()

    floor: float = FLOOR

    measures: ClassVar[str] = "feature_error"

    unit: ClassVar[str] = "shares of the features' variance"

    @property
    def probe_name(self) -> str:
        """Return the name of the probe, of which there is one for each set of variances."""
        return f"features {zlib.crc32(repr(self.variances).encode()):08x}"

    def lacks(self, model: nn.Module) -> str:
        """Return nothing: every model that returns a tensor has features."""
        return ""

    def fitted(self, model: nn.Module, batches: Batches) -> "Features":
        """Return the objective with the variances over all images of all processes, unless it has some already.

        Raises ``InputError`` for images that can be gone through only once, and for features that do not vary.
        """
        if self.variances:
            return self
        if isinstance(batches, Iterator):
            raise InputError("the calibration images can be gone through only once: pass a list or a data loader")
        sums = torch.zeros(())
        with torch.inference_mode():
            for images in each_image(batches):
                features = predict(model, images).double().cpu()
                sums = sums + feature_sums(features, features)
        shares = [share for share in gathered(sums) if share.ndim]
        if not shares:
            raise InputError("no images to calibrate on: the data set is empty")
        found = variances(torch.stack(shares).sum(0), self.floor)
        return replace(self, variances=tuple(float(f"{variance:.{DIGITS}g}") for variance in found.tolist()))

    def probe(self, outputs: Tensor, images: Tensor, seed: int) -> Tensor:
        """Compute ``sum_j e_j f_j sqrt(2 / (n v_j))`` with random signs e, n features and tokens; summed over the batch.

        Its gradient c at the features has ``E[c c^T] = diag(2 / (n v))``, the second derivative of the divergence.
        """
        signs = image_signs(images, outputs.shape[1:], seed).to(outputs.device)
        return (signs * self._scaled(outputs.float())).sum() * (2 / outputs[0].numel()) ** 0.5

    def reading(self, outputs: Tensor) -> Tensor:
        """Return the features in units of their deviations, (B, ..., n), float64."""
        return self._scaled(outputs.double())

    def divergence(self, dense: Tensor, small: Tensor) -> Tensor:
        """Return the mean squared error over all features and tokens, summed over the batch."""
        return (dense - small).square().flatten(1).mean(1).sum()

    def pull(self, small: Tensor, dense: Tensor, temperature: float) -> Tensor:
        """Return the divergence, a mean over the batch; features know no temperature."""
        return self.divergence(self._scaled(dense.float()), self._scaled(small.float())) / len(small)

    def _scaled(self, features: Tensor) -> Tensor:
        """Divide features, (B, ..., n), by their deviations."""
        if len(self.variances) != features.shape[-1]:
            raise InputError(
                f"the objective knows the variances of {len(self.variances)} features, the model returns "
                f"{features.shape[-1]}: let `fitted` measure them on the dense model"
            )
        deviations = torch.tensor(self.variances, dtype=features.dtype, device=features.device).sqrt()
        return features / deviations

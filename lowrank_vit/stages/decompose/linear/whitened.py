"""The exact minimiser of the output error: SVD of the whitened weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output


@dataclass(frozen=True)
class _Whitened:
    """Truncate the SVD of ``L^T W`` with ``C = L L^T``: equivalent to PCA of the output. Variants differ in C alone."""

    centred: ClassVar[bool] = False
    normalised: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"second"})
    currency: ClassVar[str] = "energy fraction"

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d). The loss is relative to the energy of the uncentred output."""
        about = moments.mean("input_sum") if self.centred else None  # the mean whose error the bias takes up
        metric = output_metric(weight, moments, centred=False, normalised=self.normalised, about=about)
        factors = project_output(weight, metric.root)
        fraction = float(metric.root.square().sum()) / metric.energy
        return replace(factors, loss=factors.loss * fraction, ridge=metric.ridge)


@DECOMPOSITIONS.register("whitened")
@dataclass(frozen=True)
class Whitened(_Whitened):
    """Minimise ``E||x (W - U V^T)||^2`` exactly: (3) with Z = 0 and no image divided by its energy; SVD-LLM (2403.07378)."""

    revision: ClassVar[int] = 1


@DECOMPOSITIONS.register("whitened_centred")
@dataclass(frozen=True)
class WhitenedCentred(_Whitened):
    """Minimise ``E||(x - mu)(W - U V^T)||^2``, which leaves the mean error to the bias, ``b += mu (W - U V^T)``.

    All images count alike; the paper's (3) divides the error of each by its energy: ``WhitenedCentredNormalised``.
    """

    revision: ClassVar[int] = 1
    centred: ClassVar[bool] = True


@DECOMPOSITIONS.register("whitened_normalised")
@dataclass(frozen=True)
class WhitenedNormalised(_Whitened):
    """Minimise ``E_i[||X_i (W - U V^T)||_F^2 / ||X_i W||_F^2]``, image by image as the paper's (3) has it."""

    revision: ClassVar[int] = 1
    normalised: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"normalised_second"})


@DECOMPOSITIONS.register("whitened_centred_normalised")
@dataclass(frozen=True)
class WhitenedCentredNormalised(WhitenedNormalised):
    """Minimise ``E_i[||(X_i - mu)(W - U V^T)||_F^2 / ||X_i W||_F^2]``: (3), the mean of all tokens left to the bias."""

    revision: ClassVar[int] = 1
    centred: ClassVar[bool] = True

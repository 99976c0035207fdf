"""The exact minimiser of the output error: SVD of the whitened weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lowrank_vit.decompose import DECOMPOSITIONS, project_output
from lowrank_vit.metric import output_metric
from lowrank_vit.records import Factors, Moments


@dataclass(frozen=True)
class _Whitened:
    """SVD of ``L^T W`` with ``C = L L^T``; the variants differ in C alone. Equivalently PCA of the output."""

    centred: ClassVar[bool] = False
    normalised: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"second"})
    currency: ClassVar[str] = "energy fraction"

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d). The loss is relative to the energy of the uncentred output."""
        metric = output_metric(weight, moments, centred=self.centred, normalised=self.normalised)
        factors = project_output(weight, metric.root)
        fraction = float(metric.root.square().sum()) / metric.energy
        return replace(factors, loss=factors.loss * fraction, ridge=metric.ridge)


@DECOMPOSITIONS.register("whitened")
@dataclass(frozen=True)
class Whitened(_Whitened):
    """Minimise ``E||x (W - U V^T)||^2`` exactly: the paper's (3) with Z = 0; SVD-LLM's form (arXiv 2403.07378)."""


@DECOMPOSITIONS.register("whitened_centred")
@dataclass(frozen=True)
class WhitenedCentred(_Whitened):
    """Minimise ``E||(x - mu)(W - U V^T)||^2``: the mean error is left to the bias, ``b += mu (W - U V^T)``."""

    centred: ClassVar[bool] = True


@DECOMPOSITIONS.register("whitened_normalised")
@dataclass(frozen=True)
class WhitenedNormalised(_Whitened):
    """Minimise ``E_i[||X_i (W - U V^T)||_F^2 / ||X_i W||_F^2]``, image by image as the paper's (3) has it."""

    normalised: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"normalised_second"})

"""AAFM: atomic feature mimicking, PCA of the layer's output (Yu and Wu, AAAI 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.looks import PRINTED, Printed, look
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.allocate.rules import GreedyMarginal
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves
from lowrank_vit.stages.decompose import DECOMPOSITIONS, tail_energy


@DECOMPOSITIONS.register("aafm")
@dataclass(frozen=True)
class FeatureMimicking:
    """Set ``U = W V_r``, V_r the leading eigenvectors of the output's covariance (Yu and Wu, AAAI 2023).

    The mean of what is left out goes into the bias.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"output_second"})

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d). The loss is relative to the energy of the uncentred output."""
        second, shift = moments.mean("output_second"), moments.mean("input_sum") @ weight
        eigenvalues, vectors = torch.linalg.eigh(second - torch.outer(shift, shift))
        order = eigenvalues.argsort(descending=True)[: min(weight.shape)]
        v = vectors[:, order]
        energy = second.trace().clamp_min(torch.finfo(weight.dtype).tiny)
        return Factors(weight @ v, v, tail_energy(eigenvalues[order].clamp_min(0).sqrt(), energy))


UNITS = {"decomposition": FeatureMimicking()}
add_recipe(
    "afm_energy",
    units=UNITS,
    allocator=GreedyMarginal(),
    bias_correction=True,
    about="PCA of the output, ranks by its energy, where Yu and Wu take a measured sensitivity (aafm)",
)
add_recipe(
    "aafm",
    units=UNITS,
    sense=MeasuredCurves(),
    bias_correction=True,
    about="PCA of the output, ranks by a measured sensitivity (Yu and Wu); that it is the KL is our reading",
)
look("afm_energy", "h", (4, 3), "olive", "AFM, ranks by energy", "AFM's factors without its sensitivity")
look("aafm", "h", (1, 3), "cyan", "AAFM", "that its sensitivity is the KL, and its choice a knapsack, is our reading")
look("aafm+gfm", "D", (7, 2), "cyan", labels=("aafm + gfm (aafm+gfm)",))
TRAINED = ("calibration-distilled", "not found", "the dense model's features, some 2000 images")
QUOTED = "Yu and Wu 2023, as quoted in Azizi et al. 2024, Table 2"
PRINTED.add(
    "aafm",
    (
        Printed("deit_b", "AAFM + GFM", "58.0M (-33%)", 81.57, "Yu and Wu 2023", *TRAINED),
        Printed("deit_b", "AAFM + GFM", "51.9M (-40%)", 81.28, QUOTED, *TRAINED),
    ),
)

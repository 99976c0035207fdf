"""FWSVD: Fisher-weighted SVD (Hsu et al., ICLR 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.allocate.rules import EqualError, Uniform
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output


@DECOMPOSITIONS.register("fwsvd")
@dataclass(frozen=True)
class FisherWeightedSVD:
    """Minimise ``||D (W - U V^T)||_F``, ``D^2`` the row sums of the diagonal Fisher information (Hsu et al., ICLR 2022).

    Labels are sampled from the model's own prediction, so that no labels are needed.
    """

    floor: float = 1e-8  # of the largest weight: rows that no gradient reaches still count a little

    needs: ClassVar[frozenset[str]] = frozenset({"fisher_rows"})

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        fisher = moments.mean("fisher_rows")
        row_weights = fisher.clamp_min(self.floor * fisher.max()).sqrt()
        return project_output(weight, row_weights[:, None] * weight)


UNITS = {"decomposition": FisherWeightedSVD()}
add_recipe(
    "fwsvd", units=UNITS, allocator=Uniform(), about="SVD with rows weighted by the diagonal Fisher (Hsu et al.)"
)
add_recipe(
    "fwsvd_search",
    units=UNITS,
    allocator=EqualError(),
    sense=MeasuredCurves(),
    about="fwsvd with ranks by one threshold on the measured sensitivity of each layer, as ASVD searches them",
)
look("fwsvd", "p", (3, 3), "olive", "FWSVD, uniform", "without its labelled fine-tuning")
look("fwsvd_search", "p", (5, 2), "blue", "FWSVD + search", "ranks by one threshold on the measured KL")

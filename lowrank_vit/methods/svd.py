"""Plain singular value decomposition of the weight (Eckart and Young, 1936)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.allocate.rules import Uniform
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output


@DECOMPOSITIONS.register("svd")
@dataclass(frozen=True)
class PlainSVD:
    """Minimise ``||W - U V^T||_F``, without statistics (Eckart and Young, 1936)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        return project_output(weight, weight)


add_recipe(
    "svd",
    units={"decomposition": PlainSVD()},
    allocator=Uniform(),
    about="plain SVD of the weight, the same share of every layer",
)


look("svd", "s", (2, 3), "grey", "Plain SVD", labels=("vanilla svd + ft", "vanilla svd"))

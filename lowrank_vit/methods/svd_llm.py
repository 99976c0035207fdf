"""SVD-LLM: the exact minimiser of the error of outputs, by SVD of the whitened weight (Wang et al., arXiv 2403.07378)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.allocate.rules import Uniform
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output


@DECOMPOSITIONS.register("whitened")
@dataclass(frozen=True)
class Whitened:
    """Minimise ``E||x (W - U V^T)||^2`` exactly: (3) with Z = 0 and no image divided by its energy; SVD-LLM (2403.07378).

    It is the truncated SVD of ``L^T W`` with ``C = L L^T``, which is PCA of the output. Subclasses differ in C alone.
    """

    centred: ClassVar[bool] = False
    normalised: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"second"})

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d). The loss is relative to the energy of the uncentred output."""
        about = moments.mean("input_sum") if self.centred else None  # the mean whose error the bias takes up
        metric = output_metric(weight, moments, centred=False, normalised=self.normalised, about=about)
        factors = project_output(weight, metric.root)
        fraction = float(metric.root.square().sum()) / metric.energy
        return replace(factors, loss=factors.loss * fraction, ridge=metric.ridge)


add_recipe(
    "svd_llm",
    units={"decomposition": Whitened()},
    allocator=Uniform(),
    about="whitened SVD, the same share of every layer (Wang et al.)",
)


add_recipe(
    "svd_llm_update",
    units={"decomposition": Whitened()},
    allocator=Uniform(),
    refit=OutputRefit(sensitivity=0.0),
    about="svd_llm, then each branch's last factor refitted on the smaller model's inputs (Wang et al.)",
)


look("svd_llm", "<", (3, 2), "brown", "SVD-LLM, whitening alone", "without its sequential update of the factors")


look(
    "svd_llm_update", "v", (5, 3), "brown", "SVD-LLM, updated",
    "updates the last factor of each branch, towards the dense stream; the paper, one factor of every layer",
)  # fmt: skip

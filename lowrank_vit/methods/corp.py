"""CORP: the most active dimensions, and the others predicted from them by ridge regression (2602.05243).

Read in its repository (BOX-LEO/CORP): units are scored by energy times active rate, the share of tokens with ``|h|`` above
a threshold; here by the energy alone. What goes is a linear map of what stays, of queries and keys jointly, by a Sylvester
equation; of hidden units with a constant. The ridge is at least the oracle's shrinkage (``shrinkage`` here). Statistics are
collected anew before each MLP (``layerwise`` there; ``corp_layerwise`` here refits each branch on a smaller model's inputs).
Its example configurations calibrate on the folder that they evaluate; here calibration never sees it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.linalg.elimination import covariance, oracle_shrinkage
from lowrank_vit.linalg.heads import activation_metrics, round_robin
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.records.factors import Directions, InputSubset, Logits
from lowrank_vit.records.looks import PRINTED, Printed, look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import QUERY_KEY, AttentionSite, MlpSite
from lowrank_vit.stages.allocate.rules import Uniform
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.decompose import ATTENTIONS, MLPS, Weights


@ATTENTIONS.register("coordinates")
@dataclass(frozen=True)
class Coordinates:
    """Keep the same number of query-key dimensions in every head, those of most energy ``E[q_j^2] Var[k_j]``.

    What goes is predicted from what stays by ridge regression, folded into the queries: queries from queries and keys from
    keys, where CORP (2602.05243) solves for one map of both. The energy is our reading.
    What is lost is the share of the module's energy that is left out.
    """

    damping: float = 1e-4  # of the mean eigenvalue of either side's moment

    needs: ClassVar[tuple[frozenset[str], frozenset[str]]] = (frozenset({"input_second"}), frozenset())
    units: ClassVar[tuple[str, ...]] = (QUERY_KEY,)
    pools: ClassVar[bool] = False
    biases: ClassVar[bool] = True

    def logits(self, site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> Logits:
        """Order the dimensions, each head's first, then each head's second; weight: (n, 3 h s), bias: (3 h s,)."""
        heads, width = site.qkv.heads, site.head_width
        queries, keys = (self._damped(each) for each in activation_metrics(site, weight, bias, moments))
        energy, ranking = (queries * keys).diagonal(dim1=1, dim2=2).sort(dim=1, descending=True, stable=True)
        whole = Logits.whole(heads, width, weight)
        order = (ranking + torch.arange(heads).to(ranking)[:, None] * width).flatten()
        robin = round_robin(heads, width).to(order.device)
        shares = energy.flatten()[robin] / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
        loss = torch.cat([shares.flip(0).cumsum(0).flip(0), shares.new_zeros(1)])
        return Logits(Directions(order[robin], loss, heads), whole.query, whole.key, (queries, keys))

    def values(self, site: AttentionSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        order = torch.arange(len(weight), device=weight.device)
        return InputSubset.pruned(Directions(order, weight.new_zeros(len(weight) + 1)), weight)

    def _damped(self, moments: Tensor) -> Tensor:
        """Add the ridge to the moments of all heads, (h, s, s)."""
        roots = [cholesky_root(moment, self.damping)[0] for moment in moments]
        return torch.stack([root @ root.T for root in roots])


@MLPS.register("active_energy")
@dataclass(frozen=True)
class ActiveEnergy:
    """Keep the hidden units of most energy ``E[h_j^2]`` and refit the second layer on them by ridge regression, affinely.

    The compensation of CORP (2602.05243), whose ``active_energy`` multiplies this second moment by the active rate.
    What is lost is the share of the MLP's energy that is left out. ``shrinkage``: the ridge is at least the intensity of
    the oracle approximating shrinkage, as in its code.
    """

    damping: float = 1e-4  # of the mean second moment
    shrinkage: bool = False

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the hidden units; weight: (h, d)."""
        mean, spread, ridge = covariance(moments, self.damping)
        if self.shrinkage:
            least = oracle_shrinkage(spread, moments.tokens)
            mean, spread, ridge = covariance(moments, max(self.damping, least))
        units = Directions.by_share(moments.mean("input_second").diagonal())
        return replace(InputSubset.pruned(units, weight, mean), covariance=spread, ridge=ridge)


add_recipe(
    "corp",
    units={"attention": Coordinates(), "mlp": ActiveEnergy()},
    allocator=Uniform(),
    about="the most active dimensions of queries, keys and hidden units, the rest predicted by ridge regression (CORP)",
)


add_recipe(
    "corp_layerwise",
    units={"attention": Coordinates(), "mlp": ActiveEnergy(shrinkage=True)},
    allocator=Uniform(),
    refit=OutputRefit(sensitivity=0.0),
    about="corp with its shrinkage, each branch refitted on the smaller model's inputs, where CORP takes statistics anew",
)


look(
    "corp", ">", (6, 2), "orange", "CORP, our reading",
    "scores and ridge are ours; all statistics at once, of the dense model",
)  # fmt: skip


look(
    "corp_layerwise", "<", (3, 2), "black", "CORP, layer by layer",
    "scores are ours; outputs refitted in place of statistics anew before each MLP",
)  # fmt: skip


DOUBTED = "its row prints the same 58.2M for MLPs alone and for both: at least one is wrong (both would be 51.2M)"


PRINTED.add(
    "corp",
    tuple(
        Printed(model, "CORP", params, top1, "CORP's repository (2602.05243)", "training-free", "0", note=note)
        for model, params, top1, note in (
            ("deit_b", "58.2M (-33%)", 72.0, DOUBTED),
            ("deit_t", "3.9M (-32%)", 55.4, "MLPs alone, of 72.0 dense"),
            ("deit_t", "3.5M (-39%)", 41.4, "of 72.0 dense"),
        )
    ),
)

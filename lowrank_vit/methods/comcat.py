"""COMCAT: plain low rank of the products that attention computes, ranks by differentiable search (Xiao et al., ICML 2023)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.linalg.heads import round_robin
from lowrank_vit.methods.svd import PlainSVD
from lowrank_vit.records.factors import Directions, InputSubset, Logits
from lowrank_vit.records.looks import PRINTED, Printed, look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import QUERY_KEY, VALUE, AttentionSite
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves
from lowrank_vit.stages.decompose import ATTENTIONS, Weights, tail_energy
from lowrank_vit.stages.search.gates import Gates


def _by_heads(weight: Tensor, heads: int) -> Tensor:
    """Cut a weight, (n, h s), into those of its heads, (h, n, s)."""
    return weight.unflatten(1, (heads, -1)).transpose(0, 1)


def product_bases(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find square transforms P, Q of a head's dimensions with ``left P_r Q_r^T right^T`` the truncated SVD of their product.

    left: (n, s), right: (d, s), ``left right^T = U S V^T``. With ``left = A R`` and ``right = B T`` (A, B orthonormal) it is
    the SVD ``R T^T = X S Y^T``, ``P = R^-1 X S^1/2`` and ``Q = T^-1 Y S^1/2`` by pseudoinverses. Returns P and Q, (s, s), and
    S, (s,).
    """
    r, t = torch.linalg.qr(left).R, torch.linalg.qr(right).R
    x, singular_values, yt = torch.linalg.svd(r @ t.T, full_matrices=False)
    root = singular_values.sqrt()
    return torch.linalg.pinv(r) @ x * root, torch.linalg.pinv(t) @ yt.T * root, singular_values


@ATTENTIONS.register("products")
@dataclass(frozen=True)
class HeadProducts:
    """Truncate the SVDs of ``W_q W_k^T`` and of ``W_v W_o`` of every head, one rank for all heads of a layer.

    The start of COMCAT (Xiao et al., ICML 2023). Its code zeroes the biases of attention; here they are kept: that of the
    queries goes through the same transform, that of the values through the dense product into the output's bias.
    The loss is the energy left out. ``biases``: False leaves the smaller attention without any, as in that code.
    ``bias_row``: the bias of the queries is one more row of ``W_q``, as the logits have it; otherwise the directions are
    those of the weights alone.
    """

    biases: bool = True
    bias_row: bool = False

    needs: ClassVar[tuple[frozenset[str], frozenset[str]]] = (frozenset(), frozenset())
    units: ClassVar[tuple[str, ...]] = (QUERY_KEY, VALUE)
    pools: ClassVar[bool] = False

    def logits(self, site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> Logits:
        """Decompose the product of queries and keys; weight: (n, 3 h s), bias: (3 h s,)."""
        queries, keys = (_by_heads(part, site.qkv.heads) for part in weight.chunk(3, 1)[:2])
        if self.bias_row and self.biases:
            queries = torch.cat([queries, _by_heads(bias.chunk(3)[0][None], site.qkv.heads)], 1)
        query, key, sizes = _stacked(queries, keys)
        return Logits(self._units(site, sizes), query, key)

    def values(self, site: AttentionSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Decompose the product of values and the output layer; weight: (h s, n)."""
        basis, outputs, sizes = _stacked(_by_heads(made[0], site.qkv.heads), _by_heads(weight.T, site.qkv.heads))
        rows = torch.cat(
            [(own @ part.T) for own, part in zip(outputs.mT, _by_heads(weight.T, site.qkv.heads), strict=True)]
        )
        return replace(InputSubset.pruned(self._units(site, sizes), rows, made[1]), basis=basis)

    @staticmethod
    def _units(site: AttentionSite, sizes: Tensor) -> Directions:
        heads = site.qkv.heads
        robin = round_robin(heads, site.head_width).to(sizes.device)
        return Directions(robin, tail_energy(sizes.flatten()[robin]), heads)


def _stacked(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find ``product_bases`` of all heads, (h, s, s) twice and (h, s)."""
    found = [product_bases(*pair) for pair in zip(left, right, strict=True)]
    one, other, sizes = (torch.stack(each) for each in zip(*found, strict=True))
    return one, other, sizes


add_recipe(
    "comcat0",
    units={"attention": HeadProducts(bias_row=True), "decomposition": PlainSVD()},
    sense=MeasuredCurves(),
    about="plain SVD of head products and of the MLPs' layers, ranks by measured KL: where COMCAT begins (Xiao et al.)",
)


add_recipe(
    "comcat",
    units={"attention": HeadProducts(bias_row=True), "decomposition": PlainSVD()},
    search=Gates(),
    about="plain SVD of head products and of MLPs' layers, ranks learnt by gates, to be trained further (Xiao et al.)",
)


look(
    "comcat0", "<", (2, 3), "pink", "COMCAT's start", "no learnt ranks, no training; biases kept, which its code zeroes"
)


look("comcat0, manual", "<", (2, 2), "blue", labels=("comcat's start, manual ranks",))


look("comcat0, energy", "<", (4, 3), "grey", labels=("comcat's start, ranks by energy",))


look("comcat", "<", (9, 3), "red", labels=("comcat (comcat), full ft",))


look("comcat, searched", "<", (5, 3), "green", labels=("comcat, automatic ranks (comcat_search)",))


look("comcat, written", "<", (1, 3), "violet", labels=("comcat (comcat_search), objective as written",))


look("comcat, official", "<", (6, 3), "cyan", labels=("comcat (comcat_search), the code's candidates",))


look("comcat, unbiased", "<", (3, 3), "olive", labels=("comcat (comcat_search), no biases, as in the code",))


RELEASED = "Xiao et al. 2023, released models"


PRINTED.add(
    "comcat", (Printed("deit_b", "COMCAT", "33.8M (-61%)", 82.28, RELEASED, "full-ft+kd", "330", "the dense model"),)
)

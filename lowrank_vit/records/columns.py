"""The columns of a module's weights: what its first layer reads, and what its output layer reads, in one order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_vit.records.factors import Directions
from lowrank_vit.records.sites import AttentionSite, MlpSite, Site
from lowrank_vit.runtime.serialization import storable


def input_reader(site: AttentionSite | MlpSite) -> Site | None:
    """Return the only layer that reads a module's input, so that inputs can be removed.

    None where several layers do, and of attention whose queries and keys stay as they are.
    """
    if len(site.readers) > 1:
        return None
    if isinstance(site, AttentionSite):
        return None if site.dense_logits else site.qkv
    return site.inputs[0]


@storable
@dataclass(frozen=True)
class Columns:
    """Hold a module's inner parts (dimensions of values, or hidden units) and its inputs, the most important first.

    The best of either kind come foremost. Rank r keeps the first ``r + 1``, so that from rank 1 on there is one of either;
    of a module whose inputs all stay it keeps the first r, which are inner parts.
    """

    units: Directions  # ranks alone: ``order`` counts them
    inner: Tensor  # shape: (k,), bool: whether the part is an inner one
    index: Tensor  # shape: (k,), among its kind
    mean: Tensor  # shape: (h,), of the output layer's inputs
    input_mean: Tensor | None  # shape: (n,), of the module's inputs; None where all of these stay

    @classmethod
    def by_score(cls, inner: Tensor, inputs: Tensor | None, mean: Tensor, input_mean: Tensor | None = None) -> Columns:
        """Order inner parts and inputs by their scores, (h,) and (n,); what is lost is the largest score left out."""
        kinds = [inner] if inputs is None else [inner, inputs.to(inner)]
        scores = torch.cat(kinds)
        first = torch.cat([torch.arange(len(each)).to(each.device) == each.argmax() for each in kinds])
        order = scores.masked_fill(first, math.inf).argsort(descending=True, stable=True)
        lost = torch.cat([scores[order], scores.new_zeros(1)]).flip(0).cummax(0).values.flip(0)
        lost = lost[len(kinds) - 1 :]
        is_inner = order < len(inner)
        index = torch.where(is_inner, order, order - len(inner))
        return cls(Directions(torch.arange(len(lost) - 1).to(order), lost), is_inner, index, mean, input_mean)

    @property
    def foremost(self) -> int:
        """Return how many parts a rank keeps in addition to its number."""
        return len(self.inner) - len(self.units.order)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Count the inner parts and the inputs that ranks 0 ... k keep, (k + 1,) each."""
        nothing = self.index.new_zeros(1)
        inner = torch.cat([nothing, self.inner.long().cumsum(0)])
        inputs = torch.arange(len(inner)).to(inner) - inner
        return inner[self.foremost :], inputs[self.foremost :]

    def kept(self, rank: int | None) -> tuple[Tensor, Tensor | None]:
        """Return the indices of inner parts and of inputs that a rank keeps, each ascending; ``None``: all.

        Where all inputs stay, there are no indices of them.
        """
        count = None if rank is None else rank + self.foremost
        inner, index = self.inner[:count], self.index[:count]
        return index[inner].sort().values, None if self.input_mean is None else index[~inner].sort().values

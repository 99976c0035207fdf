"""What decompositions must have: ``W ~ U V^T`` of a linear layer, or of a whole attention module or MLP.

A decomposition of a linear layer is a frozen dataclass, called with the weight (n, d) and the layer's moments; it returns
all directions, ordered. ``needs`` names the statistics that it reads: ``"second"`` is the second moment of the smaller
side, ``"input_second"`` always that of the input. A decomposition of an attention module or an MLP returns what can be
kept of it, direction by direction or hidden unit by hidden unit, with the predicted loss for any number of them.
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lowrank_vit.records.factors import Directions, Factors, InputSubset, Logits, PartsInOrder, SplitRows, WholeHeads
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite, MlpSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry

Weights = tuple[Tensor, Tensor]  # weight and bias of a layer


class Decomposition(Protocol):
    """Define the interface of a decomposition."""

    needs: ClassVar[frozenset[str]]

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d)."""


class AttentionDecomposition(Protocol):
    """Define the interface of a decomposition of a whole attention module."""

    needs: ClassVar[tuple[frozenset[str], frozenset[str]]]  # of the layer of queries, keys and values; of the output's
    units: ClassVar[tuple[str, ...]]  # what is made smaller: QUERY_KEY, VALUE, or both; the other stays whole
    pools: ClassVar[bool]  # whether it takes attention pooling, too

    @property
    def biases(self) -> bool:
        """Tell whether the smaller attention has the biases of the dense one."""

    def logits(self, site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> Logits:
        """Decompose the product of queries and keys; weight: (n, 3 h s), bias: (3 h s,)."""

    def values(self, site: AttentionSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Decompose the product of values, ``made`` by (n, h s) and (h s,), and the output layer; weight: (h s, n)."""


class HeadChoice(Protocol):
    """Define the interface of a choice among the heads of an attention module."""

    needs: ClassVar[frozenset[str]]  # of the output layer

    def __call__(self, site: AttentionSite, moments: Moments) -> WholeHeads:
        """Order the heads, by the statistics of the output layer, whose inputs they make."""


class PartChoice(Protocol):
    """Define the interface of a choice among inner parts and outputs of an attention module or an MLP."""

    needs: ClassVar[frozenset[str]]  # of the output layer

    def __call__(self, site: AttentionSite | MlpSite, moments: Moments) -> PartsInOrder:
        """Order the parts, by the statistics of the output layer."""


class MlpDecomposition(Protocol):
    """Define the interface of a decomposition of a whole MLP."""

    needs: ClassVar[tuple[frozenset[str], ...]]  # of the second layer

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Decompose the second layer, weight: (hidden, d); ``made``: of the first, (n, rows hidden) and (rows hidden,)."""


class TableDecomposition(Protocol):
    """Define the interface of a decomposition of a table that is added to the stream."""

    needs: ClassVar[frozenset[str]]  # at the sum

    def __call__(self, table: Tensor, moments: Moments) -> Factors:
        """Decompose ``table``, (t, n)."""


class ScanDecomposition(Protocol):
    """Define the interface of what makes a scan smaller."""

    needs: ClassVar[tuple[frozenset[str], ...]]  # of the layer before the scan; of the one behind it

    def __call__(self, weight: Tensor, change: Moments, output: Moments) -> Directions:
        """Decompose a scan; weight: (D, n), of the layer after it."""


DECOMPOSITIONS: Registry[type[Decomposition]] = Registry("decomposition", "lowrank_vit.methods")
ATTENTIONS: Registry[type[AttentionDecomposition]] = Registry("attention decomposition", "lowrank_vit.methods")
WHOLE_HEADS: Registry[type[HeadChoice]] = Registry("choice of heads", "lowrank_vit.methods")
GATED: Registry[type[PartChoice]] = Registry("choice of parts", "lowrank_vit.methods")
MLPS: Registry[type[MlpDecomposition]] = Registry("MLP decomposition", "lowrank_vit.methods")
TABLES: Registry[type[TableDecomposition]] = Registry("table decomposition", "lowrank_vit.methods")
SCANS: Registry[type[ScanDecomposition]] = Registry("scan decomposition", "lowrank_vit.methods")


def learnt_scores(moments: Moments, name: str = "learnt") -> Tensor:
    """Return what gates have learnt of a layer's inputs, (n,), or outputs. Raises ``InputError`` where none were trained."""
    if not moments.has(name):
        raise InputError("no gates were trained: the recipe needs a method for `gradual`")
    return moments.sums[name]


def tail_energy(singular_values: Tensor, total: Tensor | None = None) -> Tensor:
    """Compute the energy lost at ranks 0 ... k: sums of the squared singular values that are left out, (k + 1,)."""
    squares = singular_values.square()
    tail = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return tail if total is None else tail / total


def project_output(weight: Tensor, root: Tensor) -> Factors:
    """Return ``W V_r V_r^T``, V the right singular vectors of ``root``: the minimiser of ``||root (I - P)||`` over rank r.

    With ``root = M W`` for an invertible M this is ``M^-1`` times the truncated SVD of ``M W``, without an inverse.
    weight: (n, d); root: (., d). The loss is the fraction of the energy of ``root`` that is left out.
    """
    rank = min(weight.shape)
    _, singular_values, vt = torch.linalg.svd(root, full_matrices=False)
    singular_values, v = singular_values[:rank], vt[:rank].T
    total = root.square().sum().clamp_min(torch.finfo(root.dtype).tiny)
    return Factors(weight @ v, v, tail_energy(singular_values, total))


class ColumnChoice(Protocol):
    """Define the interface of a choice of inputs and inner parts."""

    needs: ClassVar[frozenset[str]]  # of the output layer

    def __call__(self, output: Moments, first: Moments | None) -> PartsInOrder:
        """Order the parts, by the statistics of the output layer and of the first one; None where all inputs stay."""


COLUMNS: Registry[type[ColumnChoice]] = Registry("choice of columns", "lowrank_vit.methods")


class BlockChoice(Protocol):
    """Define the interface of a choice of blocks."""

    needs: ClassVar[frozenset[str]]  # nothing yet

    def __call__(self, count: int) -> Directions:
        """Order ``count`` blocks, those that stay longest first."""


DEPTHS: Registry[type[BlockChoice]] = Registry("choice of blocks", "lowrank_vit.methods")


class RowChoice(Protocol):
    """Define the interface of a choice of rows."""

    needs: ClassVar[frozenset[str]]

    @property
    def share(self) -> float:
        """Return the share of the layer's parameters that its low-rank part has."""

    def __call__(self, weight: Tensor, rank: int, moments: Moments) -> SplitRows:
        """Split ``weight``, (n, d), into a part of this rank, and rows in their order."""


ROWS: Registry[type[RowChoice]] = Registry("choice of rows", "lowrank_vit.methods")

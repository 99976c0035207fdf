"""Ours: attention head by head, MLPs by interpolation, scans left out, position tables at a rank, one budget of loss.

Attention keeps directions of the products that it computes: queries with keys, values with the output layer, with the
softmax and the scale of the original head width. Everything happens in a head's own s dimensions, where both products are
an identity to approximate, so no (n, n) matrix is factorised.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.linalg.elimination import covariance, eliminate
from lowrank_vit.linalg.heads import activation_metrics, blend, query_key, round_robin, value_basis
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.methods.loss_aware import TwoSided
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.factors import Directions, Factors, InputSubset, Logits
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import QUERY_KEY, VALUE, AttentionSite, MlpSite
from lowrank_vit.stages.correct.measured_losses import MeasuredLosses
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.decompose import ATTENTIONS, MLPS, SCANS, TABLES, Weights, tail_energy


def pooled_logits(queries: Tensor, moments: Moments) -> Logits:
    """Find the directions in which the keys of an attention pooling are compared with its queries, (h, L, s).

    With ``Q = U S V^T`` a head's logits are ``U S (V^T k)``: at most L directions, whatever s is, and nothing is lost.
    Without the direction v the loss is ``1/2 (v^T R v) (v^T K v) / t``, as for ``query_key``; of a single query it is
    exactly the second-order one, as D is ``q w^T``. The statistics are those of the layer of the keys.
    """
    u, singular_values, vt = torch.linalg.svd(queries, full_matrices=False)
    metrics = [moments.mean(f"head_fisher_{side}") for side in ("key", "query")]  # of D^T, so the other way round
    left, right = (((metric @ vt.mT) * vt.mT).sum(1) for metric in metrics)  # (h, r) each
    energy = metrics[0].diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(metrics[0].dtype).tiny)
    gains = (0.5 * left * right / energy[:, None]).flatten()
    order = gains.argsort(descending=True)
    return Logits(
        Directions(order, tail_energy(gains[order].clamp_min(0).sqrt())), u * singular_values[:, None, :], vt.mT
    )


@ATTENTIONS.register("heads")
@dataclass(frozen=True)
class HeadLowRank:
    """Keep directions of an attention module, head by head: of queries with keys, and of values with the output.

    Directions of values are chosen by elimination, as hidden units are, with the covariance across heads, so that heads
    make up for what another one loses. ``each_head``: every head has its own rank; otherwise one for all of a layer.
    """

    revision: ClassVar[int] = 1

    activation_share: float = 0.5  # of the logits' metric: moments of independent tokens; the rest is the Fisher
    logit_damping: float = 0.1  # of the mean eigenvalue of both sides' Fisher information
    damping: float = 1e-4  # of the values' mean second moment
    gradient_damping: float = 0.1  # of the mean eigenvalue of the gradient's second moment
    sensitivity: float = 0.5  # of a token's weight, for the values: how far the loss's gradient decides it
    each_head: bool = True

    units: ClassVar[tuple[str, ...]] = (QUERY_KEY, VALUE)
    pools: ClassVar[bool] = True
    biases: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    @staticmethod
    def pooled(queries: Tensor, moments: Moments) -> Logits:
        """Decompose the logits of attention pooling by ``pooled_logits``."""
        return pooled_logits(queries, moments)

    needs: ClassVar[tuple[frozenset[str], frozenset[str]]] = (
        frozenset({"input_second", "head_fisher"}),
        frozenset({"input_second", "gradient_second", "sensitive_second"}),
    )

    def logits(self, site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> Logits:
        """Decompose the layer that makes queries and keys, (n, 3 h s) and (3 h s,), by its statistics."""
        fisher = (moments.mean("head_fisher_query"), moments.mean("head_fisher_key"))
        activations = activation_metrics(site, weight, bias, moments)
        metrics = zip(
            *[blend(*pair, self.activation_share) for pair in zip(fisher, activations, strict=True)], strict=True
        )
        query, key, gains = map(
            torch.stack, zip(*[query_key(left, right, self.logit_damping) for left, right in metrics], strict=True)
        )
        heads, width = site.qkv.heads, site.head_width
        robin = round_robin(heads, width).to(gains.device)
        order = gains.flatten().argsort(descending=True) if self.each_head else robin
        loss = tail_energy(gains.flatten()[order].sqrt())
        return Logits(Directions(order, loss, 1 if self.each_head else heads), query, key)

    def values(self, site: AttentionSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Decompose the output layer's weight, (h s, n), by its statistics."""
        heads, width = site.qkv.heads, site.head_width
        mean, spread, ridge = covariance(moments, self.damping, self.sensitivity)
        root, _ = cholesky_root(moments.mean("gradient_second"), self.gradient_damping)
        blocks = [slice(head * width, (head + 1) * width) for head in range(heads)]
        basis = torch.stack([value_basis(spread[block, block], weight[block] @ root) for block in blocks])
        whole = torch.block_diag(*basis)
        spread, weight = whole.T @ spread @ whole, torch.linalg.solve(whole, weight)
        robin = None if self.each_head else round_robin(heads, width).to(weight.device)
        order, loss = eliminate(spread, weight @ root, robin)
        units = Directions(order, loss, 1 if self.each_head else heads)
        return InputSubset(units, basis, spread, mean, weight, ridge)


@MLPS.register("interpolative")
@dataclass(frozen=True)
class Interpolation:
    """Keep hidden units of an MLP by backward elimination and refit its second layer on them.

    The loss is ``1/2 tr(G E^T C E)`` in nats per image: C the hidden covariance over weighted tokens, G the second
    moment of the loss gradient at the MLP's output, summed over the tokens of an image.
    """

    revision: ClassVar[int] = 1

    damping: float = 1e-4  # of the mean second moment: shrinks the refit towards the weight as it was
    gradient_damping: float = 0.1  # of the mean eigenvalue of G
    sensitivity: float = 0.5  # of a token's weight: how far the loss's gradient decides it

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second", "gradient_second", "sensitive_second"}),)
    ordered: ClassVar[bool] = True

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Decompose the second layer; weight: (h, d), moments: its statistics."""
        mean, spread, ridge = covariance(moments, self.damping, self.sensitivity)
        root, _ = cholesky_root(moments.mean("gradient_second"), self.gradient_damping)
        order, loss = eliminate(spread, weight @ root)
        return InputSubset(Directions(order, loss), None, spread, mean, weight, ridge)


@SCANS.register("leave_out")
@dataclass(frozen=True)
class LeaveOut:
    """Keep all channels of a scan, or none.

    The loss is ``1/2 tr(G W^T C W)`` in nats per image: C the second moment of what the output layer W is no longer
    given, G that of the loss's gradient at its output, summed over the tokens of an image.
    """

    revision: ClassVar[int] = 1

    gradient_damping: float = 0.1  # of the mean eigenvalue of G, as in the decompositions beside it

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"scan_change"}), frozenset({"gradient_second"}))

    def __call__(self, weight: Tensor, change: Moments, output: Moments) -> Directions:
        """Predict the loss; weight: (D, n) of the output layer, ``change``, ``output``: of the first and of this layer.

        The one direction is the skip: with it alone, or without it, the scan is left out.
        """
        root, _ = cholesky_root(output.mean("gradient_second"), self.gradient_damping)
        lost = weight @ root
        loss = 0.5 * (lost * (change.mean("scan_change") @ lost)).sum()
        return Directions(torch.zeros(1, dtype=torch.long, device=loss.device), loss.expand(2).clone())


@TABLES.register("kronecker")
@dataclass(frozen=True)
class KroneckerTable:
    """Minimise ``tr(A E B E^T) / (2 tr A)``, ``E = P - U V^T``: the loss increase where a table P: (t, n) is added.

    G: (t, n) is an image's loss gradient at the sum; ``A = E[G G^T]``, ``B = E[G^T G]``, whose traces are equal. Their
    Kronecker product over that trace stands for the Fisher information, as in Shampoo (Gupta et al., 2018). With
    ``A = L L^T`` and ``B = K K^T`` it is the SVD ``L^T P K = X S Q^T``: ``U = P K Q``, ``V = K^-T Q``. In nats per image.
    """

    revision: ClassVar[int] = 1

    damping: float = 0.1  # of both mean eigenvalues

    needs: ClassVar[frozenset[str]] = frozenset({"gradient_rows", "gradient_second"})

    def __call__(self, table: Tensor, moments: Moments) -> Factors:
        rows, columns = moments.mean("gradient_rows"), moments.mean("gradient_second")
        rows = rows[-len(table) :, -len(table) :]  # a class token may be put before the sum
        left, ridge = cholesky_root(rows, self.damping)
        right, _ = cholesky_root(columns, self.damping)
        _, singular_values, qt = torch.linalg.svd(left.T @ table @ right, full_matrices=False)
        q = qt.T
        energy = rows.trace().clamp_min(torch.finfo(rows.dtype).tiny)
        loss = tail_energy(singular_values) / (2 * energy)
        return Factors(table @ right @ q, torch.linalg.solve_triangular(right.T, q, upper=True), loss, ridge)


HEADS = add_recipe(
    "heads",
    units={"attention": HeadLowRank(), "mlp": Interpolation(), "scan": LeaveOut(), "decomposition": TwoSided()},
    bias_correction=True,
    objective=Classification(sampling="signs"),
    measured=MeasuredLosses(),
    refit=OutputRefit(),
    about="attention by head, MLP by interpolation, scans left out, others two-sided, one budget of predicted loss",
)


add_recipe(
    "best",
    HEADS,
    units={**HEADS.units, "patches": TwoSided(), "positions": KroneckerTable()},
    folded=True,
    pivoted=None,
    tokens=None,
    about="heads, and embeddings at a rank, norms folded",
)


look("heads", "v", (1, 2), "green", "Ours, blocks alone")
look("best", "*", (1, 2), "green", "Ours")

"""Low rank of the products that attention computes: queries with keys, values with the output layer.

Head by head, with the softmax and the scale of the original head width. Everything happens in a head's own s dimensions,
where both products are an identity to approximate, so no (n, n) matrix is factorised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.linalg.elimination import covariance, eliminate
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.records.factors import Directions, InputSubset, Logits
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import QUERY_KEY, VALUE, AttentionSite
from lowrank_vit.stages.decompose import ATTENTIONS, Weights, tail_energy


def query_key(query_metric: Tensor, key_metric: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the directions of ``logit = q^T k`` of one head, ordered by their loss.

    The loss of replacing ``q^T k`` by ``q^T B k`` is ``1/2 tr(R (I - B) K (I - B)^T) / t``: the Kronecker approximation
    of the Fisher information of B, ``R = E[D D^T]``, ``K = E[D^T D]``, ``t = E||D||^2``, D an image's gradient of B.
    As the attention of a query sums to one, D ignores what is constant over keys: key biases and means do not count.
    With ``R = L L^T`` and ``K = J J^T`` it is the SVD ``L^T J = U S V^T``; ``B = (L^-T U sqrt(S)) (J^-T V sqrt(S))^T``.

    query_metric, key_metric: (s, s); ``damping`` is relative to their mean eigenvalues.
    Returns the queries' and the keys' transforms, (s, s) each, best direction first, and each direction's loss, (s,).
    """
    energy = query_metric.diagonal().sum()
    left, _ = cholesky_root(query_metric, damping)
    right, _ = cholesky_root(key_metric, damping)
    u, singular_values, vt = torch.linalg.svd(left.T @ right)
    root = singular_values.sqrt()
    query = torch.linalg.solve_triangular(left.T, u, upper=True) * root
    key = torch.linalg.solve_triangular(right.T, vt.T, upper=True) * root
    return query, key, 0.5 * singular_values.square() / energy.clamp_min(torch.finfo(energy.dtype).tiny)


def value_basis(covariance: Tensor, weight: Tensor) -> Tensor:
    """Find a basis of a head's values in which its output's directions are independent, most loss first, (s, s).

    The output is ``o W``, o: (s,) with the given covariance ``L L^T``, W: (s, d) already multiplied by the root of the
    output's metric: ``L^T W = U S V^T``, and ``L^-T U`` turns o into white directions of loss ``S^2 / 2`` each.
    """
    root, _ = cholesky_root(covariance)
    u, _, _ = torch.linalg.svd(root.T @ weight, full_matrices=False)
    return torch.linalg.solve_triangular(root.T, u, upper=True)


def activation_metrics(site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Compute every head's second moment of queries and covariance of keys, (h, s, s) each, from those of the input.

    weight: (n, 3 h s), bias: (3 h s,) of the layer that makes queries, keys and values.
    """
    inner = weight.shape[1] // 3
    mean, spread, _ = covariance(moments)
    queries, keys = (w.unflatten(1, (site.qkv.heads, -1)).transpose(0, 1) for w in weight.split(inner, 1)[:2])
    centre = (mean @ weight + bias)[:inner].unflatten(0, (site.qkv.heads, -1))
    return queries.mT @ spread @ queries + centre[:, :, None] * centre[:, None, :], keys.mT @ spread @ keys


def blend(fisher: Tensor, activations: Tensor, share: float) -> Tensor:
    """Replace ``share`` of the Fisher information by the activations' moment, scaled to its trace; (h, s, s) each."""
    traces = [moment.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] for moment in (fisher, activations)]
    scaled = activations * (traces[0] / traces[1].clamp_min(1e-30))
    return (1 - share) * fisher + share * scaled


def round_robin(heads: int, width: int) -> Tensor:
    """Order every head's first direction, then every head's second, ..., (heads * width,): one rank for all heads."""
    return torch.arange(heads * width).view(heads, width).T.flatten()


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

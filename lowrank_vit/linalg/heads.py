"""Products that attention computes, in a head's own s dimensions: metrics of its logits, and bases of its values."""

import torch
from torch import Tensor

from lowrank_vit.linalg.elimination import covariance
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite


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

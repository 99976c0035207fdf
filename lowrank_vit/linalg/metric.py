"""Products that moments are made of, and errors of a layer's output measured on them: the metric that compares all methods.

Of ``X^T X`` only the blocks on and above the diagonal are computed and summed, as panels of p columns: ``(1 + p / n) / 2`` of
the work and of the memory of the full matrix, in pieces that stay in the cache. ``assembled`` makes the full matrix of a sum,
once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments

PANEL = 128  # columns: narrower panels save more work, but their products are slower
PIECE = 64  # rows that are added up in float32
# the last ones are for inputs that hardly vary, such as CaiT's even attention: their covariance is rounding
RIDGES = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2)


def gram_panels(x: Tensor, weights: Tensor | None = None) -> list[Tensor]:
    """Compute ``X^T diag(w) X`` for rows x: (rows, n), weights (rows,) >= 0, in panels (p, n), (p, n - p), ...

    Rows of weight zero are left out if they are the majority: in a last block they are nearly all.
    """
    if weights is not None:
        nonzero = weights != 0
        if 2 * int(nonzero.sum()) < len(x):
            x, weights = x[nonzero], weights[nonzero]
        x = x * weights.sqrt()[:, None]
    return [x[:, start : start + PANEL].T @ x[:, start:] for start in range(0, x.shape[1], PANEL)]


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Compute ``X^T w``, (n,), float64, for rows x: (rows, n) and weights (rows,), with a relative error of about ``1e-7``.

    A single float32 product adds one row after the other: over ten thousand rows its error is up to 1e-4 of the mean, which
    some covariances cannot afford. So it is computed in pieces.
    """
    whole = len(x) // PIECE * PIECE
    pieces = torch.bmm(weights[:whole].view(-1, 1, PIECE), x[:whole].view(-1, PIECE, x.shape[1]))
    return pieces.sum((0, 1), dtype=torch.float64) + weights[whole:] @ x[whole:]


def assembled(panels: Sequence[Tensor]) -> Tensor:
    """Assemble the symmetric matrix, (n, n), from the panels of its upper half."""
    n = panels[0].shape[1]
    whole = panels[0].new_empty(n, n)
    for index, panel in enumerate(panels):
        start, stop = index * PANEL, index * PANEL + len(panel)
        whole[start:stop, start:] = panel
        whole[stop:, start:stop] = panel[:, len(panel) :].T
    return whole


def gram(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the full ``X^T diag(w) X``, (n, n); see ``gram_panels``."""
    return assembled(gram_panels(x, weights))


def cholesky_root(moment: Tensor, damping: float = 0.0, scale: Tensor | None = None) -> tuple[Tensor, float]:
    """Compute lower ``L`` with ``L L^T = moment + ridge * scale * I``, and the relative ridge that it took.

    The ridge is the smallest of ``RIDGES`` (added to ``damping``) that makes the factorisation sound, so statistics of
    fewer tokens than dimensions work too. moment: (k, k), symmetric, positive semidefinite. ``scale``: the size
    that the moment's rounding errors are relative to, by default its mean diagonal; a covariance, as a difference of larger
    matrices, needs the size of those.
    Raises ``ValueError`` if even the largest ridge fails, that is, if the moment is not finite.
    """
    scale = (moment.diagonal().mean() if scale is None else scale).clamp_min(1e-200)
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    for ridge in RIDGES:
        root, failed = torch.linalg.cholesky_ex(moment + (ridge + damping) * scale * identity)
        # a pivot at rounding level would make the inverse meaningless
        if not failed and root.diagonal().square().min() > 1e-13 * scale:
            return root, ridge + damping
    raise ValueError("the second moment of its inputs is not positive semidefinite")


def about_mean(second: Tensor, mean: Tensor) -> Tensor:
    """Compute the covariance, (n, n), of a second moment about zero and the mean, (n,).

    It has the rounding errors of the second moment: where inputs hardly vary it may have negative eigenvalues, so factor it
    with a ridge relative to the second moment's diagonal.
    """
    return second - torch.outer(mean, mean)


@dataclass(frozen=True)
class OutputMetric:
    """Measure a change E of the weight by ``||E||^2 = tr(E^T C E)``: the mean squared change of a token's output.

    ``root`` is any T with ``T^T T = W^T C W``; ``left`` is ``L^T`` with ``C = L L^T``, or ``None`` where only the
    output's second moment was collected (then only changes of the form ``W B`` can be measured).
    """

    weight: Tensor  # shape: (n, d)
    root: Tensor  # shape: (., d)
    left: Tensor | None  # shape: (n, n)
    mean: Tensor  # shape: (n,), of the input
    energy: float  # E||x W||^2, not centred: the denominator of every relative error
    ridge: float

    @cached_property
    def inverse(self) -> Tensor:
        """Compute the pseudoinverse of the weight, (d, n), once for many changes of the weight."""
        return torch.linalg.pinv(self.weight)

    def image(self, u: Tensor) -> Tensor:
        """Compute ``L^T u`` up to a rotation, which keeps all inner products. u: (n, k).

        Raises ``ValueError`` if only output statistics were collected and u leaves the column space of W.
        """
        if self.left is not None:
            return self.left @ u
        coefficients = self.inverse @ u
        # the residual of a weight at its full rank is rounding, which may have any direction
        if torch.dist(self.weight @ coefficients, u) > 1e-6 * u.norm() + 1e-12 * self.weight.norm():
            raise ValueError("this factor needs the input's second moment: collect 'input_second'")
        return self.root @ coefficients

    def error_curve(self, factors: Factors) -> Tensor:
        """Compute the relative errors of ranks 0 ... k at once, (k + 1,), in O(k^2 (n + d)) without a loop over ranks.

        ``||T - sum_i u_i v_i^T||^2`` is expanded: partial sums of the products of both Gram matrices give all ranks.
        """
        left, v = self.image(factors.u), factors.v
        cross = (left * (self.root @ v)).sum(0).cumsum(0)
        gram = ((left.T @ left) * (v.T @ v)).cumsum(0).cumsum(1).diagonal()
        total = self.root.square().sum()
        errors = torch.cat([total[None], total - 2 * cross + gram]) / self.energy
        return errors.clamp_min(0.0)

    def relative_error(self, approximation: Tensor, shift: Tensor | None = None) -> float:
        """Compute the relative error of any approximation of the weight, (n, d), with ``shift`` (d,) added to the bias.

        ``E||x E - shift||^2 / E||x W||^2``, E the error of the weight; for an uncentred metric only.
        """
        error = self.weight - approximation
        squared = self.image(error).square().sum()
        if shift is not None:
            squared = squared - 2 * shift @ (self.mean @ error) + shift.square().sum()
        return max(float(squared), 0.0) / self.energy


def _root(second: Tensor, mean: Tensor, centre: Tensor | None) -> tuple[Tensor, float]:
    """Compute the root of the second moment about zero or ``centre``; both have the rounding errors of the one about zero."""
    if centre is None:
        moment = second
    else:
        away = mean - centre
        moment = about_mean(second, mean) + torch.outer(away, away)
    return cholesky_root(moment, scale=second.diagonal().mean())


def output_metric(
    weight: Tensor, moments: Moments, *, centred: bool, normalised: bool = False, about: Tensor | None = None
) -> OutputMetric:
    """Make the metric of a layer from whichever second moment was collected.

    ``centred``: the covariance in place of the second moment, for layers whose mean error goes into the bias; ``about``,
    (n,): the second moment about this point, for layers whose bias absorbs the error of another mean.
    ``normalised``: every image weighted by ``1 / ||X_i W||_F^2``, the paper's (3).
    """
    prefix = "normalised_" if normalised else ""
    mean = moments.mean(prefix + "input_sum")
    centre = mean if about is None and centred else about
    if moments.has(prefix + "input_second"):
        second = moments.mean(prefix + "input_second")
        energy = float((weight * (second @ weight)).sum())
        root, ridge = _root(second, mean, centre)
        return OutputMetric(weight, root.T @ weight, root.T, mean, max(energy, 1e-300), ridge)
    second = moments.mean(prefix + "output_second")
    root, ridge = _root(second, mean @ weight, None if centre is None else centre @ weight)
    return OutputMetric(weight, root.T, None, mean, max(float(second.trace()), 1e-300), ridge)

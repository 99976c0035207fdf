"""Round with error feedback: what one weight loses is made up for by the weights of its row that are not yet rounded.

Frantar, Ashkboos, Hoefler and Alistarh: GPTQ, ICLR 2023, with two additions. The scale of a row is searched, and the moment
is that about the mean wherever the layer has a bias, which takes up the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.modules.quantized_linear import check_bits
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.quantize import QUANTIZERS, Codes
from lowrank_vit.stages.quantize.nearest import grid, round_to_grid

PANEL = 32  # columns whose errors are passed on together to the rest of the row: a product in place of many outer ones


@QUANTIZERS.register("gptq")
@dataclass(frozen=True)
class ErrorFeedback:
    """Minimise ``sum over rows of e C e^T``, ``e = w - s (q - z)``, C the second moment of the layer's inputs.

    Greedy, weight by weight, largest input first: each rounding error is spread over the weights behind it as the least
    squares solution demands (GPTQ, equations (2) and (3)). Rows do not depend on each other, so each takes the best of
    several scales, nearest rounding among the candidates: no row errs more under C than by ``nearest``.

    ``damping``: share of the mean diagonal added to C, or more if it takes more until it factors.
    ``shrinkages``: a row's range is cut to these shares.
    """

    damping: float = 0.01
    shrinkages: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)

    needs: ClassVar[frozenset[str]] = frozenset({"input_second"})

    def __post_init__(self) -> None:
        if self.damping <= 0 or not self.shrinkages or not all(0 < share <= 1 for share in self.shrinkages):
            raise InputError(
                f"damping={self.damping}, shrinkages={self.shrinkages}: need more than 0, and shares from 0 to 1"
            )

    def __call__(self, weight: Tensor, bits: int, name: str = "the weight", moment: Tensor | None = None) -> Codes:
        """Return codes uint8 (d, n), scale float16 (d,) and zero point uint8 (d,) of weight (d, n); moment: (n, n).

        Raises ``InputError``, which begins with ``name``, without a moment, and as ``nearest`` does.
        """
        check_bits(bits)
        if moment is None:
            raise InputError(f"{name} needs the second moment of its inputs to be rounded by gptq: pass images")
        if not moment.isfinite().all():
            raise InputError(f"the inputs of {name} have moments that are not finite: check the weights and the images")
        exact, moment = weight.detach().double(), moment.double()
        grids = [grid(exact, bits, share, name) for share in self.shrinkages]
        scale, zero_point = (torch.cat(parts) for parts in zip(*grids, strict=True))
        rows = exact.repeat(len(grids), 1)
        fed_back, more = self._rounded(rows, scale, zero_point, 2**bits - 1, moment)
        nearest = round_to_grid(exact, *grid(exact, bits, 1.0, name), 2**bits - 1)
        codes = torch.cat([nearest, fed_back])
        scale, zero_point = torch.cat([scale[: len(exact)], scale]), torch.cat([zero_point[: len(exact)], zero_point])
        losses = _losses(exact, codes, scale, zero_point, moment)
        if more:  # C is rounding: what it does not see shall not grow either
            steady = moment + more * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
            losses = _losses(exact, codes, scale, zero_point, steady).where(losses <= losses[0], torch.inf)
        best = losses.argmin(0) * len(exact)
        best += torch.arange(len(exact), device=best.device)
        return codes[best].to(torch.uint8), scale[best], zero_point[best].to(torch.uint8)

    def _rounded(
        self, rows: Tensor, scale: Tensor, zero_point: Tensor, top: int, moment: Tensor
    ) -> tuple[Tensor, float]:
        """Round (r, n) column by column with feedback; a panel of columns at a time.

        Returns codes, float64 (r, n), and the ridge that was added to C if it was more than the damping.
        """
        order = moment.diagonal().argsort(descending=True, stable=True)
        factor, more = _inverse_factor(moment[order][:, order], self.damping)
        rows, codes = rows[:, order], torch.empty_like(rows)
        for start in range(0, rows.shape[1], PANEL):
            stop = min(start + PANEL, rows.shape[1])
            panel, errors = rows[:, start:stop].clone(), rows.new_empty(len(rows), stop - start)
            for column in range(stop - start):
                values = panel[:, column : column + 1]
                code = round_to_grid(values, scale, zero_point, top)
                codes[:, start + column] = code[:, 0]
                back = (code - zero_point[:, None]) * scale.double()[:, None]
                across = factor[start + column, start + column : stop]
                errors[:, column : column + 1] = (values - back) / across[0]
                panel[:, column:] -= errors[:, column : column + 1] * across
            rows[:, stop:] -= errors @ factor[start:stop, stop:]
        return codes[:, order.argsort()], more


def _inverse_factor(moment: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return upper triangular R with ``R^T R = (C + ridge I)^-1``, (n, n); the ridge is ``damping mean(diag C)``.

    Where that does not factor, as C is rounding, it is raised tenfold until it does, and returned, too; otherwise 0.
    """
    tiny, size = torch.finfo(torch.float64).tiny, moment.abs().max()
    ridge, more = damping * moment.diagonal().mean().clamp_min(tiny), 0.0
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    while True:
        root, failed = torch.linalg.cholesky_ex(moment + ridge * identity)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
            if not failed and factor.isfinite().all():
                return factor, more
        ridge = 10 * torch.maximum(ridge, 1e-16 * size.clamp_min(1e-200))
        more = float(ridge)


def _losses(weight: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor, moment: Tensor) -> Tensor:
    """Return ``e C e^T`` of each candidate of each row, (candidates, d)."""
    back = (codes - zero_point.double()[:, None]) * scale.double()[:, None]
    errors = weight.repeat(len(codes) // len(weight), 1) - back
    return ((errors @ moment) * errors).sum(1).view(-1, len(weight))

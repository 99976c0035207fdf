"""Error feedback solves the least squares problem that it claims to solve, and no row errs more than by nearest rounding."""

import itertools

import pytest
import torch
from torch import Tensor

from lowrank_vit.modules.quantized_linear import dequantize
from lowrank_vit.stages.quantize import QUANTIZERS, Codes
from lowrank_vit.stages.quantize.gptq import PANEL, ErrorFeedback
from lowrank_vit.stages.quantize.nearest import quantize_tensor
from tests.support.cases import in_turn

UNCUT = (1.0,)


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make weights and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), inputs.T @ inputs / len(inputs)


def losses(weight: Tensor, codes: Codes, moment: Tensor) -> Tensor:
    error = weight - dequantize(codes[0], codes[1].double(), codes[2])
    return ((error @ moment) * error).sum(1)


@pytest.mark.parametrize(("name", "bits"), in_turn(QUANTIZERS.names(), range(2, 9)))
def test_no_row_errs_more_than_by_nearest_rounding(name: str, bits: int) -> None:
    weight, moment = problem(9, 24, seed=bits)
    codes = QUANTIZERS.get(name)()(weight, bits, moment=moment)
    assert int(codes[0].max()) < 2**bits
    nearest = losses(weight, quantize_tensor(weight, bits), moment)
    assert (losses(weight, codes, moment) <= nearest * (1 + 1e-12)).all()
    if name == "gptq":
        assert losses(weight, codes, moment).sum() < 0.6 * nearest.sum()


def refitted(weight: Tensor, moment: Tensor, bits: int) -> Tensor:
    """Round one weight after the other; solve for all those left each time, by a dense system. One row at a time."""
    _, scale, zero_point = quantize_tensor(weight, bits)
    order = moment.diagonal().argsort(descending=True, stable=True).tolist()
    codes = torch.zeros_like(weight)
    for row in range(len(weight)):
        current, step, zero = weight[row].clone(), scale[row].double(), zero_point[row].double()
        for place, column in enumerate(order):
            codes[row, column] = ((current[column] / step).round() + zero).clamp(0, 2**bits - 1)
            left, fixed = order[place + 1 :], order[: place + 1]
            if not left:
                break
            lost = weight[row, fixed] - (codes[row, fixed] - zero) * step
            spread = torch.linalg.solve(moment[left][:, left], moment[left][:, fixed] @ lost)
            current[left] = weight[row, left] + spread
    return codes


@pytest.mark.parametrize("columns", [1, 5, PANEL, PANEL + 7])
def test_feedback_is_the_least_squares_solution_for_the_weights_left(columns: int) -> None:
    weight, moment = problem(4, columns)
    method = ErrorFeedback(damping=0.05, shrinkages=UNCUT)
    damped = moment + 0.05 * moment.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    _, scale, zero_point = quantize_tensor(weight, 3)
    codes, _ = method._rounded(weight.clone(), scale, zero_point.double(), 7, moment)
    assert torch.equal(codes, refitted(weight, damped, 3))


def test_by_hand() -> None:
    """Inputs that are always equal: 0.4 + 0.4 is 0.8, so one of the two becomes 1; nearest rounding makes both 0."""
    weight = torch.tensor([[0.4, 0.4, 3.0]], dtype=torch.float64)
    moment = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    codes, scale, _ = ErrorFeedback(damping=1e-6, shrinkages=UNCUT)(weight, 2, moment=moment)
    assert scale.tolist() == [1.0]
    assert sorted(codes[0, :2].tolist()) == [0, 1]
    assert quantize_tensor(weight, 2)[0].tolist() == [[0, 0, 3]]


def test_between_the_best_codes_of_all_and_the_nearest() -> None:
    weight, moment = problem(6, 4)
    codes = ErrorFeedback(shrinkages=UNCUT)(weight, 2, moment=moment)
    _, scale, zero_point = quantize_tensor(weight, 2)
    every = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float64)
    for row in range(len(weight)):
        error = weight[row] - (every - zero_point[row].double()) * scale[row].double()
        least = ((error @ moment) * error).sum(1).min()
        assert least * (1 - 1e-12) <= losses(
            weight[row : row + 1], tuple(part[row : row + 1] for part in codes), moment
        )

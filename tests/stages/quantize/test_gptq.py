"""Rounding to nearest and with error feedback: bounds, the problem that is solved, packing, and quantised models."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from lowrank_vit import compress
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.quantized_linear import dequantize
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.stages.quantize import QUANTIZERS, Codes
from lowrank_vit.stages.quantize import weights as quantize
from lowrank_vit.stages.quantize.gptq import PANEL, ErrorFeedback
from lowrank_vit.stages.quantize.nearest import quantize_tensor
from lowrank_vit.stages.quantize.weights import quantize_linear
from tests.support.cases import in_turn
from tests.support.models import images, same, tiny

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


@pytest.mark.parametrize(("name", "bits"), in_turn(QUANTIZERS.names(), [2, 3, 8]))
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
        own = tuple(part[row : row + 1] for part in codes)
        assert least * (1 - 1e-12) <= losses(weight[row : row + 1], own, moment)


BITS = range(2, 9)


def test_nearest_by_hand() -> None:
    """Row 0: s = 3 / 3, z = round(0.9). Row 1, all positive: the range is [0, 6], not [3, 6], so s = 6 / 3."""
    weight = torch.tensor([[-0.9, 2.1], [3.0, 6.0]])
    codes, scale, zero_point = quantize_tensor(weight, 2)
    assert (scale.tolist(), zero_point.tolist()) == ([1.0, 2.0], [1, 0])
    assert codes.tolist() == [[0, 3], [2, 3]]  # 3 / 2 = 1.5 is rounded to even
    assert dequantize(codes, scale.float(), zero_point).tolist() == [[-1.0, 2.0], [4.0, 6.0]]


weights = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-1000, 1000) | st.floats(0, 1e-3) | st.sampled_from([0.0, 5.0, -5.0]),
)


@settings(deadline=None, max_examples=300)
@given(weights, st.sampled_from(BITS))
def test_every_error_is_at_most_half_a_step(array: np.ndarray, bits: int) -> None:
    weight = torch.from_numpy(array)
    codes, scale, zero_point = quantize_tensor(weight, bits)
    step = scale.double()[:, None]
    back = (codes.double() - zero_point.double()[:, None]) * step
    assert ((weight - back).abs() <= step / 2 * (1 + 1e-9)).all()
    assert int(codes.max()) < 2**bits
    assert (back[weight == 0] == 0).all()
    width = weight.amax(1).clamp_min(0) - weight.amin(1).clamp_max(0)  # the range with 0 in it
    ideal = (width / (2**bits - 1))[:, None]
    ideal = torch.where(ideal > 0, ideal, 1.0)
    assert (step <= ideal * (1 + 2**-9) + 2**-24).all()  # no coarser than (16) but for the scale's float16


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_a_linear_layer_of_its_weights(bias: bool) -> None:
    for bits in BITS:
        torch.manual_seed(bits)
        linear = nn.Linear(7, 5, bias=bias)
        layer = quantize_linear(linear, bits)
        x = torch.randn(2, 3, 7)
        codes, scale, zero_point = quantize_tensor(linear.weight, bits)
        twin = copy.deepcopy(linear)
        twin.weight.data = (codes.float() - zero_point.float()[:, None]) * scale.float()[:, None]
        assert torch.equal(layer(x), twin(x))
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        assert not list(layer.parameters())
        assert sum(tensor.dtype == torch.uint8 for tensor in layer.buffers()) == 2


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(
    ("kind", "bits", "smaller"), [("vit", 3, False), ("swin", 8, False), ("vit", 4, True), ("swin", 4, True)]
)
def test_a_quantised_model(kind: str, bits: int, smaller: bool) -> None:
    """Block linears are replaced, the rest is rounded, and the whole is its dequantised twin; nothing else changes."""
    model = compress(tiny(kind), [images(12, kind)], "exact", 0.3)[0] if smaller else tiny(kind)
    assert any(name.endswith(".down") for name in linear_names(model)) == smaller
    before = copy.deepcopy(model)
    quantized, addition = quantize.quantize(model, bits)
    assert same(model, before)
    replaced = [name for name in linear_names(model) if "blocks." in name]
    assert replaced
    assert not set(replaced) & set(linear_names(quantized))
    assert set(linear_names(model)) - set(replaced) == set(linear_names(quantized))
    entry = addition["quantization"]
    assert (entry["bits"], entry["layers"]) == (bits, len(replaced))
    assert parameter_count(quantized) == parameter_count(model)
    twin = copy.deepcopy(quantized)
    for name in replaced:
        layer = twin.get_submodule(name)
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight.data = layer.weight
        if layer.bias is not None:
            assert torch.equal(layer.bias, model.get_submodule(name).bias.half().float())
            linear.bias.data = layer.bias
        replace_module(twin, name, linear)
    with torch.no_grad():
        assert torch.equal(quantized(images(3, kind)), twin(images(3, kind)))
    for name, tensor in quantized.state_dict().items():
        assert not tensor.is_floating_point() or torch.equal(tensor.half().float(), tensor), name


def test_the_weight_error_is_that_of_all_layers_together() -> None:
    model = tiny()
    quantized, addition = quantize.quantize(model, 3)
    names = [name for name in linear_names(model) if "blocks." in name]
    both = [(model.get_submodule(name).weight.detach(), quantized.get_submodule(name).weight) for name in names]
    w, q = (torch.cat([pair[side].flatten() for pair in both]) for side in (0, 1))
    assert addition["quantization"]["relative_weight_error"] == pytest.approx(float((q - w).norm() / w.norm()))

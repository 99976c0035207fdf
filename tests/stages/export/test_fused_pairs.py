"""A pair of thin products in one kernel: interpreted on the CPU, and compiled for a GPU that need not be there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import fuse_pairs
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.stages.export import fused_pairs
from lowrank_vit.stages.export.fused_pairs import FusedPair
from tests.stages.export.test_formats import small

triton = pytest.importorskip("triton", reason="this build of torch has no Triton")
KERNEL = "lowrank_vit.stages.export.pair_kernel"
HALF = 2.0**-11  # what a number is off by, at most, when it is rounded to float16
SHAPES = [(1, 5, 1, 3), (16, 64, 16, 64), (197, 192, 50, 576), (33, 100, 17, 70), (40, 65, 256, 65)]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The kernel as Triton interprets it, which it decides when the file is imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    yield importlib.import_module(KERNEL)
    sys.modules.pop(KERNEL, None)


@pytest.fixture
def calls(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the kernel."""
    rows: list[int] = []
    computed = kernel.pair

    def pair(x: torch.Tensor, *factors: Any) -> Any:
        rows.append(len(x))
        return computed(x, *factors)

    monkeypatch.setattr(kernel, "pair", pair)
    return rows


def layer(
    n: int = 20, rank: int = 5, d: int = 30, bias: bool = True, correction: nn.Module | None = None
) -> LowRankLinear:
    torch.manual_seed(0)
    return LowRankLinear(n, d, rank, bias, correction).half().eval().requires_grad_(False)


def fused(one: LowRankLinear) -> FusedPair:
    replaced = fuse_pairs(nn.Sequential(one))[0]
    assert isinstance(replaced, FusedPair)
    return replaced


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_product_of_float64(shape: tuple[int, int, int, int], bias: bool, kernel: ModuleType) -> None:
    rows, n, rank, d = shape
    torch.manual_seed(0)
    sizes = [(rows, n), (rank, n), (d, rank), (d,)]
    x, down, up, shift = (torch.randn(size).half() for size in sizes)
    y = kernel.pair(x, down, up, shift if bias else None).double()
    thin = x.double() @ down.double().T
    truth = thin @ up.double().T + bias * shift.double()
    rounded_once = HALF * truth.abs() + HALF * thin.abs() @ up.double().abs().T
    assert ((y - truth).abs() <= 1.01 * rounded_once + 1e-3 * HALF).all()


def test_without_a_bias_and_with_a_correction(calls: list[int]) -> None:
    x = torch.randn(7, 20).half()
    one = layer(bias=False, correction=nn.Linear(20, 30).half().requires_grad_(False))
    torch.testing.assert_close(fused(one)(x), one(x), rtol=2e-3, atol=2e-3)
    assert calls == [7]


@pytest.mark.parametrize("case", ["rows", "gradients", "float32", "nothing"])
def test_elsewhere_there_are_two_products(case: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = layer(), torch.randn(4, 20).half()
    if case == "rows":
        monkeypatch.setattr(fused_pairs, "MOST_ROWS", 3)
    elif case == "gradients":
        x.requires_grad_()
    elif case == "float32":
        one, x = one.float(), x.float()
    else:
        x = x[:0]
    assert torch.equal(fused(one)(x), one(x))
    assert calls == []


def test_a_compressed_model_computes_the_same(calls: list[int]) -> None:
    model = small("digits_deit_small", "exact").half()
    ready, x = fuse_pairs(model), torch.randn(2, 1, 8, 8).half()
    pairs = [module for module in ready.modules() if isinstance(module, FusedPair)]
    assert len(pairs) == sum(type(module) is LowRankLinear for module in model.modules()) > 0
    with torch.inference_mode():
        torch.testing.assert_close(ready(x), model(x), rtol=5e-3, atol=5e-3)
    assert len(calls) == len(pairs)


@pytest.mark.parametrize("rank", [16, 64, 256])
def test_it_compiles_for_a_gpu(rank: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, for Hopper: with tensor cores, within the shared memory that every block may have."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    kernel: Any = importlib.import_module(KERNEL)
    tensors, sizes = ("x", "down", "up", "bias", "y"), ("rows", "inputs", "outputs", "rank")
    tiles = {"tile_rows": kernel.ROWS, "tile_inputs": kernel.INPUTS, "tile_outputs": kernel.OUTPUTS, "tile_rank": rank}
    constants = {"has_bias": True, **tiles}
    signature = dict.fromkeys(tensors, "*bf16") | dict.fromkeys(sizes, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel._pair, signature=signature, constexprs=constants)
    options = {"num_warps": kernel.WARPS, "num_stages": kernel.STAGES}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "mma" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 48 * 1024

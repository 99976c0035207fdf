"""The caller's world stays outside: what surrounds a model, its precision, how it is trained, and what torch is set to."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import analyse, compress, load, quantize, save
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.modules.counting import model_hash
from lowrank_vit.runtime.errors import InputError
from tests.support.cases import few, in_turn
from tests.support.models import ARGUMENTS, distance, images, outputs, same, small_vit, tiny

RECIPES = ["best", "loss_aware"]
DATA = images(24).split(8)


def made(model: nn.Module, recipe: str = "best", **options: Any) -> dict[str, torch.Tensor]:
    return compress(model, DATA, recipe, 0.4, device="cpu", **options)[0].state_dict()


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, torch.Tensor]]:
    """What a model in evaluation mode gives, with nothing around it."""
    return {recipe: made(tiny(), recipe) for recipe in RECIPES}


@pytest.mark.parametrize("recipe", few(RECIPES, 1))
def test_gradient_checkpointing_counts_no_image_twice(recipe: str, plain: Any) -> None:
    model: Any = tiny()
    model.set_grad_checkpointing(True)
    analysis = analyse(model, DATA, recipe, device="cpu")
    assert {moments.images for moments in analysis.moments.values()} == {24}
    assert same(made(model, recipe), plain[recipe])
    assert model.grad_checkpointing is True


class Averaged(torch.optim.swa_utils.AveragedModel):
    """The model of an exponential moving average."""


@pytest.mark.parametrize(
    "wrap", few([lambda model: nn.DataParallel(Averaged(model)), nn.DataParallel, Averaged, torch.compile], 1)
)
def test_what_surrounds_a_model_is_taken_off_and_said(wrap: Any, plain: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert same(made(wrap(tiny())), plain["best"])
    assert "the VisionTransformer inside the" in caplog.text


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


AROUND = [partial(torch.autocast, "cpu", torch.bfloat16), float64, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize(("recipe", "around"), in_turn(RECIPES, AROUND))
def test_settings_of_torch_change_nothing(recipe: str, around: Any, plain: Any) -> None:
    model = tiny()
    with around():
        assert same(made(model, recipe), plain[recipe])


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16], 1))
def test_a_model_in_half_precision_is_computed_in_float32(dtype: torch.dtype, tmp_path: Any) -> None:
    """It is that of the widened model, rounded."""
    model, data = tiny().to(dtype), images(8).to(dtype)
    small, report = compress(model, data.split(4), "best", 0.3, held_out=[data[:2]])
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    expected, told = compress(tiny().to(dtype).float(), data.float().split(4), "best", 0.3, held_out=[data[:2].float()])
    assert same(small, expected.to(dtype))
    assert report["layers"] == told["layers"]
    assert model.head.weight.dtype == dtype
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    assert same(load(tmp_path / "small"), small)
    assert model_hash(model) != model_hash(small)


def test_inputs_that_hardly_vary_are_decomposed() -> None:
    """The covariance of a constant is what the sum of its squares was rounded by, here 2e-4 of it, of either sign."""
    generator = torch.Generator().manual_seed(0)
    noise = 2e-4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = noise + noise.T
    assert torch.linalg.eigvalsh(covariance)[0] < -1e-4
    root, ridge = cholesky_root(covariance, scale=torch.ones((), dtype=torch.float64))
    assert 1e-4 < ridge <= 1e-2
    assert torch.allclose(root @ root.T, covariance + ridge * torch.eye(4, dtype=torch.float64))


X = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def sharing(kind: str) -> Any:
    """A ViT whose second block has something of the first one."""
    model = small_vit(3, embed_dim=48, num_heads=3)
    first, second = model.blocks[:2]
    if kind == "a weight":
        second.mlp.fc1.weight = first.mlp.fc1.weight
    elif kind == "a layer":
        second.attn.proj = first.attn.proj
    elif kind == "a norm":
        second.norm1 = first.norm1
    else:
        model.blocks[1] = first
    return model


SHARED = {  # what stays dense
    "a weight": ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"],
    "a layer": ["blocks.0.attn.proj"],
    "a block": [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")],
    "a norm": [],
}


@pytest.mark.parametrize(("kind", "recipe"), few(in_turn(SHARED, ["best", "exact"])))
def test_what_shares_stays_dense(kind: str, recipe: str, tmp_path: Path) -> None:
    dense, names = sharing(kind), SHARED[kind]
    small, report = compress(dense, [X], recipe, 0.1, device="cpu")
    reasons = report["left_dense"].get("reasons", {})
    assert list(reasons) == names
    assert all("tied to" in reason for reason in reasons.values())
    for name in names:
        assert torch.equal(small.get_submodule(name).weight, dense.get_submodule(name).weight)  # type: ignore[arg-type]
    assert distance(small, dense, X) < 0.3
    save(small, tmp_path / "small", report)
    torch.testing.assert_close(outputs(load(tmp_path / "small"), X), outputs(small, X))


def test_nothing_is_left_where_every_block_is_one() -> None:
    model = sharing("a block")
    model.blocks[2] = model.blocks[0]
    with pytest.raises(
        InputError, match=r"no layer to compress: 'blocks\.0\.attn\.qkv' is tied to 'blocks\.1\.attn\.qkv'"
    ):
        compress(model, [X], "best", 0.2, device="cpu")


@pytest.mark.parametrize("kind", few(["a weight", "a layer", "a block"], 1))
def test_rounding_leaves_it_too(kind: str) -> None:
    rounded, addition = quantize(sharing(kind), 4)
    assert list(addition["quantization"]["left_dense"]) == SHARED[kind]
    assert 0 < distance(rounded, sharing(kind), X) < 0.3

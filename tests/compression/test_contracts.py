"""What users hand in: any precision, batches of any shape, outputs of other libraries; it works, or one line says why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lowrank_vit import InputError, compare, compress, evaluate, load, quantize, save
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.modules.counting import model_hash
from lowrank_vit.objectives.classification import without_classifier
from tests.support.models import ARGUMENTS, images, outputs, tiny


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = state(model), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
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


@pytest.mark.parametrize(("name", "recipe"), [("pixel_values", "best"), ("image", "loss_aware")])
def test_batches_may_be_dictionaries(name: str, recipe: str) -> None:
    data = images(8)
    batches = [{"index": torch.arange(4), name: part} for part in data.split(4)]
    small, _ = compress(tiny(), batches, recipe, 0.3)
    assert same(small, compress(tiny(), data.split(4), recipe, 0.3)[0])


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"pixels": images(4)}, r"entries \['pixels'\]: name one of them 'pixel_values' or 'image'"),
        ((255 * images(4)).to(torch.uint8), "is torch.uint8: pass tensors of normalised floats"),
        (["a.jpg"], "is str"),
        (torch.zeros(4, 1, 9, 9), r"the images are \(1, 9, 9\) .*the model takes \(1, 8, 8\)"),
        (torch.zeros(4, 3, 8, 8), r"the images are \(3, 8, 8\) .*the model takes \(1, 8, 8\)"),
    ],
)
def test_a_batch_that_cannot_be_used_is_one_line(batch: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        compress(tiny(), [batch], "best", 0.3)
    assert "\n" not in str(refused.value)


class Dying(Dataset[tuple[Tensor, int]]):
    """Images whose loading process is killed."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        os._exit(1)


def test_a_dead_worker_is_one_line() -> None:
    loader = DataLoader(Dying(), batch_size=2, num_workers=1)
    for act in (lambda: compress(tiny(), loader, "svd", 0.3), lambda: evaluate(tiny(), loader, progress=False)):
        with pytest.raises(InputError, match=r"has died.*workers=0"):
            act()


class Wrapped(nn.Module):
    """A model that answers as Hugging Face's do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.vit, self.kind = tiny(), kind

    def forward(self, pixel_values: Tensor) -> Any:
        logits = self.vit(pixel_values)
        if self.kind == "object":
            return SimpleNamespace(loss=None, logits=logits)
        return {"logits": logits} if self.kind == "dictionary" else (logits, None)


@pytest.mark.parametrize("kind", ["object", "dictionary", "tuple"])
def test_outputs_may_be_those_of_hugging_face(kind: str) -> None:
    small, _ = compress(Wrapped(kind), [images(8)], "loss_aware", 0.3)
    expected, _ = compress(tiny(), [images(8)], "loss_aware", 0.3)
    assert torch.equal(outputs(small.vit, images(3)), outputs(expected, images(3)))
    loader = [(images(4), torch.arange(4))]
    pairs = DataLoader(list(zip(*loader[0], strict=True)), batch_size=4)
    assert evaluate(small, pairs, progress=False) == evaluate(expected, pairs, progress=False)


def test_outputs_without_logits_are_one_line() -> None:
    model = Wrapped("object")
    model.forward = lambda x: SimpleNamespace(pooled=x)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="returns a SimpleNamespace without logits"):
        compress(model, [images(4)], "loss_aware", 0.3)


class Labelled(Dataset[dict[str, Any]]):
    """Images and labels by their names."""

    def __init__(self, key: str = "labels") -> None:
        self.data, self.key = images(6), key

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.data[index], self.key: index}


def test_dictionaries_are_evaluated() -> None:
    pairs = DataLoader(list(zip(images(6), range(6), strict=True)), batch_size=4)
    expected = evaluate(tiny(), pairs, progress=False)
    for key in ("labels", "label"):
        assert evaluate(tiny(), DataLoader(Labelled(key), batch_size=4), progress=False) == expected
    with pytest.raises(InputError, match="'labels' or 'label'"):
        evaluate(tiny(), DataLoader(Labelled("classes"), batch_size=4), progress=False)
    with pytest.raises(InputError, match="has no labels"):
        evaluate(tiny(), DataLoader(images(6), batch_size=4), progress=False)


def test_features_have_no_accuracy() -> None:
    dense = tiny()
    dense.reset_classifier(0)
    small, _ = compress(dense, [images(8)], "exact", 0.3)
    loader = DataLoader(images(6), batch_size=4)  # labels are not read
    with pytest.raises(InputError, match=r"no classifier .*pass the dense model"):
        evaluate(small, loader, progress=False)
    found = evaluate(small, loader, dense=dense, progress=False)
    wanted, given = outputs(dense, images(6)), outputs(small, images(6))
    shares = (wanted - given).double().square().mean(0) / wanted.double().var(0, correction=0)
    assert found == {"feature_error": pytest.approx(float(shares.mean())), "n": 6}
    assert compare(dense, small, [images(4), images(6)[4:]])["n"] == 6
    assert evaluate(dense, loader, dense=dense, progress=False) == {"feature_error": 0, "n": 6}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_base_patch16_clip_224.openai", "embeds images in 512"),
        ("vit_pe_core_tiny_patch16_384.fb", "embeds images in 512"),
        ("vit_base_patch16_clip_224.laion2b_ft_in1k", ""),
        ("vit_base_patch16_siglip_224.webli", "no classifier"),
        ("deit_tiny_patch16_224.fb_in1k", ""),
    ],
)
def test_weights_that_embed_are_no_classifiers(name: str, said: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        assert said in without_classifier(model) if said else without_classifier(model) == ""
        if said:
            model.reset_classifier(37)
            assert without_classifier(model) == ""


def unseen() -> Iterator[Tensor]:
    raise AssertionError("an image was read")
    yield torch.zeros(0)


@pytest.mark.parametrize("recipe", ["exact", "best"])
def test_a_compressed_model_is_not_compressed_again(recipe: str) -> None:
    once, _ = compress(tiny(), [images(8)], recipe, 0.2)
    for model in (once, quantize(tiny(), 8)[0]):
        with pytest.raises(InputError, match=r"already \(blocks.0.*start from the dense model"):
            compress(model, unseen(), recipe, 0.2)


def test_inputs_that_hardly_vary_are_decomposed() -> None:
    """The covariance of a constant is what the sum of its squares was rounded by, here 2e-4 of it, of either sign."""
    generator = torch.Generator().manual_seed(0)
    noise = 2e-4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = noise + noise.T
    assert torch.linalg.eigvalsh(covariance)[0] < -1e-4
    root, ridge = cholesky_root(covariance, scale=torch.ones((), dtype=torch.float64))
    assert 1e-4 < ridge <= 1e-2
    assert torch.allclose(root @ root.T, covariance + ridge * torch.eye(4, dtype=torch.float64))

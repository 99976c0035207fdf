"""Models, batches and labels as people pass them: they work as they are, or end in one line."""

import copy
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lowrank_vit import InputError, compress, distill, evaluate, finetune, quantize
from tests.support.models import images, tiny

X, Y = images(24), torch.arange(24) % 10
BATCHES, PAIRS = list(X.split(8)), list(zip(X.split(8), Y.split(8), strict=True))
Named = namedtuple("Named", "picture kind")


def small(model: nn.Module, data: Any = BATCHES, recipe: str = "best") -> nn.Module:
    return compress(model, data, recipe, 0.3, device="cpu", progress=False)[0]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    outputs: Tensor = model(X)
    return outputs


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class Once:
    """Batches that are gone after the first time, though it is no iterator."""

    def __init__(self) -> None:
        self.left = iter(BATCHES)

    def __iter__(self) -> Iterator[Tensor]:
        return self.left


SAME: dict[str, Any] = {
    "dictionaries": [{"pixel_values": each} for each in BATCHES],
    "named tuples": [Named(*pair) for pair in PAIRS],
    "an empty batch among them": [BATCHES[0], X[:0], *BATCHES[1:]],
    "a stream": DataLoader(Stream(), 8),
    "channels last": [each.contiguous(memory_format=torch.channels_last) for each in BATCHES],
    "images with gradients": [each.clone().requires_grad_() for each in BATCHES],
    "labels of any kind": [(each, ["cat"] * 8) for each in BATCHES],
}


@pytest.fixture(scope="module")
def right() -> Tensor:
    return logits(small(tiny()))


@pytest.mark.parametrize("form", SAME)
def test_batches_of_any_form_give_the_same(form: str, right: Tensor) -> None:
    torch.testing.assert_close(logits(small(tiny(), SAME[form])), right)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Once(), "can be gone through only once"),
        (iter(BATCHES), "can be gone through only once"),
        ([UserDict(x=X)], "name one of them 'pixel_values'"),
        (TensorDataset(X), "pass batches, a DataLoader"),
        ([each.byte() for each in BATCHES], "torch.uint8"),
        ([each[..., :6] for each in BATCHES], r"the images are \(1, 8, 6\)"),
        ([each * float("nan") for each in BATCHES], "not finite"),
        ([], "no images"),
    ],
)
def test_other_batches_are_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        small(tiny(), data)
    assert "\n" not in str(error.value)


class Own(nn.Module):
    """A class of the user's, whose only part is called as ``DataParallel`` calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).softmax(-1)


def each_block(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model: Any = tiny()
    for place, block in enumerate(model.blocks):
        model.blocks[place] = wrap(block)
    return model


class WithBuffer(nn.Linear):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("calls", torch.zeros(1))


def with_buffer() -> nn.Module:
    model: Any = tiny()
    model.blocks[0].mlp.fc1 = WithBuffer(model.blocks[0].mlp.fc1)
    return model


AS_BARE: dict[str, Callable[[], nn.Module]] = {
    "blocks checkpointed": lambda: each_block(checkpoint_wrapper),
    "blocks compiled": lambda: each_block(torch.compile),  # type: ignore[arg-type]
    "training": lambda: tiny().train(),
    "frozen": lambda: tiny().requires_grad_(False),
}


@pytest.mark.parametrize("kind", AS_BARE)
def test_a_model_like_the_bare_one(kind: str, right: Tensor) -> None:
    torch.testing.assert_close(logits(small(AS_BARE[kind]()).eval()), right)


def test_a_layer_with_a_buffer_is_a_plain_layer(right: Tensor) -> None:
    made = small(with_buffer())
    assert float((logits(made) - right).norm()) < 0.1 * float(right.norm())


def test_a_class_of_the_user_s_keeps_what_it_computes(right: Tensor) -> None:
    made = small(Own(tiny()))
    assert isinstance(made, Own)
    assert float((logits(made) - logits(Own(tiny()))).norm() / logits(made).norm()) < 0.3
    rounded, _ = quantize(Own(tiny()), 8)
    torch.testing.assert_close(logits(rounded).sum(1), torch.ones(24))


def test_a_default_device_stays_outside(right: Tensor) -> None:
    model = tiny()
    with torch.device("meta"):
        made = small(model)
    torch.testing.assert_close(logits(made), right)


def lazy() -> nn.Module:
    model: Any = tiny()
    model.blocks[0].mlp.fc1 = nn.LazyLinear(64)
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return tiny()


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(self, *, pictures: Tensor) -> Tensor:
        logits: Tensor = self.inner(pictures)
        return logits


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lazy, r"blocks\.0\.mlp\.fc1\.weight has no values yet"),
        (on_meta, "device 'meta'"),
        (lambda: torch.jit.trace(tiny(), X[:1]), "TorchScript"),
        (Keyword, "takes images by the keyword pictures alone"),
    ],
)
def test_other_models_are_refused_in_one_line(make: Callable[[], nn.Module], message: str) -> None:
    model = make()
    for refused in (lambda: small(model), lambda: quantize(model, 8)):
        with pytest.raises(InputError, match=message):
            refused()


QUIET: dict[str, Any] = {"epochs": 1, "progress": False}


class TestTraining:
    def test_values_that_are_no_numbers_are_told(self) -> None:
        bad = [(each * float("nan"), labels) for each, labels in PAIRS]
        with pytest.raises(InputError, match="outputs are not numbers"):
            evaluate(tiny(), bad, progress=False)
        with pytest.raises(InputError, match=r"not finite after the epochs \(fine-tune\)"):
            finetune(tiny(), bad, **QUIET)
        with pytest.raises(InputError, match=r"not finite after the epochs \(distil\)"):
            distill(tiny(), tiny(), X * float("nan"), **QUIET)

    def test_empty_batches_are_passed_over(self) -> None:
        padded = [PAIRS[0], (X[:0], Y[:0]), *PAIRS[1:]]
        assert evaluate(tiny(), padded, progress=False) == evaluate(tiny(), PAIRS, progress=False)
        model = tiny()
        finetune(model, padded, **QUIET)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        with pytest.raises(InputError, match="no images to train on"):
            finetune(tiny(), [], **QUIET)

    def test_distillation_takes_batches_too(self) -> None:
        student = compress(tiny(), BATCHES, "svd", 0.4, device="cpu", progress=False)[0]
        ends = []
        for form in (X, BATCHES, DataLoader(TensorDataset(X), 8)):
            ends.append(logits(distill(copy.deepcopy(student), tiny(), form, **QUIET).model))
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[0], ends[2])
        with pytest.raises(InputError, match=r"torch\.uint8"):
            distill(student, tiny(), X.byte(), **QUIET)


def test_a_model_on_meta_has_no_accuracy() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(InputError, match="device 'meta'"):
        evaluate(model, PAIRS, progress=False)

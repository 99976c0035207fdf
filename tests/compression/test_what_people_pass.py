"""Models, batches and labels as people pass them: they work as they are, or end in one line."""

import copy
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lowrank_vit import InputError, compress, distill, evaluate, finetune, load, quantize, save
from tests.support.cases import few
from tests.support.models import distance, images, outputs, tiny

X, Y = images(24), torch.arange(24) % 10
BATCHES, PAIRS = list(X.split(8)), list(zip(X.split(8), Y.split(8), strict=True))
Named = namedtuple("Named", "picture kind")


def small(model: nn.Module, data: Any = BATCHES, recipe: str = "best") -> nn.Module:
    return compress(model, data, recipe, 0.3, device="cpu", progress=False)[0]


def logits(model: nn.Module) -> Tensor:
    return outputs(model, X)


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


@pytest.mark.parametrize("form", few(SAME))
def test_batches_of_any_form_give_the_same(form: str, right: Tensor) -> None:
    torch.testing.assert_close(logits(small(tiny(), SAME[form])), right)


BAD = [
    (Once(), "can be gone through only once"),
    (iter(BATCHES), "can be gone through only once"),
    ([UserDict(x=X)], "name one of them 'pixel_values'"),
    (TensorDataset(X), "pass batches, a DataLoader"),
    ([each.byte() for each in BATCHES], "torch.uint8"),
    ([None], "a batch of images is a NoneType"),
    ([()], "a batch of images is a tuple"),
    (["train/cat.png"], "a batch of images is a str"),
    (list(X), r"torch\.float32 \(1, 8, 8\): pass tensors \(B, C, H, W\)"),
    ([each[..., :6] for each in BATCHES], r"the images are \(1, 8, 6\)"),
    ([each * float("nan") for each in BATCHES], "not finite"),
    ([], "no images"),
]


def test_other_batches_are_refused_in_one_line() -> None:
    for data, message in BAD:
        with pytest.raises(InputError, match=message) as error:
            small(tiny(), data)
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error:a single image")
def test_a_last_batch_of_one_image_is_not_all_there_is(right: Tensor) -> None:
    torch.testing.assert_close(logits(small(tiny(), [X[:16], X[16:23], X[23:]])), right)


def test_parameters_of_several_types_become_float32(right: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = tiny()
    for block in model.blocks:
        for layer in (block.norm1, block.norm2):
            layer.bfloat16()
    made = small(model)
    assert "the parameters are of several types (float32, bfloat16)" in caplog.text
    assert {each.dtype for each in made.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(made), right, rtol=0.1, atol=0.1)


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


AS_BARE: dict[str, Callable[[], nn.Module]] = {
    "blocks checkpointed": lambda: each_block(checkpoint_wrapper),
    "frozen": lambda: tiny().requires_grad_(False),
    "blocks compiled": lambda: each_block(torch.compile),  # type: ignore[arg-type]
    "training": lambda: tiny().train(),
}


@pytest.mark.parametrize("kind", few(AS_BARE))
def test_a_model_like_the_bare_one(kind: str, right: Tensor) -> None:
    made = small(AS_BARE[kind]())
    assert kind != "frozen" or not any(parameter.requires_grad for parameter in made.parameters())
    torch.testing.assert_close(logits(made.eval()), right)


def test_a_layer_with_a_buffer_is_a_plain_layer(right: Tensor) -> None:
    model: Any = tiny()
    model.blocks[0].mlp.fc1.register_buffer("calls", torch.zeros(1))
    assert float((logits(small(model)) - right).norm()) < 0.1 * float(right.norm())


class Maps(nn.Module):
    """Outputs of another shape, or several, from a backbone."""

    def __init__(self, *, pair: bool) -> None:
        super().__init__()
        self.vit, self.pair = tiny(), pair
        self.maps, self.scores = nn.Conv2d(self.vit.embed_dim, 5, 1), nn.Linear(self.vit.embed_dim, 3)

    def forward(self, x: Tensor) -> Any:
        tokens = self.vit.forward_features(x)
        side = round((tokens.shape[1] - 1) ** 0.5)
        maps = self.maps(tokens[:, 1:].mT.unflatten(2, (side, side)))
        return (self.scores(tokens[:, 0]), maps) if self.pair else maps


def test_maps_are_kept_as_features(caplog: pytest.LogCaptureFixture) -> None:
    model = Maps(pair=False).eval()
    made = small(model)
    assert "the model returns (B, 5, 4, 4): recipe 'best' keeps it as features" in caplog.text
    assert distance(made, model, X) < 0.3


class Squeezed(nn.Module):
    """A regression: one number for an image, (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny()
        self.vit.reset_classifier(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x).squeeze(-1)


def test_a_regression_may_return_one_number(caplog: pytest.LogCaptureFixture) -> None:
    model = Squeezed().eval()
    made = small(model)
    assert "the model returns (B, 1): recipe 'best' keeps it as features" in caplog.text
    assert logits(made).shape == (24,)
    assert distance(made, model, X) < 0.3
    with pytest.raises(InputError, match="single output"):
        evaluate(model, PAIRS, progress=False)


def test_maps_have_no_top_1() -> None:
    with pytest.raises(InputError, match=r"returns \(B, 5, 4, 4\), which class numbers cannot score"):
        evaluate(Maps(pair=False).eval(), PAIRS, progress=False)


def test_sites_are_a_regular_expression() -> None:
    for sites in (["fc1"], None, 3, "("):
        with pytest.raises(InputError, match="is not a regular expression"):
            compress(tiny(), BATCHES, "svd", 0.3, device="cpu", sites=sites)


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = small(tiny(), recipe="svd")
    save(made, "~/made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    torch.testing.assert_close(logits(load("~/made")), logits(made))


def test_several_outputs_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    small(Maps(pair=True).eval())
    assert "the model returns 2 outputs: the first one is kept" in caplog.text


def test_a_class_of_the_user_s_keeps_what_it_computes(right: Tensor) -> None:
    made = small(Own(tiny()))
    assert isinstance(made, Own)
    assert distance(made, Own(tiny()), X) < 0.3
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


def with_complex() -> nn.Module:
    model = tiny()
    model.register_buffer("freqs", torch.zeros(2, dtype=torch.complex64))
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return tiny()


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(self, *, pictures: Tensor) -> Tensor:
        return self.inner(pictures)


ODD: list[tuple[Callable[[], nn.Module], str]] = [
    (lazy, r"blocks\.0\.mlp\.fc1\.weight has no values yet"),
    (on_meta, "device 'meta'"),
    (lambda: torch.jit.trace(tiny(), X[:1]), "TorchScript"),
    (with_complex, "freqs is torch.complex64, which no file"),
    (Keyword, "takes images by the keyword pictures alone"),
]


def test_other_models_are_refused_in_one_line() -> None:
    for make, message in ODD:
        for refused in (small, lambda model: quantize(model, 8)):
            with pytest.raises(InputError, match=message):
                refused(make())


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

    def test_float16_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"is float16, .* model\.float\(\)"):
            finetune(tiny().half(), PAIRS, **QUIET)

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
        forms = (X, BATCHES, DataLoader(TensorDataset(X), 8))
        ends = [logits(distill(copy.deepcopy(student), tiny(), form, **QUIET).model) for form in forms]
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[0], ends[2])
        with pytest.raises(InputError, match=r"torch\.uint8"):
            distill(student, tiny(), X.byte(), **QUIET)


def test_a_model_on_meta_has_no_accuracy() -> None:
    with pytest.raises(InputError, match="device 'meta'"):
        evaluate(on_meta(), PAIRS, progress=False)

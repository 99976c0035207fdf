"""Labels of every form, wherever they are read; batches of every kind; classes that are another model's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank_vit.data import ImageData
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.evaluate.accuracy import evaluate, fitting, misfit
from lowrank_vit.stages.evaluate.comparison import compare
from lowrank_vit.stages.training.finetune import finetune
from tests.stages.evaluate.test_accuracy import tiny
from tests.support.hardware import on_cpu
from tests.support.image_folders import CONFIG, TENCH, write

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 3, 9, 1, 1, 2])
FORMS = {
    "one-hot": torch.nn.functional.one_hot(LABELS, 10),
    "multi-hot": torch.nn.functional.one_hot(LABELS, 10).float(),
    "column": LABELS[:, None],
    "floats": LABELS.float(),
    "too few": LABELS[:3],
    "truth": LABELS > 1,
    "names": ["cat"] * 6,
}


def score(labels: Any) -> dict:
    return evaluate(tiny(), [(IMAGES[:4], labels[:4]), (IMAGES[4:], labels[4:])], **on_cpu())


def tuned(labels: Any) -> object:
    return finetune(tiny(), [(IMAGES, labels)], epochs=1, **on_cpu())


VERBS = {"evaluate": score, "compare": lambda labels: compare(tiny(), tiny(), [(IMAGES, labels)]), "finetune": tuned}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("form", FORMS)
def test_labels_that_are_no_class_numbers_are_one_line(verb: str, form: str) -> None:
    with pytest.raises(InputError, match="label") as error:
        VERBS[verb](FORMS[form])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_every_integer_type_is_the_same(kind: torch.dtype) -> None:
    assert score(LABELS.to(kind)) == score(LABELS)
    assert compare(tiny(), tiny(), [(IMAGES, LABELS.to(kind))])["top1"] == pytest.approx(score(LABELS)["top1"])
    tuned(LABELS.to(kind))


def test_batches_of_every_kind_are_evaluated() -> None:
    kinds: list[Any] = [
        [(IMAGES, LABELS)],
        [[IMAGES, LABELS, ["a path"] * 6]],
        [{"pixel_values": IMAGES, "labels": LABELS}],
        ((IMAGES[i : i + 2], LABELS[i : i + 2]) for i in (0, 2, 4)),
    ]
    found = [evaluate(tiny(), kind, **on_cpu()) for kind in kinds]
    assert all(each == pytest.approx(found[0]) for each in found)
    assert compare(tiny(), tiny(), kinds[2])["top1"] == pytest.approx(found[0]["top1"])
    for wrong in (IMAGES, 7, [IMAGES]):
        with pytest.raises(InputError):
            evaluate(tiny(), wrong, **on_cpu())


def test_a_label_beyond_the_classes() -> None:
    with pytest.raises(InputError, match="beyond the model's 10 classes"):
        tuned(LABELS + 5)
    found = compare(tiny(), tiny(), [(IMAGES, LABELS + 5)])
    assert (found["top1"], found["agreement"]) == (None, 100)


def test_classes_that_do_not_fit_are_told_of(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / "pets" / "validation" / name, 1)
    write(tmp_path / "wnids" / "validation" / TENCH, 1)
    pets, wnids = (ImageData(f"imagefolder:{tmp_path / name}", CONFIG, classes=1000) for name in ("pets", "wnids"))
    assert "2 classes (no wnids of ImageNet), the model has 1000" in misfit(tiny(1000), pets)
    assert misfit(tiny(2), pets) == misfit(tiny(1000), wnids) == misfit(tiny(), ImageData("digits", CONFIG)) == ""
    assert "10 classes, the model has 37" in misfit(tiny(37), ImageData("digits", CONFIG))
    assert "1000 classes, the model has 7" in misfit(tiny(7), ImageData(wnids.spec, CONFIG, classes=7))
    batches: list[tuple[Tensor, Tensor]] = [(IMAGES, LABELS)]
    with pytest.warns(UserWarning, match="not what it predicts"):
        assert compare(tiny(37), tiny(37), fitting(tiny(37), ImageData("digits", CONFIG), batches))["top1"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitting(tiny(), ImageData("digits", CONFIG), batches) is batches


def test_the_line_comes_before_the_number() -> None:
    data = ImageData("digits", {**CONFIG, "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}, limit=8, workers=0)
    with pytest.warns(UserWarning, match="the data have 10 classes, the model has 37"):
        assert evaluate(tiny(37), data, **on_cpu())["n"] == 8

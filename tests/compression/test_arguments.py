"""Arguments of the public functions that cannot be: one line that names the culprit and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import lowrank_vit
from lowrank_vit import InputError
from tests.support.models import images, tiny

BATCHES = [images(4)]
MODEL = tiny()


def compress(*args: Any, **options: Any) -> object:
    return lowrank_vit.compress(*args, **options)


def sweep(*args: Any, **options: Any) -> object:
    return lowrank_vit.sweep(*args[:2], *(args[2:] or ["svd"]), [options.pop("reduction", 0.4)], **options)


def analyse(*args: Any, **options: Any) -> object:
    return lowrank_vit.analyse(*args, **options)


def learn(*args: Any, **options: Any) -> object:
    return lowrank_vit.learn(*args[:2], *(args[2:] or ["vtp"]), **options)


def quantize(model: Any, calibration: Any) -> object:
    return lowrank_vit.quantize(model, 4, calibration, quantizer="gptq")


Function = Callable[..., object]


def refusal(function: Function, *args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        function(*args, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("function", [compress, sweep, analyse, learn])
def test_a_recipe_of_another_type(function: Function) -> None:
    assert "the recipe is a Linear: give the name of one, such as 'best', or" in refusal(
        function, MODEL, BATCHES, nn.Linear(2, 2)
    )


@pytest.mark.parametrize("function", [compress, sweep])
@pytest.mark.parametrize(
    ("reduction", "line"),
    [
        (25, "reduction 25 is out of reach: it is a share of the parameters, such as 0.25 for 25 %"),
        ("25%", "^'25%' cannot be read: give a budget like params=0.5"),
        ("25%", "or a reduction as a number, such as 0.25 for 25 %"),
        (None, "a reduction is a number, not None"),
        ([0.4], r"a reduction is a number, not \[0.4\]"),
    ],
)
def test_a_reduction_that_is_no_share(function: Function, reduction: object, line: str) -> None:
    if not (function is compress and reduction is None):  # the default
        with pytest.raises(InputError, match=line) as refused:
            function(MODEL, BATCHES, "svd", reduction=reduction)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("function", "mistyped", "meant"),
    [
        (compress, "reducton", "reduction"),
        (compress, "buget", "budget"),
        (compress, "bit", "bits"),
        (compress, "hold_out", "held_out"),
        (sweep, "hold_out", "held_out"),
        (learn, "epoch", "epochs"),
        (learn, "weight_deca", "weight_decay"),
    ],
)
def test_a_mistyped_keyword(function: Function, mistyped: str, meant: str) -> None:
    line = rf"^{function.__name__}\(\) has no argument {mistyped!r}: did you mean {meant!r}\?$"
    with pytest.raises(TypeError, match=line):
        function(MODEL, BATCHES, **{mistyped: 1})
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) has no argument 'xyzzy'$"):
        function(MODEL, BATCHES, xyzzy=1)

"""Recipes that look at images once a size is chosen: what compress makes at known sizes, and close to it between them."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import analyse, load, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested import unpack
from lowrank_vit.compression.nested.opened import Opened
from lowrank_vit.storage.folder import nested_entry
from tests.support import models
from tests.support.kinds import KINDS
from tests.support.models import ARGUMENTS, outputs

pytestmark = pytest.mark.slow
WRITTEN = 0.35
PLAIN = ("vit", "swin")
OTHERS = ("q and k norm", "swiglu", "layer scale", "post norm")


def made(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model and the arguments that it is saved with."""
    if kind in PLAIN:
        return models.tiny(kind), ARGUMENTS[kind]
    return KINDS[kind].make().float(), KINDS[kind].arguments


def images(kind: str, count: int, seed: int = 1) -> Tensor:
    if kind in PLAIN:
        return models.images(count, kind, seed)
    return KINDS[kind].images(count).float()


@cache
def nested(kind: str) -> tuple[Analysis, Path]:
    """An analysis, and the folder that was written from it."""
    model, arguments = made(kind)
    held_out = [images(kind, 6, 7)]
    analysis = analyse(model, [images(kind, 16)], "best", held_out=held_out)
    folder = Path(mkdtemp()) / "small"
    save(analysis.compress(WRITTEN)[0], folder, model_args=arguments, nested=analysis)
    return analysis, folder


@cache
def opened() -> Opened:
    analysis = unpack(nested("vit")[1], torch.device("cpu"))
    assert isinstance(analysis, Opened)
    return analysis


@pytest.mark.parametrize("kind", [*PLAIN, *OTHERS])
def test_at_a_size_that_was_known_it_is_what_compress_makes(kind: str) -> None:
    analysis, folder = nested(kind)
    largest = nested_entry(folder)["largest_reduction"]
    for size in [share for share in (WRITTEN, 0.2, 0.6) if share <= largest]:
        small, (expected, report) = load(folder, reduction=size), analysis.compress(size)
        assert torch.allclose(outputs(small, images(kind, 4, 3)), outputs(expected, images(kind, 4, 3)), atol=1e-4)
        told = small.compression_report
        for part in ("params", "macs", "recipe_fields", "budget", "left_dense", "protocol"):
            assert told[part] == report[part], part
        assert [layer["rank"] for layer in told["layers"]] == [layer["rank"] for layer in report["layers"]]
        for own, other in zip(told["layers"], report["layers"], strict=True):
            for name in ("relative_error", "relative_error_held_out"):
                assert own[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)


def test_any_budget_opens_it_and_no_image_is_seen() -> None:
    _, folder = nested("vit")
    for budget, cost in [("macs=0.6", "macs"), ({"bytes": 0.6}, "bytes"), ({"params": "5k"}, "parameters")]:
        entry = load(folder, budget=budget).compression_report["budget"]
        assert entry["cost"] == cost
        assert entry["counted"] <= entry["limit"]
    assert opened().images.batches == ()

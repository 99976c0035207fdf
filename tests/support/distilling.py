"""A compressed stand-in to distil, and a short run of it."""

import copy
import functools
from typing import Any

from torch import Tensor, nn

from lowrank_vit import compress
from lowrank_vit.stages.training.distill import Distillation, distill
from tests.support.hardware import on_cpu
from tests.support.models import images, tiny

IMAGES = images(45)  # two batches of twenty, and five that are left out


@functools.cache
def _compressed() -> nn.Module:
    return compress(tiny(), [images(32)], "exact", 0.5)[0]


def student() -> nn.Module:
    return copy.deepcopy(_compressed())


def run(model: nn.Module, data: Tensor = IMAGES, dense: nn.Module | None = None, **options: Any) -> Distillation:
    settings = {"epochs": 3, "lr": 1e-3, **options}
    return distill(model, dense or tiny(), data, **on_cpu(**settings))

"""A compressed stand-in to distil, a short run of it, and a run that breaks off."""

import copy
import functools
from typing import Any

import pytest
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


class PowerCutError(RuntimeError):
    """In the middle of an epoch."""


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    step = Distillation.training_step

    def crash(self: Distillation, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.current_epoch == epoch and batch_idx == 1:
            raise PowerCutError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Distillation, "training_step", crash)

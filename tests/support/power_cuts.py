"""Trainings that break off."""

from typing import Any

import pytest


class PowerCutError(RuntimeError):
    """In the middle of an epoch."""


def interrupt(monkeypatch: pytest.MonkeyPatch, training: Any, epoch: int) -> None:
    """Let trainings of this class break off at the second batch of an epoch."""
    step = training.training_step

    def crash(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == epoch and batch_idx == 1:
            raise PowerCutError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(training, "training_step", crash)

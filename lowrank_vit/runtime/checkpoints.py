"""Lightning's checkpoints: written whole after each epoch; only the run that wrote one can resume from it."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import write_bytes


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints whole: a crash leaves either the old one or the new one.

    Lightning's own writer moves a file from the temporary folder, which copies it if that folder is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file whole; Lightning calls this in the first process only."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())


class LastCheckpoint(Checkpoint):
    """Write the whole state to ``path`` after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the whole state."""
        trainer.save_checkpoint(self.path)


def check_resumable(module: LightningModule, path: Path, trained: Collection[str]) -> None:
    """Raise ``InputError`` unless the checkpoint has the settings, shapes and frozen parameters of this run."""
    remedy = "remove it, or resume the run that wrote it"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings, state = dict(saved["hyper_parameters"]), saved["state_dict"]
    except Exception as error:
        raise InputError(f"{path} is not a checkpoint of such a run ({type(error).__name__}): {remedy}") from None
    for name, value in module.hparams.items():
        if settings.get(name) != value:
            raise InputError(f"{path} was trained with {name}={settings.get(name)}, not {value}: {remedy}")
    for name, parameter in module.named_parameters():
        other = state.get(name)
        if other is None or other.shape != parameter.shape:
            raise InputError(f"{path} is of another model, {name} differs in shape: {remedy}")
        if name not in trained and not torch.equal(other, parameter.detach().cpu()):
            raise InputError(f"{path} is of another model, the frozen {name} differs: {remedy}")

"""Where a run computes: devices, processes and precision in one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


@dataclass(frozen=True)
class Hardware:
    """Describe what Lightning runs on.

    ``devices``: processes on each of ``num_nodes`` machines. ``accelerator`` and ``strategy`` are Lightning's names.
    ``precision``: Lightning's name, or None for the stage's default.
    """

    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str | Strategy = "auto"
    precision: str | None = None

    @property
    def processes(self) -> int:
        """Count all processes of the run."""
        return self.devices * self.num_nodes

    @property
    def device(self) -> str:
        """Return the device for work outside Lightning, as ``resolve_device`` takes it."""
        names = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"}
        return names.get(self.accelerator, "auto")

    @property
    def mixed_precision(self) -> str:
        """Return ``precision``, or bfloat16 autocast on a CUDA device that has it, else float32."""
        cuda = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        autocast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return self.precision or ("bf16-mixed" if autocast else "32-true")


ONE_PROCESS = Hardware()


def resolve_device(device: str) -> torch.device:
    """Return a device by its name; ``auto`` is the GPU if there is one. Raises ``InputError`` if it is not available."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used ({reason}): try --device cpu or auto") from None

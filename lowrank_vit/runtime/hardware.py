"""What a run computes on: devices, processes and precision in one record; settings of torch, and random numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowrank_vit.runtime.errors import InputError, reason_of

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
    strategy: "str | Strategy" = "auto"
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
        raise InputError(
            f'device {device!r} cannot be used ({reason_of(error)}): try `device="cpu"` or `device="auto"`'
        ) from None


@contextmanager
def isolated() -> Iterator[None]:
    """Compute in float32 without autocast, with gradients where they are asked for; restore the random state at the end.

    Tensors are on the CPU unless a device is named.
    """
    dtype, devices = torch.get_default_dtype(), range(torch.cuda.device_count())
    home = nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")  # it slows every call of torch
    with (
        torch.random.fork_rng(devices=list(devices)),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
        home,
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def derived_seed(*entropy: int) -> int:
    """Derive one seed from all of the numbers; the seeds of neighbouring numbers are unrelated."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def reseed(*entropy: int) -> None:
    """Seed torch, NumPy and Python from all of the numbers, such as seed, epoch and rank."""
    seed = derived_seed(*entropy)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)

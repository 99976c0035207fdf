"""Keep the caller's settings of torch out of a computation, and the computation's random draws out of the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated() -> Iterator[None]:
    """Compute in float32 without autocast, with gradients where they are asked for; restore the random state at the end.

    Tensors are on the CPU unless a device is named.
    """
    dtype, devices = torch.get_default_dtype(), range(torch.cuda.device_count())
    with (
        torch.random.fork_rng(devices=list(devices)),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.device("cpu"),
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)

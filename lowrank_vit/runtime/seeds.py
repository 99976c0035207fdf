"""Derive seeds of random numbers, and set them."""

from __future__ import annotations

import random

import numpy as np
import torch


def derived_seed(*entropy: int) -> int:
    """Derive one seed from all of the numbers; the seeds of neighbouring numbers are unrelated."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def reseed(*entropy: int) -> None:
    """Seed torch, NumPy and Python from all of the numbers, such as seed, epoch and rank."""
    seed = derived_seed(*entropy)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)

"""Records as bytes, for other processes and for phases kept on disk; reading them executes no code."""

from __future__ import annotations

import io
from typing import Any, TypeVar

import torch

R = TypeVar("R", bound=type)
_STORABLE: list[type] = []


def storable(record: R) -> R:
    """Allow a record to be written by ``to_bytes`` and read back."""
    _STORABLE.append(record)
    return record


def to_bytes(value: Any) -> bytes:
    """Write tensors, plain values and ``storable`` records, in containers, as bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, device: torch.device) -> Any:
    """Read what ``to_bytes`` wrote, its tensors on ``device``; anything else is refused."""
    with torch.serialization.safe_globals(list(_STORABLE)):
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)

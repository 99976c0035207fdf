"""Tensors that are kept on the disk, not in memory, for as long as a computation needs them."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import cache_folder


@dataclass(frozen=True)
class _Place:
    """Hold where a tensor is in the file, and what it is."""

    start: int
    room: int  # bytes
    shape: torch.Size
    dtype: torch.dtype


class Spill:
    """Keep tensors by their keys in a file of the cache folder; they come back on the CPU, bit for bit.

    The file has no name, and goes with the ``with`` block, or with the process, however that ends. It is read and written,
    not mapped: pages of a mapped file count as the process's memory.
    Raises ``InputError`` where the disk is full, or the folder cannot be written.
    """

    def __enter__(self) -> Self:
        folder = cache_folder()
        self._places: dict[Hashable, _Place] = {}
        self._end = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as error:
            raise _failed(error, 0) from None
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Tensor]:
        """Read the tensors, in the order in which their keys were first given."""
        return (self[key] for key in self._places)

    def __getitem__(self, key: Hashable) -> Tensor:
        place = self._places[key]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self._file.seek(place.start)
        rest = _bytes(tensor)
        while rest:
            rest = rest[self._file.readinto(rest) :]
        return tensor

    def __setitem__(self, key: Hashable, tensor: Tensor) -> None:
        """Write a tensor over the previous one of its key, unless it needs more room."""
        place = self._places.get(key)
        if place is None or place.room < tensor.nbytes:
            place = _Place(self._end, tensor.nbytes, tensor.shape, tensor.dtype)
            self._end += tensor.nbytes
        self._places[key] = replace(place, shape=tensor.shape, dtype=tensor.dtype)
        rest = _bytes(tensor)
        try:
            self._file.seek(place.start)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _failed(error, self._end) from None


def _bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes: its own memory where it is on the CPU and contiguous."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's type does not say so


def _failed(error: OSError, size: int) -> InputError:
    return InputError(
        f"{cache_folder()} cannot take {size / 2**20:.0f} MiB of activations for a while ({error.strerror or error}): free "
        "some space, calibrate on fewer images, or set LOWRANK_VIT_CACHE to a folder on another disk"
    )

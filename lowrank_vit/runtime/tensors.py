"""Tensors outside of memory: safetensors files, records as bytes, activations on the disk, weights in the cache."""

import contextlib
import io
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import safetensors.torch
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.files import cache_folder, write_bytes

METADATA = {"format": "pt"}  # of a model's safetensors file
CODES = {  # of a safetensors file, in the order in which it has tensors
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
R = TypeVar("R", bound=type)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole."""
    write_bytes(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file's content; what several names share is written under each of them."""
    own, seen = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        made = tensor.detach().cpu().contiguous()
        place = made.untyped_storage().data_ptr()
        own[name] = made.clone() if place in seen else made
        seen.add(place)
    return save(own, metadata)


def tensor_bytes_count(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> int:
    """Count the bytes of a safetensors file without making it; the tensors may be on the device ``meta``.

    After eight bytes for its length, the header in JSON, padded to a multiple of eight; the tensors come by type.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end, order = 0, list(CODES)
    for name, tensor in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        begin, end = end, end + tensor.numel() * tensor.itemsize
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + math.ceil(len(header) / 8) * 8 + end


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


def trained_once(model: nn.Module, path: Path, train: Callable[[], nn.Module]) -> nn.Module:
    """Return ``model`` with the weights at ``path``; where there are none, return what ``train`` gives, and keep its weights.

    If several processes ask at once, the first one trains and the others wait. A damaged file is replaced, with a warning.
    Where the folder is not writable, the trained model is returned with a warning.
    """
    if _restore(model, path):
        return model
    with _one_at_a_time(path):
        if not _restore(model, path):  # another process may have trained it while this one waited
            model = train()
            _store(model, path)
    return model


def _restore(model: nn.Module, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        warnings.warn(f"the cached model {path} is damaged and is trained again: {reason_of(error)}", stacklevel=4)
        return False
    return True


def _store(model: nn.Module, path: Path) -> None:
    try:
        write_tensors(path, model.state_dict())
    except InputError as error:
        warnings.warn(f"the trained model could not be cached at {path}: {error}", stacklevel=4)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock beside ``path`` within the block; none if the folder is not writable, since nothing is written then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()

"""A device that is not there: its tensors are computed on the CPU, and refuse to meet the CPU's, as a GPU's would.

A process that has set it up keeps it, so tests run what they try in processes of their own:
``python -m tests.support.pretend_stages STAGE [PLANTED]``.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
MOVES = ("aten::copy_", "aten::_to_copy")  # between devices
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # by indices of the CPU, too
ASKED = {  # of a tensor's shape
    f"{space}::{prefix}{name}"
    for space in ("aten", "prim")
    for prefix in ("", "sym_")
    for name in ("size", "stride", "numel", "dim", "storage_offset", "layout", "is_contiguous")
} | {"aten::is_non_overlapping_and_dense", "aten::is_strides_like_format", "aten::sym_is_contiguous"}


class Away(Tensor):
    """A tensor that is said to be on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Away":
        made: Away = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
            dispatch_sizes_strides_policy="sizes",  # which some functions change in place
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __getitem__(self, key: Any) -> Any:  # torch makes tensors of lists behind the mode's back
        return super().__getitem__(_as_tensors(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_as_tensors(key), value)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Away({tuple(self.shape)}, {self.dtype})"


def _as_tensors(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_as_tensors, key))
    return torch.tensor(key) if isinstance(key, list) else key


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU. Raises ``RuntimeError`` where tensors of both devices meet."""
    name, given = func._schema.name, [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    away = [each for each in given if isinstance(each, Away)]
    here = [each for each in given if not isinstance(each, Away) and each.dim() > 0]
    wanted = kwargs.get("device")
    goes = bool(away) if wanted is None else torch.device(wanted).type == NAME
    if away and here and name not in MOVES and not (name in INDEXED and isinstance(args[0], Away)):
        shapes = [tuple(each.shape) for each in (away[0].inner, here[0])]
        raise RuntimeError(f"{name}: tensors of both devices meet, {shapes[0]} away and {shapes[1]} on the CPU")
    if goes and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a generator of the CPU draws for the device")
    kwargs = {**kwargs, **({"device": "cpu"} if wanted is not None else {})}
    known = {id(each.inner): each for each in away} | {id(each): each for each in given if not isinstance(each, Away)}
    bare = tree_map(lambda each: each.inner if isinstance(each, Away) else each, (args, kwargs))
    found = func(*bare[0], **bare[1])

    def placed(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        return known.get(id(each)) if id(each) in known else Away(each) if goes else each

    return tree_map(placed, found)


class Made(TorchDispatchMode):
    """Makes the device's tensors where code asks for them by name."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in ASKED:
            return computed(func, args, kwargs)
        with self:  # without gradients, functions arrive here before they are taken apart
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == NAME:
            return computed(func, args, kwargs)
        return func(*args, **kwargs)


def set_up() -> None:
    """Register the device, for the rest of this process."""
    _setup_privateuseone_for_python_backend(NAME)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # or a moved parameter would keep its tensor

    for name in ("tensor", "as_tensor"):  # torch makes such tensors behind the mode's back
        setattr(torch, name, _moved(getattr(torch, name)))
    for kind in (nn.Parameter, Away):
        kind.data = property(Tensor.data.__get__, _set_data)  # type: ignore[assignment,attr-defined]
    torch.inference_mode = _no_grad  # type: ignore[assignment,misc]  # which has no views of such tensors


def _set_data(self: Tensor, value: Tensor) -> None:
    """Put a tensor in place of another, whatever their devices, as torch does for devices of its own."""
    if isinstance(value, Away) or isinstance(self, Away):
        torch.utils.swap_tensors(self, nn.Parameter(value.detach(), self.requires_grad))
    else:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]


def _no_grad(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()


def _moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if isinstance(data, Away):
            return data if device is None else data.to(device)
        found = make(data, **options)
        return found if device is None else found.to(device)

    return made

"""What all public functions check of their arguments: the order of model and images, and the names of options."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lowrank_vit.runtime.errors import InputError

TEXTS = "input_ids"  # as transformers calls texts
SIZE = re.compile(r"(.*_)?(ratio|share|sparsity)")  # as others call a reduction


def check_model(model: object, second: object) -> None:
    """Raise ``InputError`` unless the first argument is a model of images; ``second``: the one after it, perhaps a model."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is of TorchScript, whose modules cannot be exchanged: pass the one that it was made from"
        )
    if isinstance(model, nn.Module):
        meta = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
        if meta is not None:
            raise InputError(
                f"the model is on the device 'meta', without weights ({meta}): make it on the CPU, and load some"
            )
        kinds = {name: each.dtype for name, each in model.state_dict().items() if isinstance(each, torch.Tensor)}
        odd = next((name for name, kind in kinds.items() if kind.is_complex), None)
        if odd is not None:
            raise InputError(
                f"{odd} is {kinds[odd]}, which no file of safetensors holds: keep its real and imaginary parts apart"
            )
        _check_forward(model)
        return
    kind = type(model).__name__
    if isinstance(second, nn.Module):
        raise InputError(f"the model comes second, after a {kind}: pass the model first, then the images")
    raise InputError(f"the model is a {kind}: pass a module, such as timm.create_model makes")


def _check_forward(model: nn.Module) -> None:
    """Raise ``InputError`` for a model that needs more than images."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [
        name
        for name, each in inspect.signature(model.forward).parameters.items()
        if each.kind in kinds and each.default is inspect.Parameter.empty
    ]
    first = next(iter(inspect.signature(model.forward).parameters), "")
    if first == TEXTS:
        raise InputError(
            f"{type(model).__name__} takes texts first ({TEXTS}): pass the part that sees images, such as "
            "model.vision_model"
        )
    named = inspect.Parameter.KEYWORD_ONLY
    if len(needed) == 1 and inspect.signature(model.forward).parameters[needed[0]].kind is named:
        raise InputError(
            f"{type(model).__name__} takes images by the keyword {needed[0]} alone: wrap it in a module whose forward takes "
            "images"
        )
    if len(needed) > 1:
        raise InputError(
            f"{type(model).__name__} needs {' and '.join(needed)}, and is given images alone: wrap it in a module whose "
            "forward takes images, or pass the part that sees them"
        )


def check_options(given: Iterable[str], function: Callable[..., Any], *takers: Callable[..., Any]) -> None:
    """Raise ``TypeError`` for an option that neither ``function`` has, nor those that it hands options to."""
    parameters = [each for taker in (function, *takers) for each in inspect.signature(taker).parameters.values()]
    known = {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}
    for name in [name for name in given if name not in known]:
        sizes = [size for size in ("reduction", "budget") if size in known and SIZE.fullmatch(name)]
        near = sizes or difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise TypeError(f"{function.__name__}() has no argument {name!r}{hint}")

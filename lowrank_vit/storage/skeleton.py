"""A model's structure as ``config.json`` has it, and the empty model that it describes.

Nothing in a folder that comes over the network is trusted: the ``check_*`` raise ``ValueError``, which names the culprit.
"""

import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import timm
from torch import Tensor, nn

from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.permanent import copied
from lowrank_vit.modules import empty_replacement
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.modules.surgery import part, replace_module
from lowrank_vit.objectives.classification import classes_of
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.stages.compensate import empty_module

# arguments of timm.create_model that fetch or open files, an old checkpoint's pickle among them
FETCHING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"}
)


def check_architecture(config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the name is one of timm's own, without a remote address, and no argument fetches."""
    name, arguments = config["architecture"], config["model_args"]
    if not isinstance(name, str) or ":" in name or not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no model {name!r}")
    if not isinstance(arguments, dict) or FETCHING & arguments.keys():
        raise ValueError(f"model_args {arguments!r} are not arguments of the architecture")


def check_layer(name: str, config: Mapping[str, Any], dense: nn.Module | nn.Parameter) -> None:
    """Raise ``ValueError`` for a layer larger than the ``dense`` one it replaces, or of another shape if that is linear."""
    parameters = [dense] if isinstance(dense, nn.Parameter) else list(dense.parameters())
    dimensions = [size for parameter in parameters for size in parameter.shape]
    if not isinstance(config, dict) or not dimensions:
        raise ValueError(f"{name!r} is not a layer")
    for key, value in config.items():
        if key == "bits":  # the quantised layer itself checks them
            continue
        limit = sum(parameter.numel() for parameter in parameters) if key == "correction" else max(dimensions)
        if any(not 0 <= number <= limit for number in _numbers(value)):  # a NaN is refused, too
            raise ValueError(f"{name!r} has the {key} {value!r}, but the dense layer allows at most {limit}")
    if isinstance(dense, nn.Linear):
        shape = (config.get("in_features"), config.get("out_features"))
        if shape != (dense.in_features, dense.out_features):
            raise ValueError(f"{name!r} is {shape}, the architecture's is {(dense.in_features, dense.out_features)}")


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(each)


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless all floating-point values are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


PORTABLE = (str, int, float, bool, list, tuple, type(None))


def is_quantized(model: nn.Module) -> bool:
    """Tell whether any layer is quantised."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def timm_record(model: nn.Module) -> dict[str, Any]:
    """Return what timm's own record says of a model; the architecture is null where timm did not make it."""
    pretrained = {k: v for k, v in (getattr(model, "pretrained_cfg", None) or {}).items() if isinstance(v, PORTABLE)}
    classes = classes_of(model)
    if "num_classes" in pretrained:
        pretrained["num_classes"] = classes  # timm's own says how many the pretrained weights have
    return {
        "architecture": pretrained.get("architecture"),
        "num_classes": classes,
        "model_args": {},
        "pretrained_cfg": pretrained,
    }


def _empty_layer(entry: Mapping[str, Any], dense: nn.Module | nn.Parameter) -> nn.Module:
    """Make the module that an entry describes; ``dense``: the module, or the parameter, that it replaces."""
    correction = entry.get("correction")
    made = {} if correction is None else {"correction": empty_module(**correction)}
    return empty_replacement({**entry, **made}, dense)


def empty_model(
    config: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, Any]],
    *,
    dense: nn.Module | None = None,
    allow_factory: str | None = None,
) -> nn.Module:
    """Make the model of a ``config.json`` with the given ``layers`` replaced, its weights still to be loaded.

    ``dense``: the dense model, of which a copy is taken, in place of one that timm or the allowed factory makes.
    Raises ``InputError`` if it does not describe a model; the caller adds the folder.
    """
    culprit = "config.json does not describe a model" if dense is None else "the model that was passed does not fit"
    remedy = "save the model again" if dense is None else "pass the dense model that the saved one was made from"
    try:
        model = canonical(copied(dense) if dense is not None else _made(config, allow_factory))
        for name, layer in layers.items():
            dense_part = part(model, name)
            check_layer(name, layer, dense_part)
            replace_module(model, name, _empty_layer(layer, dense_part))
    except NotAllowedError:
        raise
    except Exception as error:  # architectures raise errors of many kinds for invalid arguments
        raise InputError(f"{culprit} ({reason_of(error)}): {remedy}") from None
    return model


class NotAllowedError(InputError):
    """Report a model that code outside timm makes, which is not run unasked."""


def _made(config: Mapping[str, Any], allow_factory: str | None) -> nn.Module:
    """Make the dense model by timm, or by the factory that the user allows by name."""
    from lowrank_vit.models import hugging_face  # the stand-ins register with timm

    factory = config.get("factory")
    if factory is not None:
        if factory not in (allow_factory, hugging_face.FACTORY):
            raise NotAllowedError(
                f"{factory!r} makes this model, code that is not run unasked: if you trust it, allow_factory={factory!r}; "
                "or pass the dense model, model=dense"
            )
        model = called(factory, config["model_args"])
        if factory == hugging_face.FACTORY:
            model.pretrained_cfg = config["pretrained_cfg"]
        return model
    if config["architecture"] is None:
        raise NotAllowedError("timm did not make this model: pass the dense one that it was made from, model=dense")
    check_architecture(config)
    model = timm.create_model(
        config["architecture"],
        pretrained=False,
        num_classes=config["num_classes"],
        pretrained_cfg=config["pretrained_cfg"],
        **config["model_args"],
    )
    return model


def called(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call a factory ``"module:function"``. Raises ``InputError`` where it cannot be imported or makes no model."""
    module, _, function = factory.partition(":")
    try:
        make = functools.reduce(getattr, function.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the factory {factory!r} cannot be imported ({error}): name it 'module:function'") from None
    model = make(**arguments)  # type: ignore[operator]
    if not isinstance(model, nn.Module):
        raise InputError(f"the factory {factory!r} returns a {type(model).__name__}, no model")
    return model

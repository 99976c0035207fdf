"""The record that rebuilds a model, checked before saving: a model that its folder does not rebuild would be lost."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_vit.architectures.arguments import shown_arguments
from lowrank_vit.models.hugging_face import FACTORY, recorded
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import json_text
from lowrank_vit.storage.contents import WEIGHTS, checksums, file_hash
from lowrank_vit.storage.skeleton import PORTABLE, empty_model, timm_record

CHANGED = ", then trained without a record"  # added to the protocol
logger = logging.getLogger(__name__)
# attributes that change neither the structure nor the outputs of a model in eval mode
PASSING = {"training", "grad_checkpointing", "num_classes", "qkv_bias_separate", "fused_attn", "name_or_path"}


def dense_record(
    model: nn.Module, layers: Mapping[str, Any], model_args: Mapping[str, Any] | None, factory: str | None
) -> dict[str, Any]:
    """Return the entries of ``config.json`` from which the dense form of a model is made again.

    Arguments that are not given are taken from the folder that the model was loaded from, or from what the model
    shows. Raises ``InputError`` where the model made again, its ``layers`` replaced, would be another one.
    """
    loaded, own = getattr(model, "loaded_from", {}).get("config", {}), recorded(model)
    if own is not None and factory is None:
        model_args, factory = own, FACTORY
    if model_args is None:
        model_args, factory = loaded.get("model_args"), factory or loaded.get("factory")
    record = timm_record(model)
    arguments = {name: value for name, value in (model_args or {}).items() if name != "pretrained"}
    if factory is None:
        record["num_classes"] = arguments.pop("num_classes", record["num_classes"])
    record["model_args"] = _checked(arguments)
    if factory is not None:
        record["factory"] = factory
    elif record["architecture"] is None:
        logger.warning(
            "timm did not make this %s, so that it can be loaded with model=dense only, the dense model that it was made "
            "from: save it with factory='module:function' for others",
            type(model).__name__,
        )
        return record
    first = _difference(model, record, layers)
    if first is None:
        return record
    derived = record if factory is not None else _derived(model, record)
    if derived != record:
        first = _difference(model, derived, layers)
    if first is None:
        return derived
    origin = f"timm's {record['architecture']}" if factory is None else f"what {factory} makes"
    raise InputError(
        f"{origin} is not this model ({first}), which would be lost: pass model_args, the arguments that it was made with"
        + ("" if factory is not None else ", or factory='module:function'")
    )


def _checked(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments unchanged. Raises ``InputError`` for values that a file of JSON cannot hold."""
    for name, value in arguments.items():
        try:
            json_text(value)
        except (TypeError, ValueError):
            raise InputError(
                f"the argument {name}={value!r} cannot be written down: save with factory='module:function', which sets it"
            ) from None
    return arguments


def attach(model: nn.Module, config: Mapping[str, Any], report: Report) -> None:
    """Attach to a loaded model its report and what it was loaded from, so that it can be saved again."""
    holder: Any = model
    holder.compression_report = report
    holder.loaded_from = {"config": dict(config), "report": report}


def was_changed(model: nn.Module, report: Report, weights: Path) -> bool:
    """Tell whether the file ``weights`` is that of a loaded model whose weights, but not its report, have changed since."""
    loaded = getattr(model, "loaded_from", None)
    if loaded is None or loaded["report"] != report:
        return False
    known = checksums(loaded["config"]) or {}
    return known.get(WEIGHTS) not in (None, file_hash(weights))


def _rebuilt(record: Mapping[str, Any], layers: Mapping[str, Any]) -> nn.Module:
    """Make the model anew: without memory for its weights, and without touching the random numbers of others."""
    factory = record.get("factory")
    with torch.random.fork_rng(devices=[]), torch.device("meta" if factory is None else "cpu"):
        return empty_model(record, layers, allow_factory=factory)


def _derived(model: nn.Module, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with the arguments in which the model differs from it."""
    try:
        default = shown_arguments(_rebuilt(record, {}))
    except InputError:
        return dict(record)
    changed = {
        name: value for name, value in shown_arguments(model).items() if name in default and default[name] != value
    }
    classes = changed.pop("num_classes", record["num_classes"])
    return {**record, "num_classes": classes, "model_args": {**record["model_args"], **changed}}


def _difference(model: nn.Module, record: Mapping[str, Any], layers: Mapping[str, Any]) -> str | None:
    """Describe the first difference between a model and the one that its record makes; None if there is none."""
    try:
        rebuilt = _rebuilt(record, layers)
    except InputError as error:
        return str(error.__context__ or error)
    shapes, expected = ({name: list(t.shape) for name, t in each.state_dict().items()} for each in (rebuilt, model))
    for name in [*expected, *shapes]:
        if shapes.get(name) != expected.get(name):
            return f"its {name} has the shape {shapes.get(name)}, here {expected.get(name)}"
    theirs, ours = (dict(each.named_modules(remove_duplicate=False)) for each in (rebuilt, model))
    for name in {**ours, **theirs}:
        found = _different(theirs.get(name), ours.get(name))
        if found is not None:
            return f"{name or type(model).__name__}: {found}"
    return None


def _different(rebuilt: nn.Module | None, module: nn.Module | None) -> str | None:
    """Describe how a module differs from the one that was made again under its name, in its kind or its settings."""
    if _passes(rebuilt) and _passes(module):
        return None
    if rebuilt is None or module is None or type(rebuilt) is not type(module):
        kinds = ["nothing" if each is None else type(each).__name__ for each in (rebuilt, module)]
        return f"{kinds[0]}, here {kinds[1]}"
    ours, theirs = _settings(module), _settings(rebuilt)
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            return f"{name} {theirs[name]}, here {ours[name]}"
    return None


def _passes(module: nn.Module | None) -> bool:
    """Tell whether a module does nothing in eval mode, as dropout does."""
    return module is None or isinstance(module, nn.Identity | nn.Dropout) or hasattr(module, "drop_prob")


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module that decide what it computes."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if isinstance(value, PORTABLE) and not name.startswith("_") and name not in PASSING and "drop" not in name
    }

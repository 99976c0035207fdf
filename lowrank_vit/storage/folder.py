"""A compressed or quantised model's folder: ``config.json`` (timm-style), ``model.safetensors``, ``report.json``.

A model card, ``README.md``, stands beside them; ``nested.safetensors``, too, in a folder that opens at other sizes.
Models that ``quantize`` made are stored with floating values in float16, all others in the types they have.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lowrank_vit.modules import replacement_entries
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import given_path, json_text, replacing
from lowrank_vit.runtime.tensors import METADATA, tensor_bytes
from lowrank_vit.storage import card
from lowrank_vit.storage.contents import (
    CARD,
    CONFIG,
    NESTED,
    REPORT,
    WEIGHTS,
    check_contents,
    check_file,
    check_free,
    file_bytes,
    load_report,
    read_config,
    sealed,
)
from lowrank_vit.storage.contents import is_saved_model as is_saved_model
from lowrank_vit.storage.contents import load_model_args as load_model_args
from lowrank_vit.storage.contents import nested_entry as nested_entry
from lowrank_vit.storage.rebuilding import CHANGED, attach, dense_record, was_changed
from lowrank_vit.storage.skeleton import check_tensors, empty_model, is_quantized


@dataclass(frozen=True)
class NestedFile:
    """Hold the content of ``nested.safetensors``, which ``compression/nested`` makes; storage only writes it."""

    tensors: Mapping[str, Tensor]
    metadata: dict[str, str]
    entry: Mapping[str, Any]  # what config.json says of it


def report_of(model: nn.Module, report: Report | None) -> Report:
    """Return ``report``, or the one that ``compress`` attached. Raises ``InputError`` for none, or one with gaps."""
    report = report if report is not None else getattr(model, "compression_report", None)
    if report is None:
        raise InputError("this model was not made by lowrank_vit.compress: compress it first, or pass a report")
    if missing := card.NEEDS - report.keys():
        raise InputError(f"the report has no entry {min(missing)!r}: pass what lowrank_vit.compress returned")
    return report


def save(
    model: nn.Module,
    folder: str | Path,
    report: Report | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    factory: str | None = None,
    nested: NestedFile | None = None,
    overwrite: bool = False,
) -> None:
    """Write the model's folder whole or not at all: it is made beside ``folder`` and then renamed.

    ``report``: the one that ``compress`` or ``load`` attached to the model, unless another is given; where it has the
    entry "quantization", the file is float16, and the sizes on disk are added to the report. ``model_args``: arguments
    of ``timm.create_model`` that the dense model was made with, where neither the model shows them nor the folder that it
    was loaded from. ``factory``: ``"module:function"``, which makes the dense model from ``model_args``, where timm
    does not. ``nested``: goes to a file of its own. ``overwrite``: replace the folder of a saved model, and nothing else.
    Raises ``InputError`` where ``folder`` holds something already, cannot be written, the model was not compressed, or
    would be another one when it is made again.
    """
    target = given_path(str(folder))
    known = is_saved_model(target)
    if not (known and overwrite):
        check_free(target, "pass overwrite=True to replace it" if known else "choose another folder")
    carried = report is None
    report = report_of(model, report)
    if is_quantized(model) and "quantization" not in report:
        raise InputError("the report of this quantised model has no entry 'quantization': add what quantize returned")
    layers = replacement_entries(model)
    entry = {"format": 2 if is_quantized(model) else 1, "recipe": report.get("recipe"), "layers": layers}
    config = {**dense_record(model, layers, model_args, factory), "lowrank_vit": entry}
    with replacing(target, folder=True, over=overwrite) as temporary:
        _write(temporary, model, report, config, nested, carried=carried)


def _write(
    temporary: Path,
    model: nn.Module,
    report: Report,
    config: dict[str, Any],
    nested: NestedFile | None,
    *,
    carried: bool,
) -> None:
    """Write the files of a model; a report that was ``carried`` along says if it does not know of later training."""
    tensors = model.state_dict()
    if "quantization" in report:  # rounding changes nothing in a model that ``quantize`` made
        tensors = {name: each.half() if each.is_floating_point() else each for name, each in tensors.items()}
    (temporary / WEIGHTS).write_bytes(tensor_bytes(tensors, METADATA))
    if carried and was_changed(model, report, temporary / WEIGHTS):
        report = {**report, "protocol": report["protocol"].removesuffix(CHANGED) + CHANGED}
    report = _with_sizes(report, file_bytes(temporary))
    (temporary / REPORT).write_text(json_text(report), "utf-8")
    names = [WEIGHTS, REPORT]
    if nested is not None:
        names.append(NESTED)
        (temporary / NESTED).write_bytes(tensor_bytes(nested.tensors, nested.metadata))
        config["lowrank_vit"]["nested"] = {**nested.entry, "bytes": (temporary / NESTED).stat().st_size}
    (temporary / CARD).write_text(card.model_card(config, report, file_bytes(temporary)), "utf-8")
    (temporary / CONFIG).write_text(json_text(sealed(config, temporary, names)), "utf-8")


def _with_sizes(report: Report, size: int) -> Report:
    """Put the file's size into the report; of a quantised model with more: ``dense_fp16`` is without the file's header."""
    if "weights_bytes" in report:
        report = {**report, "weights_bytes": {**report["weights_bytes"], "compressed": size}}
    if "quantization" not in report:
        return report
    return {
        **report,
        "quantization": {**report["quantization"], "file_bytes": size},
        "bytes": {"dense_fp16": 2 * report["params"]["dense"], "file": size},
    }


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    dense: nn.Module | None = None,
    allow_factory: str | None = None,
) -> nn.Module:
    """Load the compressed or quantised model in a folder, in eval mode.

    The architecture is rebuilt by timm, its compressed layers by their ranks, its quantised ones by their bits, and the
    weights loaded strictly. ``dtype``: of the floating values in memory; None: that of the model that was saved. What was
    quantised is float16 in the file alone, and comes as float32: ask for ``torch.float16`` to have half the memory on a
    GPU. Packed codes stay packed.
    ``dense``: the dense model, which is copied in place of rebuilding it; ``allow_factory``: the factory
    ``"module:function"`` that the folder may call to make it. The model carries its report, and what made it, so that it
    can be trained and saved again.
    Raises ``InputError`` for a folder that is no such model, is broken, or is of a newer format.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        model = empty_model(config, config["lowrank_vit"]["layers"], dense=dense, allow_factory=allow_factory)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    check_file(config, folder / WEIGHTS)
    report = None
    with suppress(InputError):  # without its report, the model works all the same
        report = load_report(folder)
    rounded = is_quantized(model) or "quantization" in (report or {})
    _load_weights(model, folder / WEIGHTS, dtype or (torch.float32 if rounded else None))
    if report is not None:
        attach(model, config, report)
    return model.to(device).eval()


def load_wide(folder: str | Path) -> nn.Module:
    """Load a model to compute with it on any machine: one of 16 bits comes as float32, with the same values."""
    model = load(folder)
    return model.float() if next(model.parameters()).dtype.itemsize < 4 else model


def dense_architecture(
    folder: str | Path, *, dense: nn.Module | None = None, allow_factory: str | None = None
) -> nn.Module:
    """Make the dense model that the model in a folder was made from, in eval mode, with random weights, to measure it.

    Raises ``InputError`` for what ``load`` refuses; load the folder first.
    """
    return empty_model(read_config(Path(folder)), {}, dense=dense, allow_factory=allow_factory).eval()


def _load_weights(model: nn.Module, path: Path, dtype: torch.dtype | None) -> None:
    try:
        tensors = load_file(path)
        check_tensors(tensors)
    except ValueError as error:
        raise InputError(f"{path} cannot be used ({error}): save the model again") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): it is missing, truncated or not a safetensors file"
        ) from None
    floating = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    model.to(dtype or floating)
    for name, empty in model.state_dict().items():
        if name not in tensors or (tensors[name].is_floating_point() and empty.is_floating_point()):
            continue
        if tensors[name].dtype != empty.dtype:
            raise InputError(f"{path} does not fit config.json: {name} is {tensors[name].dtype}, not {empty.dtype}")
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines()[1:2]]
        raise InputError(f"{path} does not fit config.json: {first[0] if first else error}") from None


def verify(folder: str | Path) -> None:
    """Raise ``InputError`` unless the model loads, and every file that is there is the one that was saved."""
    load(folder)
    check_contents(folder)

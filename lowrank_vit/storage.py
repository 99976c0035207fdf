"""A compressed or quantised model's folder: ``config.json`` (timm-style), ``model.safetensors``, ``report.json``.

A model card, ``README.md``, stands beside them; ``nested.safetensors``, too, in a folder that opens at other sizes.
What ``quantize`` made is stored with its floating values in float16; everything else in the types it has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lowrank_vit import card
from lowrank_vit.errors import InputError
from lowrank_vit.files import json_text, replacing, tensor_bytes
from lowrank_vit.seal import CARD, CONFIG, NESTED, REPORT, WEIGHTS, check_config, check_file, sealed
from lowrank_vit.skeleton import empty_model, is_quantized, layer_configs, timm_config
from lowrank_vit.trust import check_report, check_tensors, parse_json

FORMATS = (1, 2)  # 2: with quantised layers, which readers of 1 do not know
FILES = (CONFIG, WEIGHTS, REPORT)


@dataclass(frozen=True)
class NestedFile:
    """What ``nested.py`` puts into ``nested.safetensors``; storage only writes it down."""

    tensors: Mapping[str, Tensor]
    metadata: dict[str, str]
    entry: Mapping[str, Any]  # what config.json says of it


def is_saved_model(folder: Path) -> bool:
    """Whether the folder holds a whole model."""
    return all((folder / name).is_file() for name in FILES)


def file_bytes(folder: str | Path) -> int:
    """The size of a saved model: bytes of its ``model.safetensors`` on disk."""
    return (Path(folder) / WEIGHTS).stat().st_size


def _config(model: nn.Module, report: Mapping[str, Any], model_args: Mapping[str, Any] | None) -> dict[str, Any]:
    own = {
        "format": 2 if is_quantized(model) else 1,
        "recipe": report.get("recipe"),
        "layers": layer_configs(model),
    }
    return {**timm_config(model, model_args), "lowrank_vit": own}


def report_of(model: nn.Module, report: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """``report``, or the one that ``compress`` attached. Raises ``InputError`` where there is none, or one with gaps."""
    report = report if report is not None else getattr(model, "compression_report", None)
    if report is None:
        raise InputError("this model was not made by lowrank_vit.compress: compress it first, or hand in a report")
    if missing := card.NEEDS - report.keys():
        raise InputError(f"the report has no entry {min(missing)!r}: hand in what lowrank_vit.compress returned")
    return report


def save(
    model: nn.Module,
    folder: str | Path,
    report: Mapping[str, Any] | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    nested: NestedFile | None = None,
) -> None:
    """Write the model's folder whole or not at all: it is made beside ``folder`` and then renamed.

    ``report``: the one that ``compress`` attached to the model, unless another is given; where it has the entry
    "quantization", the file is float16, and the sizes on disk are added to the report. ``model_args``: further
    arguments of ``timm.create_model`` that the dense model was made with. ``nested``: goes to a file of its own.
    Raises ``InputError`` where ``folder`` holds something already, cannot be written, or the model was not compressed.
    """
    target = Path(folder)
    report = report_of(model, report)
    if is_quantized(model) and "quantization" not in report:
        raise InputError("the report of this quantised model has no entry 'quantization': add what quantize returned")
    config = _config(model, report, model_args)
    check_free(target)
    with replacing(target, folder=True) as temporary:
        (temporary / WEIGHTS).write_bytes(tensor_bytes(_stored(model, "quantization" in report), {"format": "pt"}))
        report = _with_sizes(report, file_bytes(temporary))
        (temporary / REPORT).write_text(json_text(report), "utf-8")
        names = [WEIGHTS, REPORT]
        if nested is not None:
            names.append(NESTED)
            (temporary / NESTED).write_bytes(tensor_bytes(nested.tensors, nested.metadata))
            config["lowrank_vit"]["nested"] = {**nested.entry, "bytes": (temporary / NESTED).stat().st_size}
        (temporary / CARD).write_text(card.model_card(config, report, file_bytes(temporary)), "utf-8")
        (temporary / CONFIG).write_text(json_text(sealed(config, temporary, names)), "utf-8")


def _stored(model: nn.Module, half: bool) -> dict[str, Tensor]:
    """The tensors as the file has them; rounding them to float16 changes nothing in a model that ``quantize`` made."""
    state = model.state_dict()
    return {name: tensor.half() if half and tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _with_sizes(report: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The report of a quantised model with the bytes on disk; ``dense_fp16`` is without the file's header."""
    if "quantization" not in report:
        return dict(report)
    return {
        **report,
        "quantization": {**report["quantization"], "file_bytes": size},
        "bytes": {"dense_fp16": 2 * report["params"]["dense"], "file": size},
    }


def check_free(folder: Path) -> None:
    """Raise ``InputError`` unless ``folder`` can be made, or is empty: nothing that was there is ever lost."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(f"{folder} exists already: choose another --out, or --resume to keep a finished model")
    parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "permission denied, or a read-only disk" if parent.is_dir() else "it is no folder"
        raise InputError(f"cannot write into {parent}: {reason}; choose another --out")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ``InputError`` for a missing, broken or foreign file."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {path.parent} is not the folder of a compressed model") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): save the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object: save the model again")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, of a format that is known, with its checksum as it was saved. Raises ``InputError`` otherwise."""
    path = folder / CONFIG
    config = read_json(path)
    own = config.get("lowrank_vit")
    if not isinstance(own, dict) or not isinstance(own.get("layers"), dict):
        raise InputError(f"{path} has no 'lowrank_vit' entry: this is not a compressed model")
    if own.get("format") not in FORMATS:
        raise InputError(
            f"{folder} is of format {own.get('format')!r}, this version reads {FORMATS}: upgrade lowrank-vit"
        )
    check_config(config, path)
    return config


def load(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The compressed or quantised model in a folder, in eval mode.

    The architecture is rebuilt by timm, its compressed layers by their ranks, its quantised ones by their bits, and the
    weights loaded strictly. ``dtype``: of the floating values in memory; None: that of the file, but float32 for a
    float16 or bfloat16 file, on every device: CPUs are slow in half precision, and the values are the same. Ask for
    ``torch.float16`` to have half the memory on a GPU. Packed codes stay packed.
    Raises ``InputError`` for a folder that is no such model, is broken, or is of a newer format.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        model = empty_model(config, config["lowrank_vit"]["layers"])
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    check_file(config, folder / WEIGHTS)
    _load_weights(model, folder / WEIGHTS, dtype)
    return model.to(device).eval()


def dense_architecture(folder: str | Path) -> nn.Module:
    """The dense model that the model in a folder was made from, in eval mode, with random weights: its size and speed.

    Raises ``InputError`` for what ``load`` refuses; load the folder first.
    """
    return empty_model(read_config(Path(folder)), {}).eval()


def type_in_memory(wanted: torch.dtype | None, stored: torch.dtype) -> torch.dtype:
    """The type that ``load`` gives floating values of a ``stored`` type."""
    return wanted or (torch.float32 if stored.itemsize < 4 else stored)


def _load_weights(model: nn.Module, path: Path, dtype: torch.dtype | None) -> None:
    try:
        tensors = load_file(path)
        check_tensors(tensors)
    except ValueError as error:
        raise InputError(f"{path} cannot be used ({error}): save the model again") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): it is missing, truncated or no safetensors file") from None
    floating = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    model.to(type_in_memory(dtype, floating))
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


def load_model_args(folder: str | Path) -> dict[str, Any]:
    """The ``model_args`` that a model was saved with, so that what is made of it can be saved with them, too."""
    arguments = read_config(Path(folder)).get("model_args")
    return arguments if isinstance(arguments, dict) else {}


def verify(folder: str | Path) -> None:
    """Raise ``InputError`` unless the model loads, and every file that is there is the one that was saved.

    A nested folder from the hub may be without its large file.
    """
    folder = Path(folder)
    load(folder)
    load_report(folder)
    if nested_entry(folder) is not None and (folder / NESTED).exists():
        check_file(read_config(folder), folder / NESTED)


def nested_entry(folder: str | Path) -> dict[str, Any] | None:
    """What ``config.json`` says of the other sizes that the folder opens at; ``None`` where it is not nested."""
    entry = read_config(Path(folder))["lowrank_vit"].get("nested")
    return entry if isinstance(entry, dict) else None


def load_report(folder: str | Path) -> dict[str, Any]:
    """The report of a saved model. Raises ``InputError`` where it is missing, was edited, or lacks what every report has."""
    folder = Path(folder)
    path, config = folder / REPORT, read_config(folder)
    report = read_json(path)
    check_file(config, path)
    try:
        check_report(report)
    except ValueError as error:
        raise InputError(f"{path} is no report ({error}): save the model again") from None
    return report

"""Models as artefacts: folders here or on the hub, opened at the size they were saved at or, if nested, at any other."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_vit import hub, storage
from lowrank_vit.analysis import Analysis
from lowrank_vit.blocks import BlockAnalysis
from lowrank_vit.errors import InputError
from lowrank_vit.nested import pack, unpack
from lowrank_vit.seal import NESTED, checksums
from lowrank_vit.steps import resolve_device


def save(
    model: nn.Module,
    folder: str | Path,
    report: Mapping[str, Any] | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    nested: Analysis | BlockAnalysis | None = None,
) -> None:
    """Write the model's folder, as ``storage.save`` does; with ``nested``, the analysis that made it, a nested one.

    Raises ``InputError`` for a recipe that cannot be nested, too.
    """
    report = storage.report_of(model, report)
    storage.save(model, folder, report, model_args=model_args, nested=None if nested is None else pack(nested, report))


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    reduction: float | None = None,
) -> nn.Module:
    """The model in a folder, in eval mode; ``folder`` may be ``"hf_hub:OWNER/NAME"``, with ``@REVISION`` at its end.

    ``device``: as torch names it, or ``"auto"``. ``dtype``: as in ``storage.load``. ``reduction``: open a nested folder
    at this share of the parameters removed: the model, with its report attached, that ``compress`` would have made at
    that reduction from the same images, recipe and seed, bit by bit on the same kind of machine.
    Raises ``InputError`` for a folder that is no model, is broken or edited, is of a newer format or, with ``reduction``,
    is not nested or cannot be that small.
    """
    where = resolve_device(str(device))
    path = hub.local_folder(folder, nested=reduction is not None)
    if reduction is None:
        return storage.load(path, where, dtype)
    model, report = unpack(path, where).compress(reduction)
    report["provenance"]["nested_sha256"] = (checksums(storage.read_config(path)) or {}).get(NESTED)
    return model.to(storage.type_in_memory(dtype, next(model.parameters()).dtype))


def push_to_hub(
    model: nn.Module | str | Path,
    repository: str,
    *,
    private: bool = False,
    message: str = "Upload a compressed model",
    **options: Any,
) -> str:
    """Upload a saved folder, or a compressed model, to ``"OWNER/NAME"`` of the Hugging Face hub; the address it has there.

    The repository is made where there is none yet. A folder is checked before, so nothing broken is published; its
    ``report.json`` names the command and its paths as they were given. ``options``: of ``save``, for a model.
    Needs ``hf auth login`` or ``HF_TOKEN``.
    Raises ``InputError`` for a folder that is no model, and where the hub refuses or cannot be reached.
    """
    if isinstance(model, nn.Module):
        with tempfile.TemporaryDirectory() as parent:
            save(model, Path(parent) / "model", **options)
            return hub.upload(Path(parent) / "model", repository, private, message)
    folder = Path(model)
    storage.verify(folder)
    if storage.nested_entry(folder) is not None and not (folder / NESTED).is_file():
        raise InputError(
            f"{folder / NESTED} is missing: push the nested folder that was saved, or what `shrink` takes out"
        )
    return hub.upload(folder, repository, private, message)

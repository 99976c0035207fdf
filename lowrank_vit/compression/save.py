"""Models in folders, local or on the hub, opened at the size they were saved at or, if nested, at any other."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested import pack, unpack
from lowrank_vit.records.budgets import Budget
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.storage import folder as storage
from lowrank_vit.storage import hub
from lowrank_vit.storage.contents import NESTED, checksums
from lowrank_vit.storage.rebuilding import attach


def save(
    model: nn.Module,
    folder: str | Path,
    report: Report | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    factory: str | None = None,
    nested: Analysis | None = None,
    overwrite: bool = False,
) -> None:
    """Write the model's folder, as ``storage.save`` does; with ``nested``, the analysis that made it, a nested one.

    Where the recipe measures losses or refits outputs, as ``best`` does, the model is first compressed to a grid of sizes.
    Also raises ``InputError`` for a recipe that cannot be nested.
    """
    packed = None if nested is None else pack(nested, storage.report_of(model, report))
    storage.save(model, folder, report, model_args=model_args, factory=factory, nested=packed, overwrite=overwrite)


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    reduction: float | None = None,
    budget: Mapping[str, float | str] | str | Budget | None = None,
    model: nn.Module | None = None,
    allow_factory: str | None = None,
) -> nn.Module:
    """Load the model in a folder, in eval mode; ``folder`` may be ``"hf_hub:OWNER/NAME"``, with ``@REVISION`` at its end.

    It may also be ``"deit_tiny_4mib"``, which comes with the package: DeiT-Tiny in 4 MiB.

    ``device``: as torch names it, or ``"auto"``. ``dtype``: as in ``storage.load``. ``reduction``: open a nested folder
    at this share of the parameters removed, or at a ``budget``, given as ``compress`` takes it: the model, with its report
    attached, that ``compress`` would have made from the same images, recipe and seed. For recipes of single layers this
    holds bit by bit on the same kind of machine; for ``best`` up to rounding at the sizes that were known when the folder
    was written, and approximately between them. ``model``: the dense model, for one that timm did not make.
    ``allow_factory``: the factory ``"module:function"`` that it was saved with, if you trust that code: nothing is imported
    unasked.
    Raises ``InputError`` for a folder that holds no model, is broken or edited, has a newer format or, with a size, is not
    nested or cannot be that small.
    """
    if reduction is not None and budget is not None:
        raise InputError(f"a reduction of {reduction:g} and the budget {budget} exclude each other: give one of them")
    where, size = resolve_device(str(device)), reduction if budget is None else budget
    path = hub.local_folder(folder, nested=size is not None)
    if size is None:
        return storage.load(path, where, dtype, dense=model, allow_factory=allow_factory)
    small, report = unpack(path, where, dense=model, allow_factory=allow_factory).compress(size)
    config = storage.read_config(path)
    report["provenance"]["nested_sha256"] = (checksums(config) or {}).get(NESTED)
    attach(small, {name: value for name, value in config.items() if name != "lowrank_vit"}, report)  # not its weights
    return small if dtype is None else small.to(dtype)


def push_to_hub(
    model: nn.Module | str | Path,
    repository: str,
    *,
    private: bool = False,
    message: str = "Upload a compressed model",
    **options: Any,
) -> str:
    """Upload a saved folder, or a compressed model, to ``"OWNER/NAME"`` on the Hugging Face hub; return its address.

    The repository is made if it does not exist. A folder is checked first, so nothing broken is published; its
    ``report.json`` contains the command with its paths as given. ``options``: of ``save``, for a model.
    Needs ``hf auth login`` or ``HF_TOKEN``.
    Raises ``InputError`` for a folder that holds no model, and where the hub refuses or cannot be reached.
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

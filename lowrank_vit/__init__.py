"""Smaller vision transformers by activation-aware, mixed-rank low-rank approximation.

compressed, report = lowrank_vit.compress(model, calibration=dataloader, recipe="exact", reduction=0.5)
lowrank_vit.save(compressed, "small")
model = lowrank_vit.load("small")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_vit.artefact import load, push_to_hub, save
    from lowrank_vit.errors import InputError
    from lowrank_vit.pipeline import analyse, compress, sweep

__version__ = "0.1.0"
__all__ = ["InputError", "analyse", "compress", "load", "push_to_hub", "save", "sweep"]

_HOMES = {
    **dict.fromkeys(("analyse", "compress", "sweep"), "pipeline"),
    **dict.fromkeys(("load", "push_to_hub", "save"), "artefact"),
    "InputError": "errors",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``--help`` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lowrank_vit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lowrank_vit.{_HOMES[name]}"), name)

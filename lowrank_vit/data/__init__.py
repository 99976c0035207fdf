"""Images by a SPEC string: ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``arrow:PATH`` or ``hf:NAME``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_vit.data.module import ImageData
    from lowrank_vit.data.sampling import hold_out
    from lowrank_vit.data.sources import open_source
    from lowrank_vit.data.splits import ImageSource, ImageSplit

__all__ = ["ImageData", "ImageSource", "ImageSplit", "hold_out", "open_source"]
_HOMES = {
    "ImageData": "module",
    "ImageSource": "splits",
    "ImageSplit": "splits",
    "hold_out": "sampling",
    "open_source": "sources",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a list of models, or of sources, must not wait for Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lowrank_vit.data' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lowrank_vit.data.{_HOMES[name]}"), name)

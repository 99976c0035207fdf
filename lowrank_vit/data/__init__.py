"""Images by a SPEC string: ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``arrow:PATH`` or ``hf:NAME``."""

from lowrank_vit.data.module import ImageData
from lowrank_vit.data.records import ImageSource, ImageSplit
from lowrank_vit.data.sources import open_source

__all__ = ["ImageData", "ImageSource", "ImageSplit", "open_source"]

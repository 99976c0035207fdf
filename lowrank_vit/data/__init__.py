"""Images by a SPEC string: ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``arrow:PATH`` or ``hf:NAME``."""

from typing import TYPE_CHECKING

from lowrank_vit.runtime.lazy import lazily

if TYPE_CHECKING:
    from lowrank_vit.data.module import ImageData
    from lowrank_vit.data.sampling import hold_out
    from lowrank_vit.data.sources import open_source
    from lowrank_vit.data.splits import ImageSource, ImageSplit

__all__ = ["ImageData", "ImageSource", "ImageSplit", "hold_out", "open_source"]
__getattr__, __dir__ = lazily(__name__, __file__)

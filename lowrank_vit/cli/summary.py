"""Show what became of a model that was compressed and saved."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from lowrank_vit.data import ImageData


def summarise(
    dense: "nn.Module",
    compressed: "nn.Module",
    folder: Path,
    data: "ImageData",
    *,
    progress: bool,
    among: str = "unseen training images",
) -> None:
    """Print what became of the model: its layers, what it still agrees on, its sizes, and what was written.

    ``among``: what the held-out images are, which a training on all labelled ones has seen.
    """
    from lowrank_vit.cli.view import comparison_line, show_report, size_line
    from lowrank_vit.runtime.processes import is_first
    from lowrank_vit.stages.evaluate.accuracy import fitting
    from lowrank_vit.stages.evaluate.comparison import compare
    from lowrank_vit.storage import folder as storage

    measured = None
    if data.holds_out:
        batches = fitting(dense, data, data.held_out_dataloader())
        measured = compare(dense, compressed, batches, progress=progress)
    if not is_first():
        return
    report = storage.load_report(folder)
    show_report(report, storage.file_bytes(folder), storage.nested_entry(folder))
    if measured is not None:
        print(comparison_line(measured, among))
    print(size_line(report, storage.file_bytes(folder)))
    print(f"saved to {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.is_file()))}")

"""Exported files beside each other, as their programs run them: bytes, times in turns, and accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.stages.evaluate.accuracy import count_hits
from lowrank_vit.stages.evaluate.speed import quartiles, seconds_in_turns
from lowrank_vit.stages.export.formats import EXPORTERS, Exporter, Run, exporter, files


def compare_files(
    paths: Sequence[Path],
    size: Sequence[int],
    batches: Sequence[int],
    *,
    seconds: float = 10.0,
    clock: str = "wall",
    labelled: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> list[dict[str, Any]]:
    """Return for every file its bytes, its times at each number of images, and its top-1 in percent.

    ``size``: (C, H, W) of an image; ``labelled``: images (B, C, H, W) and labels (B,), or None. The files take turns in
    every round; ``speedup`` is the median of the first one's time over this one's, within a round, with its quartiles.
    Raises ``InputError`` for a file that is not there, or not one that its program runs.
    """
    formats = {str(path): _format(path) for path in paths}
    runs = {str(path): _opened(path, formats[str(path)]) for path in paths}
    sizes = {name: sum(each.stat().st_size for each in files(found, Path(name))) for name, found in formats.items()}
    rows: list[dict[str, Any]] = [{"file": name, "bytes": size, "times": {}} for name, size in sizes.items()]
    first = str(paths[0])
    for batch in batches:
        times = seconds_in_turns(runs, torch.randn(batch, *size), seconds, clock)
        for row in rows:
            own = times[row["file"]]
            low, middle, high = quartiles([one / other for one, other in zip(times[first], own, strict=True)])
            row["times"][batch] = {
                "seconds": quartiles(own)[1],
                "speedup": middle,
                "speedup_quartiles": [low, high],
                "rounds": len(own),
            }
    if labelled is not None:
        for row, (top1, count) in zip(rows, _accuracies(runs, labelled), strict=True):
            row |= {"top1": top1, "n": count}
    return rows


def _format(path: Path) -> Exporter:
    """Return the format that a file has by its suffix: ONNX, unless another has it."""
    if not path.is_file():
        raise InputError(f"{path} is not there: export the model to ONNX first")
    names = [name for name in EXPORTERS.names() if EXPORTERS.get(name).suffix == path.suffix]
    return exporter(names[0] if names else "onnx")


def _opened(path: Path, found: Exporter) -> Run:
    """Open a file. Raises ``InputError`` where its program cannot."""
    try:
        return found.run(path)
    except Exception as error:  # onnxruntime has an error of its own for each reason
        raise InputError(f"{path} is not a file that {found.reader} can run ({reason_of(error)})") from None


def _accuracies(runs: Mapping[str, Run], labelled: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[float, int]]:
    """Return top-1 in percent, and the number of images, of each."""
    hits, count = dict.fromkeys(runs, 0.0), 0
    for images, labels in labelled:
        count += len(images)
        for name, run in runs.items():
            hits[name] += float(count_hits(run(images), labels, 1))
    if not count:
        raise InputError("there are no images to measure the accuracy on: the data set is empty")
    return [(100 * each / count, count) for each in hits.values()]

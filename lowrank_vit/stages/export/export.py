"""Export of a model for other programs: a file of one of the ``formats``, compared with the model before it gets its name."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.permanent import copied
from lowrank_vit.modules.counting import input_size
from lowrank_vit.modules.predicting import Predicting
from lowrank_vit.objectives import Objective
from lowrank_vit.objectives.classification import classes_of
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import replacing
from lowrank_vit.stages.export.formats import Run, exporter

BATCHES = (1, 3)  # on which the file is checked; the graph is traced at another size
TRACED = 2
PREPROCESSING = ("architecture", "tag", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct")


def preprocessing(model: nn.Module) -> str:
    """Describe the images that the model takes, as JSON: size, mean, deviation, ..., from timm's configuration."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own = {"num_classes": classes_of(model)}  # timm's is that of the pretrained weights
    return json.dumps({name: {**config, **own}[name] for name in PREPROCESSING if name in config})


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Yield a path elsewhere, of the same name; if the block succeeds, files written there go to ``path`` and beside it."""
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name
        for written in Path(folder).iterdir():
            if written.name == path.name:
                shutil.copyfile(written, temporary)
                continue
            with replacing(path.with_name(written.name)) as other:
                shutil.copyfile(written, other)


@dataclass(frozen=True)
class Agreement:
    """Hold the mean divergence of an objective, and the percent of images whose largest output is the same."""

    divergence: float
    percent: float


def agreement(objective: Objective, exact: Run, other: Run, images: Sequence[Tensor]) -> Agreement:
    """Measure how far a file's outputs are from another's; ``images``: batches (B, C, H, W)."""
    total, same = 0.0, 0
    for batch in images:
        expected, found = (objective.reading(run(batch)) for run in (exact, other))
        total += float(objective.divergence(expected, found))
        firsts = [outputs.flatten(1).argmax(1) for outputs in (expected, found)]
        same += int(torch.eq(*firsts).sum())
    count = sum(map(len, images))
    return Agreement(total / count, 100 * same / count)


def export(
    model: nn.Module, path: Path, file_format: str, *, batches: Sequence[int] = BATCHES, tolerance: float | None = None
) -> dict[int, float]:
    """Write ``path``, run what was written, and return the largest difference of a logit at each batch size.

    ``file_format``: see `list exporters`; ``tolerance``: the difference allowed, as a share of the largest logit, in place
    of the format's own. The images are random, of the model's size.
    Raises ``InputError`` for an unknown format, a model of unknown input size or on another device than the CPU, and
    where the file's logits differ from the model's; the file is then not kept.
    """
    found = exporter(file_format)
    tolerance = found.tolerance if tolerance is None else tolerance
    size, parameter = input_size(model), next(model.parameters())
    if size is None:
        raise InputError("the model does not say the size of its images, so it cannot be traced")
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise InputError(f"the model is {parameter.dtype} on {parameter.device}: export it as float32 on the CPU")
    described, model = preprocessing(model), Predicting(copied(model)).eval().requires_grad_(False)
    generator, differences = torch.Generator().manual_seed(0), {}
    with placed(path) as written:
        found.write(model, torch.randn(TRACED, *size, generator=generator), written, described)
        run = found.run(written)
        for batch in batches:
            images = torch.randn(batch, *size, generator=generator)
            with torch.no_grad():
                expected, exported = model(images), run(images)
            differences[batch] = float((exported - expected).abs().max())
            if not differences[batch] <= tolerance * float(expected.abs().max()):
                raise InputError(
                    f"the exported model differs by {differences[batch]:.2g} at batch {batch}, where the largest logit is "
                    f"{float(expected.abs().max()):.2g}: {path} was not written; report this, with the packages' versions"
                )
    return differences

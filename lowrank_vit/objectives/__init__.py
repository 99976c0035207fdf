"""What a compression preserves: the probe of the loss, the divergence that is measured, and the distillation loss.

One file for each objective. Every stage works with any of them.
"""

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.modules.predicting import predict
from lowrank_vit.modules.surgery import hooked
from lowrank_vit.records.images import Batches
from lowrank_vit.runtime.processes import gathered
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.registry import Registry

Outputs = tuple[Tensor, ...]  # features (B, width), what is compared (B, ...), then outputs of blocks (B, ..., width)
SEVERAL = "multi_label_classification"  # what a configuration of transformers may say
BLOCK = r"(?:.*\.)?blocks\.\d+"  # the names of blocks in timm
LAYER = r"(?:.*\.)?(?:(?:layers?|resblocks)\.|encoder_layer_)\d+"  # and elsewhere


class Objective(ABC):
    """Say what is preserved. ``outputs`` is what the model returns for a batch of images, (B, ...).

    ``measures``: the name of the divergence in reports; ``unit``: its unit, in words.
    """

    measures: ClassVar[str]
    unit: ClassVar[str]

    @property
    @abstractmethod
    def probe_name(self) -> str:
        """Return the name of the probe; statistics of different probes are cached separately."""

    @abstractmethod
    def lacks(self, model: nn.Module) -> str:
        """Say what a model lacks for the objective to be measured on it; nothing where it can be measured."""

    def fitted(self, model: nn.Module, batches: Batches) -> "Objective":
        """Return the objective with what it needs to know of the dense model's outputs for the calibration images."""
        return self

    @abstractmethod
    def probe(self, outputs: Tensor, images: Tensor, seed: int) -> Tensor:
        """Return a random scalar whose gradient's second moment is the loss's curvature, summed over the batch."""

    @abstractmethod
    def reading(self, outputs: Tensor) -> Tensor:
        """Return the values that ``divergence`` compares, float64."""

    def divergence(self, dense: Tensor, small: Tensor) -> Tensor:
        """Return how far the small model's reading is from the dense one's, summed over the batch.

        By default ``KL(dense || small)`` in nats, of log-probabilities.
        """
        return (dense.exp() * (dense - small)).sum()

    @abstractmethod
    def pull(self, small: Tensor, dense: Tensor, temperature: float) -> Tensor:
        """Return the distillation loss of the compared outputs, a mean over the batch, differentiable."""


OBJECTIVES: Registry[type[Objective]] = Registry("objective", __name__)


def objective_for(model: nn.Module, wanted: Objective) -> Objective:
    """Return the ``wanted`` objective, or for a model that it cannot be measured on ``multi_label`` or ``features``."""
    if not wanted.lacks(model):
        return wanted
    several = getattr(getattr(model, "config", None), "problem_type", None) == SEVERAL
    return OBJECTIVES.get("multi_label" if several else "features")()


def image_generators(images: Tensor, seed: int) -> Iterator[torch.Generator]:
    """Yield a generator of random numbers for each image, on the CPU, that depends on the seed and its content alone.

    So neither the batch size, nor the order, nor the number of processes changes what is drawn for an image.
    """
    for image in images.detach().cpu().contiguous():
        # the CPU's generator reads 32 bits of a seed, so both go into one checksum
        yield torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes(), seed))


def image_signs(images: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Draw random signs for each image, (B, *shape), int64, on the CPU."""
    drawn = [torch.randint(2, tuple(shape), generator=each) for each in image_generators(images, seed)]
    return torch.stack(drawn) * 2 - 1


def compared_outputs(model: nn.Module, images: Tensor, blocks: bool = False) -> Outputs:
    """Return the head's inputs in a model, its outputs and, with ``blocks``, the output of each block, (B, ..., width).

    timm's models say what their head is; in others it is the module that makes the outputs from features, (B, width).
    Where there is none, as with two heads, the outputs stand for the features, too.
    """
    timm_model: Any = model
    listened = [module for name, module in model.named_modules() if re.fullmatch(BLOCK, name)] if blocks else []
    if blocks and not listened:
        listened = [module for name, module in model.named_modules() if re.fullmatch(LAYER, name)]
    known = hasattr(model, "forward_features") and hasattr(model, "forward_head")
    seen: list[Tensor] = []
    made: list[tuple[Any, Any]] = []  # what modules outside blocks were given, and returned
    inner = {id(part) for module in listened for part in module.modules()}
    others = [] if known else [each for each in model.modules() if each is not model and id(each) not in inner]
    hooks = [each.register_forward_hook(lambda _, inputs, output: seen.append(_first(output))) for each in listened]
    hooks += [each.register_forward_hook(lambda _, inputs, output: made.append((inputs, output))) for each in others]
    with hooked(hooks):
        outputs = timm_model.forward_features(images) if known else predict(model, images)
    if known:
        return timm_model.forward_head(outputs, pre_logits=True), timm_model.forward_head(outputs), *seen
    heads = [inputs[0] for inputs, output in made if output is outputs and inputs and isinstance(inputs[0], Tensor)]
    features = next((given for given in reversed(heads) if given.ndim == 2), outputs)
    return features, outputs, *seen


def _first(output: Any) -> Tensor:
    """Return a block's stream, which some return first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def divergences(
    objective: Objective,
    dense: nn.Module,
    models: Sequence[nn.Module],
    batches: Iterable[Tensor],
    *,
    progress: bool = False,
) -> list[float]:
    """Measure the mean divergence of each model from the dense one over the images of all processes."""
    device, totals, count = next(dense.parameters()).device, [0.0] * len(models), 0
    with torch.inference_mode():
        for images in (batch.to(device) for batch in track(batches, "divergence", shown=progress)):
            reading = objective.reading(predict(dense, images))
            for index, model in enumerate(models):
                totals[index] += float(objective.divergence(reading, objective.reading(predict(model, images))))
            count += len(images)
    *sums, images_seen = map(sum, zip(*gathered((*totals, count)), strict=True))
    return [total / images_seen for total in sums]

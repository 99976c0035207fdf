"""What the rounding of each layer costs, at every number of bits, in the objective's currency.

The errors under the second moments of a layer's inputs tell how the loss goes with the bits; the divergence from the dense
model, measured with one layer rounded at one number of bits, tells how much that is.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from lowrank_vit.compression.joint.fronts import Losses
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.objectives import Objective, divergences
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import as_float64
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import LEAST, Replay, first_images
from lowrank_vit.stages.quantize import Quantizer
from lowrank_vit.stages.quantize.inputs import InputMoments, input_moments
from lowrank_vit.stages.quantize.weights import quantize_linear

MEASURED = 3  # bits: few enough for a divergence well above float32's own, many enough to be second order


def rounding_losses(
    model: nn.Module,
    inside: Sequence[str],
    outside: Sequence[str],
    images: Images,
    judged_on: Images,
    bits: Sequence[int],
    *,
    objective: Objective,
    quantizer: Quantizer,
    measured: int,
    progress: bool = False,
) -> Losses:
    """Return the loss of each layer's rounding to each of ``bits``, with the rest of the model as it is.

    ``inside``: layers in the model's blocks, ``outside``: others. ``images``: those whose moments the layers are rounded by;
    ``judged_on``: those that the divergence is measured on, the first ``measured``, at the bits that are nearest to 3.
    """
    at = min(bits, key=lambda each: abs(each - MEASURED))
    errors, rounded = dict[str, dict[int, float]](), dict[str, QuantizedLinear]()
    for group in input_moments(model, [*outside, *inside], images.each(), progress):
        for name, inputs in group.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            small = {each: quantize_linear(layer, each, name, quantizer, inputs) for each in bits}
            errors[name] = {each: output_error(layer, small[each], inputs) for each in bits}
            rounded[name] = small[at]
    found = {}
    losses = _measured(model, inside, outside, rounded, judged_on, objective, measured, progress)
    for name, loss in losses:
        scale = max(loss, LEAST) / max(errors[name][at], torch.finfo(torch.float64).tiny)
        found[name] = {each: scale * error for each, error in errors[name].items()}
    return found


def output_error(layer: nn.Linear, small: QuantizedLinear, inputs: InputMoments) -> float:
    """Return the mean squared error of a rounded layer's output, ``tr(E C E^T)``; the bias takes up its mean, if any."""
    moment = inputs.second if layer.bias is None else inputs.centred
    error = as_float64(layer.weight) - small.weight.double()
    return float(((error @ moment.to(error)) * error).sum())


def _measured(
    model: nn.Module,
    inside: Sequence[str],
    outside: Sequence[str],
    rounded: Mapping[str, nn.Module],
    images: Images,
    objective: Objective,
    count: int,
    progress: bool,
) -> Iterator[tuple[str, float]]:
    """Measure the divergence with one layer rounded; the pass resumes at the block that it is in."""
    with Spill() as kept:
        replay = Replay(model, objective, images.each(), count, kept)
        for name in track(inside, "measure", shown=progress):
            yield name, replay.divergence(name, rounded[name])
    for name in outside:
        changed = copy.deepcopy(model)
        replace_module(changed, name, rounded[name])
        yield name, divergences(objective, model, [changed], first_images(images.each(), count))[0]

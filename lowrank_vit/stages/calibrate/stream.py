"""One streaming pass over images that collects the moments the methods need, layer by layer.

Memory does not depend on the number of images: products are computed in float32 batch by batch and added up in float64.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrank_vit.architectures.linears import separate_bias
from lowrank_vit.modules.predicting import predict, tell_implausible
from lowrank_vit.modules.surgery import output_layer
from lowrank_vit.objectives import Objective
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.images import Batches, each_image
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import rank_and_world
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.calibrate.observe import Accumulator, needs_gradient, resolve
from lowrank_vit.stages.calibrate.statistics import Batch

CLASSIFICATION = Classification()


def _checked(images: Tensor, size: torch.Size | None) -> Tensor:
    """Return the images. Raises ``InputError`` unless they are (B, C, H, W) of ``size``, (C, H, W), where given."""
    if images.ndim != 4 or (size is not None and images.shape[1:] != size):
        expected = "(B, C, H, W)" if size is None else f"(B, {', '.join(map(str, size))}) as in the first batch"
        raise InputError(f"a batch of calibration images is {tuple(images.shape)}: expected {expected}")
    return images


def _hook(accumulator: Accumulator) -> Callable[..., Tensor | None]:
    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        x = inputs[0]
        with torch.no_grad():
            accumulator.see_input(x, output)
        if not (torch.is_grad_enabled() and accumulator.needs_gradient):
            return None
        begins = not output.requires_grad
        # a hook that holds its own tensor, or a view of it, keeps the whole graph alive for ever
        seen = output.detach()
        output.requires_grad_()
        output.register_hook(lambda gradient: accumulator.see_gradient(x, seen, gradient))
        # the graph begins at the first layer with a hook, not at the images; BEiT and EVA change their outputs in place,
        # which a leaf of the graph does not permit and which would change ``seen``
        return output.clone() if begins or isinstance(accumulator.later_bias, Tensor) else None

    return see


def _layer(model: nn.Module, site: Site) -> nn.Module:
    return output_layer(model.get_submodule(site.name))


def _accumulators(
    model: nn.Module, sites: Sequence[Site], needs: Mapping[str, frozenset[str]], batch: Batch
) -> list[Accumulator]:
    accumulators = []
    for site in sites:
        layer = _layer(model, site)
        biases = getattr(layer, "bias", None), separate_bias(model, site)
        bias, later = (0.0 if each is None else each.detach().float() for each in biases)
        wanted = resolve(needs[site.name], site)
        weight = layer.weight.detach().float() if isinstance(layer, nn.Linear) else None
        owner = model.get_submodule(site.name.rpartition(".")[0])
        accumulators.append(Accumulator(site, bias, later, wanted, batch, weight, owner))
    return accumulators


def _reduce(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Sum the moments over all processes, where there are several."""
    if rank_and_world()[1] == 1:
        return dict(moments)
    merged = {}
    for name, layer in moments.items():
        counts = torch.tensor([layer.images, layer.tokens], device=layer.sums["input_sum"].device)
        dist.all_reduce(counts)
        for total in layer.sums.values():
            dist.all_reduce(total)
        merged[name] = Moments(int(counts[0]), int(counts[1]), layer.sums)
    return merged


def _check_images(count: int, device: torch.device) -> None:
    """Raise ``InputError``, in all processes, where one of them has seen no image."""
    world = rank_and_world()[1]
    counts = torch.tensor([count, int(count == 0)], device=device)
    if world > 1:
        dist.all_reduce(counts)
    images, without = counts.tolist()
    if not images:
        raise InputError("no images to calibrate on: the data set is empty")
    if images == 1:
        warnings.warn("a single image says little of a model: calibrate on some hundred", stacklevel=3)
    if without:
        raise InputError(f"{images} images for {world} processes: give each one at least, or start fewer processes")


def _check_called(accumulators: Sequence[Accumulator]) -> None:
    for layer in accumulators:
        if not layer.images:
            raise InputError(
                f"layer {layer.site.name!r} is never called as a module, so its input is unknown: leave it out by `sites=`"
            )


def _check_finite(moments: Mapping[str, Moments]) -> None:
    """Raise ``InputError`` where the sums of all processes are not finite, so that every process stops."""
    for name, layer in moments.items():
        bad = [statistic for statistic, total in layer.sums.items() if not torch.isfinite(total.sum())]
        if bad:
            raise InputError(
                f"the activations of layer {name!r} are not finite ({bad[0]}): check the weights and the images"
            )


def calibrate(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Iterable[str] | Mapping[str, Iterable[str]],
    batches: Batches,
    *,
    seed: int = 0,
    objective: Objective = CLASSIFICATION,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Moments]:
    """Collect the moments of every site over all images of ``batches``: tensors (B, C, H, W), or what holds such.

    ``needs``: the statistics, of all sites or site by site. Labels are never read. Where one needs
    gradients, a backward pass starts from the ``objective``'s random probe of the model's own outputs. Of several
    processes each passes its own share of the images, and all get the sums over all of them.
    Raises ``InputError`` for no images, images of several sizes, activations that are not finite, a layer that is never
    called, and a model that the objective cannot be measured on.
    """
    if isinstance(needs, Mapping):
        wanted = {site.name: frozenset(needs[site.name]) for site in sites}
    else:
        wanted = dict.fromkeys((site.name for site in sites), frozenset(needs))
    backward = any(needs_gradient(names) for names in wanted.values())
    if backward and objective.lacks(model):
        raise InputError(
            f"the model {objective.lacks(model)}, so its predictions have no loss: pass `objective=Features()`"
        )
    model, size = model.to(device).eval(), None
    batch, seen = Batch(), 0
    accumulators = _accumulators(model, sites, wanted, batch)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    hooks = [_layer(model, layer.site).register_forward_hook(_hook(layer)) for layer in accumulators]
    try:
        model.requires_grad_(False)
        for item in each_image(track(batches, "calibrate", shown=progress)):
            images = _checked(item, size)
            if size is None:
                tell_implausible(model, images)
            batch.images, size, seen = len(images), images.shape[1:], seen + len(images)
            with torch.set_grad_enabled(backward):
                outputs = predict(model, images)
                if backward:
                    objective.probe(outputs, images, seed).backward()
            batch.forget()
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
    _check_images(seen, next(model.parameters()).device)
    _check_called(accumulators)
    moments = _reduce({layer.site.name: layer.moments() for layer in accumulators})
    _check_finite(moments)
    return moments

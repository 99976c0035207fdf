"""One streaming pass over images that collects each layer's moments, and nothing that the methods do not need.

Memory does not depend on the number of images: products are taken in float32 batch by batch and added up in float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrank_vit.errors import InputError
from lowrank_vit.observe import NEED_GRADIENT, Accumulator, Batch, resolve
from lowrank_vit.parallel import rank_and_world
from lowrank_vit.progress import track
from lowrank_vit.records import Moments, Site
from lowrank_vit.sites import get_linear


def sample_labels(logits: Tensor, images: Tensor, seed: int) -> Tensor:
    """One label for each image, drawn from the model's own prediction, (batch,).

    The draw depends on the seed and the image's content alone, so that neither the batch size, nor the order, nor the
    number of processes changes it.
    """
    generator = torch.Generator()
    draws = []
    for image in images.detach().cpu().contiguous():
        # the CPU's generator reads 32 bits of a seed, so both go into one checksum
        generator.manual_seed(zlib.crc32(image.numpy().tobytes(), seed))
        draws.append(torch.rand((), generator=generator, dtype=torch.float64))
    cumulative = logits.detach().double().softmax(-1).cumsum(-1).cpu()
    chosen = torch.searchsorted(cumulative, torch.stack(draws)[:, None]).squeeze(1)
    return chosen.clamp_max(logits.shape[-1] - 1).to(logits.device)


def probe_labels(logits: Tensor, images: Tensor, seed: int) -> Tensor:
    """The loss of labels sampled from the model's own prediction, summed over the batch.

    Its gradient's second moment is the Fisher information.
    """
    return torch.nn.functional.cross_entropy(logits.float(), sample_labels(logits, images, seed), reduction="sum")


def probe_signs(logits: Tensor, images: Tensor, seed: int) -> Tensor:
    """A loss whose gradient has the Fisher information as its second moment, as ``probe_labels`` has, with less noise.

    Random signs e for each image and class, and ``c = sqrt(p) e - p (sqrt(p)^T e)`` as the gradient at the logits:
    ``E[c c^T] = diag(p) - p p^T`` exactly. A confident prediction nearly always draws its own label, whose gradient is
    nearly zero, and rarely another, whose gradient is huge; here every image always speaks with its full weight.
    """
    generator = torch.Generator()
    signs = []
    for image in images.detach().cpu().contiguous():
        generator.manual_seed(zlib.crc32(image.numpy().tobytes(), seed))
        signs.append(torch.randint(2, logits.shape[-1:], generator=generator) * 2 - 1)
    p = logits.detach().float().softmax(-1)
    weighted = p.sqrt() * torch.stack(signs).to(p)
    return (logits.float() * (weighted - p * weighted.sum(-1, keepdim=True))).sum()


LABELS = "labels"
PROBES = {LABELS: probe_labels, "signs": probe_signs}


def _images(batch: Tensor | Sequence[Tensor], size: torch.Size | None) -> Tensor:
    """The images of a batch. Raises ``InputError`` unless they are (B, C, H, W), of the ``size`` (C, H, W) of the first."""
    images = batch if isinstance(batch, Tensor) else batch[0]
    if images.ndim != 4 or (size is not None and images.shape[1:] != size):
        expected = "(B, C, H, W)" if size is None else f"(B, {', '.join(map(str, size))}) as in the first batch"
        raise InputError(f"a batch of calibration images is {tuple(images.shape)}: expected {expected}")
    return images


def _check_classifier(model: nn.Module) -> None:
    if getattr(model, "num_classes", None) == 0:
        raise InputError(
            "the model has no classifier (num_classes is 0), and this recipe measures the loss of its predictions: "
            "choose a recipe without gradients, as 'exact'"
        )


def _hook(accumulator: Accumulator) -> Callable[..., Tensor | None]:
    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        x = inputs[0]
        with torch.no_grad():
            accumulator.see_input(x, output)
        if not (torch.is_grad_enabled() and accumulator.wanted & NEED_GRADIENT):
            return None
        begins = not output.requires_grad
        # a hook that held its own tensor, or a view of it, would keep the whole graph alive for ever
        seen = output.detach()
        output.requires_grad_()
        output.register_hook(lambda gradient: accumulator.see_gradient(x, seen, gradient))
        # the graph begins at the first layer that is listened to, not at the images; BEiT changes its outputs in place,
        # which what a graph begins with does not permit
        return output.clone() if begins else None

    return see


def _accumulators(
    model: nn.Module, sites: Sequence[Site], needs: Mapping[str, frozenset[str]], batch: Batch
) -> list[Accumulator]:
    biases = [get_linear(model, site).bias for site in sites]
    return [
        Accumulator(site, 0.0 if bias is None else bias.detach().float(), resolve(needs[site.name], site), batch)
        for site, bias in zip(sites, biases, strict=True)
    ]


def _reduce(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """The sum over all processes, where there are several."""
    if rank_and_world()[1] == 1:
        return dict(moments)
    merged = {}
    for name, own in moments.items():
        counts = torch.tensor([own.images, own.tokens], device=own.sums["input_sum"].device)
        dist.all_reduce(counts)
        for total in own.sums.values():
            dist.all_reduce(total)
        merged[name] = Moments(int(counts[0]), int(counts[1]), own.sums)
    return merged


def _check_called(accumulators: Sequence[Accumulator]) -> None:
    for own in accumulators:
        if not own.images:
            raise InputError(
                f"layer {own.site.name!r} is never called as a module, so its input cannot be seen: leave it out by --sites"
            )


def _check_finite(moments: Mapping[str, Moments]) -> None:
    """Of the sums of all processes, so that all of them stop."""
    for name, own in moments.items():
        bad = [statistic for statistic, total in own.sums.items() if not torch.isfinite(total.sum())]
        if bad:
            raise InputError(
                f"the activations of layer {name!r} are not finite ({bad[0]}): check the weights and the images"
            )


def calibrate(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Iterable[str] | Mapping[str, Iterable[str]],
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    seed: int = 0,
    probe: str = LABELS,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Moments]:
    """The moments of every site over all images of ``batches`` (tensors (B, C, H, W), or tuples that begin with one).

    ``needs``: the statistics, of all sites or site by site. Labels are never read. With gradients among them, one
    backward pass is made from a random ``probe`` of the model's own prediction: ``"labels"`` or ``"signs"`` (the same
    Fisher information, less noise). In several processes each passes its own share and all get the sums of all.
    Raises ``InputError`` for no images, images of several sizes, activations that are not finite, a layer that is never
    called, and gradients of a model without a classifier.
    """
    if isinstance(needs, Mapping):
        wanted = {site.name: frozenset(needs[site.name]) for site in sites}
    else:
        wanted = dict.fromkeys((site.name for site in sites), frozenset(needs))
    backward = any(own & NEED_GRADIENT for own in wanted.values())
    if backward:
        _check_classifier(model)
    model, size = model.to(device).eval(), None
    batch = Batch()
    accumulators = _accumulators(model, sites, wanted, batch)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    hooks = [get_linear(model, own.site).register_forward_hook(_hook(own)) for own in accumulators]
    try:
        model.requires_grad_(False)
        for item in track(batches, "calibrate", shown=progress):
            images = _images(item, size)
            batch.images, size = len(images), images.shape[1:]
            with torch.set_grad_enabled(backward):
                logits = model(images.to(device))
                if backward:
                    PROBES[probe](logits, images, seed).backward()
            batch.forget()
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
    if not batch.images:
        raise InputError(
            "no images to calibrate on: the data set or --calibration-samples is empty, or has fewer than the processes"
        )
    _check_called(accumulators)
    moments = _reduce({own.site.name: own.moments() for own in accumulators})
    _check_finite(moments)
    return moments

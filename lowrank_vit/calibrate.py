"""One streaming pass over images that collects each layer's moments, and nothing that the methods do not need.

Memory does not depend on the number of images: products are taken in float32 batch by batch and added up in float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrank_vit.errors import InputError
from lowrank_vit.progress import track
from lowrank_vit.records import Moments, Site
from lowrank_vit.sites import get_linear

STATISTICS = frozenset(
    {
        "second",  # of the smaller side
        "input_second",
        "output_second",
        "normalised_second",
        "normalised_input_second",
        "input_abs",
        "representative",
        "gradient_second",
        "fisher_rows",
    }
)
NEED_GRADIENT = frozenset({"gradient_second", "fisher_rows"})


def resolve(needs: Iterable[str], site: Site) -> frozenset[str]:
    """The sums to collect at a site: ``"second"`` becomes the smaller side's, unless the input's is needed anyway."""
    wanted = set(needs)
    if not wanted <= STATISTICS:
        raise ValueError(f"unknown statistics {sorted(wanted - STATISTICS)}")
    for prefix in ("", "normalised_"):
        if f"{prefix}second" in wanted:
            wanted.remove(f"{prefix}second")
            if f"{prefix}input_second" not in wanted:
                wanted.add(f"{prefix}{site.side}_second")
    return frozenset(wanted)


@dataclass
class _Batch:
    """The batch under way: its images, and the products of the last input, so that layers which share it share them."""

    images: int = 0
    last_input: Tensor | None = None
    products: dict[str, Tensor] = field(default_factory=dict)

    def product(self, name: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if x is not self.last_input:
            self.last_input, self.products = x, {}
        if name not in self.products:
            self.products[name] = compute()
        return self.products[name]


@dataclass
class _Accumulator:
    """The running sums of one layer."""

    site: Site
    bias: Tensor | float
    wanted: frozenset[str]
    batch: _Batch
    images: int = 0
    tokens: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        value = value.to(torch.float64)
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def see_input(self, x: Tensor, output: Tensor) -> None:
        """x: (..., n), output: (..., d) of the layer for the batch; windows of one image are neighbours."""
        rows = x.detach().flatten(0, -2).float()
        self.images, self.tokens = self.images + self.batch.images, self.tokens + len(rows)
        self.add("input_sum", self.batch.product("sum", x, lambda: rows.sum(0)))
        if "input_second" in self.wanted:
            self.add("input_second", self.batch.product("second", x, lambda: rows.T @ rows))
        if "input_abs" in self.wanted:
            self.add("input_abs", self.batch.product("abs", x, lambda: rows.abs().sum(0)))
        if "representative" in self.wanted:
            grid = x.detach().float().reshape(len(x), -1, x.shape[-1])
            self.add("representative", self.batch.product("representative", x, lambda: grid.sum(0)))
            self.add("representative_count", torch.tensor(float(len(grid)), device=x.device))
        if self.wanted & {"output_second", "normalised_output_second", "normalised_input_second"}:
            self._see_output(rows, output.detach().flatten(0, -2).float() - self.bias)

    def _see_output(self, rows: Tensor, output: Tensor) -> None:
        images = self.batch.images
        if "output_second" in self.wanted:
            self.add("output_second", output.T @ output)
        if self.wanted & {"normalised_output_second", "normalised_input_second"}:
            energy = output.reshape(images, -1).square().sum(1).clamp_min(torch.finfo(output.dtype).tiny)
            weights = energy.reciprocal().repeat_interleave(len(rows) // images)
            self.add("normalised_weight", weights.sum())
            self.add("normalised_input_sum", weights @ rows)
            for name, x in (("normalised_input_second", rows), ("normalised_output_second", output)):
                if name in self.wanted:
                    self.add(name, (x * weights[:, None]).T @ x)

    def see_gradient(self, x: Tensor, gradient: Tensor) -> None:
        """gradient: (..., d), of the summed loss of a batch with respect to the layer's output."""
        images = self.batch.images
        g = gradient.float().reshape(images, -1, gradient.shape[-1])
        if "gradient_second" in self.wanted:
            rows = g.flatten(0, 1)
            self.add("gradient_second", rows.T @ rows)
        if "fisher_rows" in self.wanted:
            # row i of an image's weight gradient is X[:, i]^T g, so its squared norm needs no (n, d) matrix
            inputs = x.detach().float().reshape(images, -1, x.shape[-1])
            self.add("fisher_rows", (((g @ g.mT) @ inputs) * inputs).sum((0, 1)))

    def moments(self) -> Moments:
        return Moments(self.images, self.tokens, self.sums)


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


def _images(batch: Tensor | Sequence[Tensor]) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _hook(accumulator: _Accumulator) -> Callable[..., None]:
    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        with torch.no_grad():
            accumulator.see_input(x, output)
        if output.requires_grad and accumulator.wanted & NEED_GRADIENT:
            output.register_hook(lambda gradient: accumulator.see_gradient(x, gradient))

    return see


def _accumulators(model: nn.Module, sites: Sequence[Site], needs: frozenset[str], batch: _Batch) -> list[_Accumulator]:
    biases = [get_linear(model, site).bias for site in sites]
    return [
        _Accumulator(site, 0.0 if bias is None else bias.detach().float(), resolve(needs, site), batch)
        for site, bias in zip(sites, biases, strict=True)
    ]


def _reduce(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """The sum over all processes, where there are several."""
    if not (dist.is_available() and dist.is_initialized()):
        return dict(moments)
    merged = {}
    for name, own in moments.items():
        counts = torch.tensor([own.images, own.tokens], device=own.sums["input_sum"].device)
        dist.all_reduce(counts)
        for total in own.sums.values():
            dist.all_reduce(total)
        merged[name] = Moments(int(counts[0]), int(counts[1]), own.sums)
    return merged


def _check(moments: Mapping[str, Moments], sites: Sequence[Site]) -> None:
    for site in sites:
        own = moments[site.name]
        if not own.images:
            raise InputError(
                f"layer {site.name!r} is never called as a module, so its input cannot be seen: leave it out by --sites"
            )
        bad = [name for name, total in own.sums.items() if not torch.isfinite(total).all()]
        if bad:
            raise InputError(
                f"the activations of layer {site.name!r} are not finite ({bad[0]}): check the weights and the images"
            )


def calibrate(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Iterable[str],
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Moments]:
    """The moments of every site over all images of ``batches`` (tensors (B, C, H, W), or tuples that begin with one).

    Labels are never read. With gradients among ``needs``, labels are sampled from the model's own prediction and one
    backward pass is made. In several processes each passes its own share and all get the sums of all.
    Raises ``InputError`` for no images, activations that are not finite, or a layer that is never called.
    """
    needs = frozenset(needs)
    backward = bool(needs & NEED_GRADIENT)
    model = model.to(device).eval()
    batch = _Batch()
    accumulators = _accumulators(model, sites, needs, batch)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    hooks = [get_linear(model, own.site).register_forward_hook(_hook(own)) for own in accumulators]
    try:
        model.requires_grad_(False)
        for item in track(batches, "calibrate", shown=progress):
            images = _images(item)
            batch.images = len(images)
            inputs = images.to(device).requires_grad_(backward)
            with torch.set_grad_enabled(backward):
                logits = model(inputs)
                if backward:
                    labels = sample_labels(logits, images, seed)
                    torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
    if not batch.images:
        raise InputError("no images to calibrate on: the data set or --calibration-samples is empty")
    moments = {own.site.name: own.moments() for own in accumulators}
    _check(moments, sites)
    return _reduce(moments)

"""Moments of the inputs of the layers to be quantised, block by block, behind the blocks that are quantised already."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import UnknownWholeError, family_of
from lowrank_vit.architectures.step_inputs import enter, run_step
from lowrank_vit.linalg.metric import about_mean, gram
from lowrank_vit.modules.predicting import predict
from lowrank_vit.modules.surgery import hooked
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import Spill

HARDLY = 1e-4  # share of the squared inputs that is variance: below, products in float32 miss a hundredth of it


@dataclass(frozen=True)
class InputMoments:
    """Hold averages over all tokens of a layer's inputs x, float64: ``mean`` of x, (n,), ``second`` of x x^T, (n, n).

    ``about``, (n,): a point near inputs that hardly vary, and ``spread`` the second moment about it, (n, n): the covariance
    would be lost in the rounding errors of ``second``.
    """

    mean: Tensor
    second: Tensor
    about: Tensor | None = None
    spread: Tensor | None = None

    @property
    def centred(self) -> Tensor:
        """Return the covariance, (n, n)."""
        if self.about is None or self.spread is None:
            return about_mean(self.second, self.mean)
        return about_mean(self.spread, self.mean - self.about)


class _Sums:
    """Sum over the tokens that a layer has seen: products in float32, added up in float64.

    If the first batch hardly varies, deviations from its mean are summed up beside, in float64.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.tokens, width = 0, int(getattr(layer, "in_features"))  # noqa: B009
        self.total, self.second = (torch.zeros(size, dtype=torch.float64) for size in ((width,), (width, width)))
        self.about: Tensor | None = None
        self.spread = torch.zeros_like(self.second)

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2).float().cpu()
        if not self.tokens:
            mean = x.double().mean(0)
            hardly = (x - mean).square().sum() <= HARDLY * x.double().square().sum()
            self.about = mean if hardly else None
        self.tokens += len(x)
        self.total += x.double().sum(0)
        self.second += gram(x)
        if self.about is not None:
            self.spread += gram(x.double() - self.about)

    def moments(self, name: str) -> InputMoments:
        if not self.tokens:
            raise InputError(
                f"layer {name!r} is never called as a module, so its input is unknown: leave it out by `sites=`"
            )
        if not self.second.sum().isfinite():
            raise InputError(f"the inputs of layer {name!r} are not finite: check the weights and the images")
        mean, second = self.total / self.tokens, self.second / self.tokens
        return InputMoments(mean, second, self.about, None if self.about is None else self.spread / self.tokens)


@contextmanager
def _listening(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, _Sums]]:
    """Sum up what the layers see while the context lasts."""
    layers = {name: model.get_submodule(name) for name in names}
    sums = {name: _Sums(layer) for name, layer in layers.items()}
    with hooked(layers[name].register_forward_hook(sums[name].see) for name in names):
        yield sums


@torch.no_grad()
def input_moments(
    model: nn.Module, names: Sequence[str], batches: Iterable[Tensor], progress: bool = False
) -> Iterator[dict[str, InputMoments]]:
    """Yield the moments of the inputs of the named layers, all of a block together, in the model's order.

    The caller may replace a block's layers before it asks for the next ones, whose inputs then come from the block as it
    has become. Layers outside the blocks come first, and so do all where it is not known how the blocks follow each
    other: their inputs are those of the model as it is. What goes from block to block is on the disk.
    """
    try:
        steps = family_of(model).steps(model)
    except UnknownWholeError:
        steps = {}
    outside = [name for name in names if not name.startswith(tuple(f"{step}." for step in steps))]
    if outside:
        with _listening(model, outside) as sums:
            for batch in batches:
                predict(model, batch)
        yield _moments(sums)
    if len(outside) == len(names):
        return
    given, entering = enter(model, steps, batches)
    device = next(model.parameters()).device
    with Spill() as stream:
        for place, x in enumerate(entering):
            stream[place] = x
        for step in track(steps, "quantise", shown=progress):
            inside = [name for name in names if name.startswith(f"{step}.")]
            if inside:
                with _listening(model, inside) as sums:
                    for x in stream:
                        run_step(model.get_submodule(step), x.to(device), given[step])
                yield _moments(sums)
            module = model.get_submodule(step)  # as it has become
            for place, x in enumerate(stream):
                stream[place] = run_step(module, x.to(device), given[step])


def _moments(sums: Mapping[str, _Sums]) -> dict[str, InputMoments]:
    return {name: layer.moments(name) for name, layer in sums.items()}


Observe = Callable[[nn.Module, Sequence[str]], Iterator[Mapping[str, InputMoments]]]

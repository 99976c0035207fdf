"""Refit of what every branch of a block adds to the stream, once everything before it is smaller; and of the classifier.

A branch is approximated for the inputs that the dense model gives it, but gets those of the smaller model. So, branch by
branch from first to last, its output layer is refitted to bring the stream back to the dense model's: in closed form,
without labels, and without extra parameters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import Branch, family_of, first_inputs
from lowrank_vit.architectures.linears import is_linear, is_shared
from lowrank_vit.architectures.step_inputs import enter, run_step
from lowrank_vit.modules.predicting import predict
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.records.moments import as_float64
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.merged_refit import refit_token_block
from lowrank_vit.stages.correct.regression import Folds, Streams, add_affine


def check_refit(model: nn.Module, batches: object) -> None:
    """Raise ``InputError``, before anything long begins, for a model or images that could not be refitted later."""
    family_of(model).steps(model)
    if isinstance(batches, Iterator):
        raise InputError("the calibration images can be gone through only once: pass a list or a data loader")


@dataclass(frozen=True)
class OutputRefit:
    """Minimise ``sum_t w_t ||s_t - s^_t - f^_t - (h_t W + b)||^2 + ridge s ||W||^2`` branch by branch, over W and b.

    s: the dense stream after the branch; s^: the smaller model's before it; f^: what its branch adds; h: inputs of the
    branch's output layer, to whose weight and bias W and b are added. ``w_t`` is ``1 - sensitivity`` plus
    ``sensitivity`` times the share of the position t in the loss's squared gradient at the branch's output, so that a
    late block is fitted at the class token. The ridge is chosen branch by branch, by cross-validation over ``folds``
    groups of images: what a stream has lost is much the same for all tokens of an image, so there are far fewer
    examples than tokens. Where a norm follows the output layer (Swin V2), its own dense outputs take the place of
    ``s_t - s^_t``: what the stream has lost before cannot be made up for behind a norm.

    Both models see the images once, and memory does not grow with them: both streams, and the inputs of one output layer,
    are kept on the disk, ``4 N T (2 n + k)`` bytes for N images of T tokens (float32; k: that layer's inputs, after
    reduction).
    """

    ridges: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

    sensitivity: float = 0.5

    folds: int = 4

    @torch.no_grad()
    def __call__(
        self,
        dense: nn.Module,
        small: nn.Module,
        sensitivities: Mapping[str, Tensor],
        batches: Iterable[Tensor],
        *,
        progress: bool = False,
    ) -> dict[str, float | None]:
        """Change the output layers of ``small`` in place; return the ridge of each, ``None`` where nothing was gained.

        ``sensitivities``: of each output layer, the sum of squared gradients by position, (T,); none are needed where they
        weigh nothing. ``batches``: the
        calibration images, (B, C, H, W). Raises ``InputError`` for blocks of an unknown kind.
        """
        family, device = family_of(dense), next(dense.parameters()).device
        steps, ridges = family.steps(dense), dict[str, float | None]()
        old_images, new_images = tee(batch.to(device) for batch in batches)
        given, inputs = enter(dense, steps, old_images)
        smaller_inputs = first_inputs(small, small.get_submodule(next(iter(steps))), new_images)
        with Streams() as streams, Streams() as before, Spill() as shares:
            for place, pair in enumerate(zip(inputs, smaller_inputs, strict=True)):
                streams.put(place, *pair)
            for name in track(list(steps), "refit", shown=progress):
                old, new = steps[name], small.get_submodule(name)
                if isinstance(new, TokenBlock):
                    own = family.branches(old)
                    outputs = [f"{name}.{branch.output_name}" for branch in own]
                    by_output = [self._weights(sensitivities[output]) for output in outputs]
                    found = refit_token_block(own, new, streams, shares, by_output, self.folds, self._fit)
                    ridges |= dict(zip(outputs, found, strict=True))
                    continue
                branches = list(zip(family.branches(old), family.branches(new), strict=True))
                sources = streams
                for place, branch_pair in enumerate(branches):
                    if not branch_pair[0].beside:
                        shared = any(other.beside for other, _ in branches[place + 1 : place + 2])
                        sources = streams.copy_to(before) if shared else streams
                    output = f"{name}.{branch_pair[0].output_name}"
                    weights = self._weights(sensitivities[output]) if self.sensitivity else torch.ones(())
                    ridges[output] = self._branch(*branch_pair, streams, sources, weights, given[name])
                if not branches:
                    for place in range(len(streams)):
                        x, y = streams.at(place, device)
                        streams.put(place, run_step(old, x, given[name]), run_step(new, y, given[name]))
        return ridges

    def _branch(
        self, old: Branch, new: Branch, streams: Streams, sources: Streams, weights: Tensor, given: dict[str, Any]
    ) -> float | None:
        """Refit one branch, which sees ``sources``, by the ``weights`` of positions; return the ridge.

        The streams are replaced by those after it. Both models run it once; then what the change adds to the layer's outputs
        is added (behind a norm: it runs again).
        """
        layer, device = new.output_layer, new.output_layer.weight.device
        folds = Folds(layer, self.folds)
        with Spill() as inputs:
            for place in range(len(streams)):
                pair = streams.at(place, device)
                x, y, error, h = _gap(old, new, pair, pair if sources is streams else sources.at(place, device), given)
                streams.put(place, x, y)
                there = old.tokens(torch.ones_like(y))[..., 0]  # padding is no output
                rows, h = weights.to(there) * there, h.reshape(*error.shape[:2], -1)
                inputs[place] = h
                folds.add(h, error, rows)
            change, shift, ridge = _seen(old.scale, *folds.fit(self.ridges))
            ridge = None if is_shared(layer) else ridge  # the other place would change, too
            if ridge is not None:
                _add_to(layer, change, shift, old.scale)
            if old.normed:
                for place, (y, source) in enumerate(zip(streams.small, sources.small, strict=True)):
                    streams.small[place] = y + new.add(source.to(device), **given).cpu()
            elif ridge is not None:
                self._move(old, streams.small, inputs, change, shift)
        return ridge

    def _weights(self, sensitivity: Tensor) -> Tensor:
        """Return the weight of every position, (T,)."""
        share = sensitivity.float() / sensitivity.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return 1 - self.sensitivity + self.sensitivity * len(share) * share

    @staticmethod
    def _move(old: Branch, stream: Spill, inputs: Spill, change: Tensor, shift: Tensor) -> None:
        """Add to the smaller model's stream what the change, (k, d) and (d,), makes of the layer's inputs, (B, T, k)."""
        for place, (y, h) in enumerate(zip(stream, inputs, strict=True)):
            added = torch.addmm(shift.to(y.dtype), h.to(change.device).flatten(0, 1), change.to(y.dtype))
            stream[place] = y + old.stream(added.unflatten(0, (len(y), -1)), y.shape).cpu()

    def _fit(self, branch: Branch, layer: nn.Linear, folds: Folds) -> float | None:
        """Change an output layer by what the folds hold of its inputs and of what is missing; return the ridge."""
        change, shift, ridge = _seen(branch.scale, *folds.fit(self.ridges))
        if ridge is not None:
            _add_to(layer, change, shift, branch.scale)
        return ridge


def _gap(
    old: Branch, new: Branch, streams: Sequence[Tensor], sources: Sequence[Tensor], given: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both streams after a branch, the gap to mend, (B, T, d), and the inputs of the output layer.

    ``sources``: what the branch sees. To be mended is the difference of the streams or, where a norm follows, of what the
    layers make: the smaller model's stream, which is to be added to later, is then still the one before the branch.
    """
    (wanted, seen), (added, h) = (
        branch.with_inputs(source, **given) for branch, source in zip((old, new), sources, strict=True)
    )
    x, y = streams
    if not old.normed:
        x, y = x + wanted, y + added
        return x, y, old.tokens(x - y), h
    error = old.output_layer(seen) - new.output_layer(h)
    return x + wanted, y, error.reshape(len(x), -1, error.shape[-1]), h


def _seen(
    scale: Tensor | None, change: Tensor, shift: Tensor, ridge: float | None
) -> tuple[Tensor, Tensor, float | None]:
    """Leave out what the ``scale`` multiplies by zero: it adds nothing, whatever the layer computes."""
    kept = 1.0 if scale is None else (scale != 0).to(change)
    return change * kept, shift * kept, ridge


def _add_to(layer: nn.Linear, change: Tensor, shift: Tensor, scale: Tensor | None) -> None:
    """Add (k, d) and (d,), in the units of the stream, to a layer's weight and bias; ``scale`` follows the layer."""
    if scale is not None:
        gamma = as_float64(torch.where(scale == 0, 1.0, scale))
        change, shift = change / gamma, shift / gamma
    add_affine(layer, change, shift)


@dataclass(frozen=True)
class ClassifierRefit:
    """Minimise ``sum_i ||z_i - z^_i - f_i W - b||^2 + ridge s ||W||^2`` over W and b, which are added to the classifier.

    z: the dense model's logits for an image; z^: the smaller model's; f: its features, which the classifier is given. No
    label is read. The ridge is chosen by cross-validation over ``folds`` groups of images.
    """

    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    folds: int = 4

    @torch.no_grad()
    def __call__(
        self,
        dense: nn.Module,
        small: nn.Module,
        sensitivities: Mapping[str, Tensor],
        batches: Iterable[Tensor],
        *,
        progress: bool = False,
    ) -> dict[str, float | None]:
        """Change the classifier of ``small`` in place; return its ridge, ``None`` where nothing was gained.

        ``batches``: the calibration images, (B, C, H, W); ``sensitivities`` are not read.
        Raises ``InputError`` for a model without a classifier that is one linear layer.
        """
        name, head = _classifier(small)
        folds = self._folds(dense, small, head, track(batches, "refit", shown=progress))
        change, shift, ridge = folds.fit(self.ridges)
        add_affine(head, change, shift)
        return {name: ridge}

    def _folds(self, dense: nn.Module, small: nn.Module, head: nn.Linear, batches: Iterable[Tensor]) -> Folds:
        """Sum up, in groups of images, the classifier's inputs and what its logits lack."""
        folds, features = Folds(head, self.folds), list[Tensor]()
        hook = head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        try:
            for images in (batch.to(head.weight.device) for batch in batches):
                missing = predict(dense, images) - predict(small, images)
                h = features.pop()
                folds.add(h[:, None], missing[:, None], torch.ones(len(h), 1, device=h.device))
        finally:
            hook.remove()
        return folds


def _classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """Find the classifier and its name."""
    found = getattr(model, "get_classifier", lambda: None)()
    name = next((name for name, module in model.named_modules() if module is found), "")
    if not is_linear(found):
        raise InputError(f"{type(model).__name__} has no linear classifier to refit: choose another recipe")
    return name, found

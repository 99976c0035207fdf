"""The model that is compressed: made once from the caller's, in the form that units are cut from, and asked by all."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.folding import fold_norms
from lowrank_vit.architectures.holder import held
from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.architectures.permanent import copied
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.modules import replacement_entries
from lowrank_vit.modules.counting import input_size, model_size, tokens_per_image
from lowrank_vit.modules.predicting import logits_of
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.gates.learnt_gates import LearntGates, with_mixers
from lowrank_vit.units.base import UNITS

logger = logging.getLogger(__name__)


def rewrite(model: nn.Module, recipe: Recipe, sites: str = BLOCK_LINEARS) -> nn.Module:
    """Return the model that the recipe's units are cut from; a copy where it differs from the given one."""
    kinds = [UNITS.get(kind) for kind in recipe.units] if sites == BLOCK_LINEARS else []
    steps = [kind.prepare for kind in kinds if kind.ahead]
    if recipe.folded:
        steps.insert(0, fold_norms)
    if not steps:
        return model
    model = copy.deepcopy(model)
    for step in steps:
        step(model)
    return model


@dataclass(frozen=True)
class Subject:
    """Hold a model in two forms that compute the same: as it was given (``dense``), and as units are cut from it.

    ``narrow``: the type of a model of less than 32 bits, in which the smaller one is returned; all before is computed in
    float32 at least. ``chosen``: whether the user has chosen the sites. ``home``: the device of the given model, to which
    the smaller one goes.
    """

    dense: nn.Module
    model: nn.Module
    narrow: torch.dtype | None = None
    chosen: bool = False
    home: torch.device | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        recipe: Recipe,
        sites: str = BLOCK_LINEARS,
        device: torch.device | None = None,
        learnt: LearntGates | None = None,
    ) -> "Subject":
        """Copy the caller's model, without what surrounds it and without its settings for training.

        ``device``: None leaves it where it is. Raises ``InputError`` for a model that was compressed already, and for one
        that cannot be copied.
        """
        home = next(model.parameters()).device
        own = canonical(copied(model)).to(device).eval()
        stop_checkpointing(own)
        check_dense(own)
        if name := held(own):
            inside, whole = type(own.get_submodule(name)).__name__, type(own).__name__
            logger.warning("the %s inside the %s (%s) is compressed as a backbone, and put back", inside, whole, name)
        narrow = _narrow(own)
        dense = own.float() if any(kind.itemsize < 4 for kind in _kinds(own)) else own
        start = dense if learnt is None else with_mixers(dense, learnt)
        return cls(dense, rewrite(start, recipe, sites), narrow, sites != BLOCK_LINEARS, home)

    def learn_size(self, images: Images) -> None:
        """Let a model that does not say what images it takes remember the size of these, as its smaller form will."""
        if input_size(self.dense) is not None or isinstance(images.batches, Iterator):
            return
        first = next(iter(images.each()), None)
        if first is not None and first.ndim == 4:
            for model in (self.dense, self.model):
                model.image_size = tuple(first.shape[-2:])  # type: ignore[assignment]  # as torchvision's ViT calls it

    @cached_property
    def outputs(self) -> tuple[Tensor, int] | None:
        """Return the outputs for a blank image, and how many further ones are left out; None where its size is not known."""
        size, like = input_size(self.dense), next(self.dense.parameters())
        try:
            with torch.no_grad():
                made = None if size is None else self.dense(torch.zeros(1, *size).to(like))
        except (RuntimeError, AssertionError):  # from whichever layer does not fit the size
            made = None
        if made is None:
            return None
        further = (
            [each for each in made[1:] if isinstance(each, Tensor) and each.ndim > 1] if isinstance(made, tuple) else []
        )
        return logits_of(made), len(further)

    @cached_property
    def size(self) -> tuple[int, int | None]:
        """Count the dense model's parameters and multiply-accumulates; the latter None where images' size is not known."""
        return model_size(self.dense)

    @property
    def cost(self) -> Cost:
        return Cost(self.size[0], self.size[1] or 0)

    def tokens(self, names: list[str]) -> dict[str, int]:
        """Count the tokens that layers see of an image; nothing where images' size is not known."""
        size = input_size(self.model)
        return {} if size is None else tokens_per_image(self.model, names, size)


def _kinds(model: nn.Module) -> list[torch.dtype]:
    return list(dict.fromkeys(each.dtype for each in model.parameters() if each.is_floating_point()))


def _narrow(model: nn.Module) -> torch.dtype | None:
    """Return the type of a model of less than 32 bits; None for another one, and for several types, which is told."""
    kinds = _kinds(model)
    if len(kinds) > 1:
        names = ", ".join(str(kind).removeprefix("torch.") for kind in kinds)
        logger.warning("the parameters are of several types (%s): the smaller model is float32, or wider", names)
        return None
    return kinds[0] if kinds[0].itemsize < 4 else None


def stop_checkpointing(model: nn.Module) -> None:
    """Run every block once in a forward and backward pass, in place: hooks would count what is computed again."""
    for module in model.modules():
        for name in ("grad_checkpointing", "gradient_checkpointing"):
            if getattr(module, name, False) is True:
                setattr(module, name, False)


def check_dense(model: nn.Module) -> None:
    """Raise ``InputError`` for a model that was compressed already: its factors are no layers of their own."""
    replaced = {name: model.get_submodule(name) for name in replacement_entries(model)}
    refused = [
        (name, type(each).__name__) for name, each in replaced.items() if not getattr(each, "compressible", False)
    ]
    if refused:
        name, kind = refused[0]
        raise InputError(
            f"the model has been compressed or quantised already ({name} is a {kind}): start from the dense model that it "
            "was made from"
        )

"""What gates learn on the way to a compression: on the calibration images, or before it, on labelled ones."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.permanent import make_permanent
from lowrank_vit.compression.arguments import check_model, check_options
from lowrank_vit.compression.case import Services
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.recipes import as_recipe
from lowrank_vit.compression.resume import identity
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.budgets import REMOVED, SHARE, Size, budget_of
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import INPUT, OUTPUT, ROW
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.processes import agreed, is_first
from lowrank_vit.stages.gates.learnt_gates import LearntGates
from lowrank_vit.units.base import Unit

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule


EPOCHS = 10  # of gates alone, on the calibration images


def learn(
    model: nn.Module,
    data_module: "LightningDataModule | Batches",
    recipe: str | Recipe,
    reduction: float = 0.5,
    **options: Any,
) -> LearntGates:
    """Train gates and weights of ``model`` in place on labelled images, for a recipe that is ``labelled``, such as ``vtp``.

    The result goes to ``compress`` with the trained model: ``compress(model, calibration, recipe, reduction, learnt=...)``;
    ``finetune`` may follow. ``reduction``: of all parameters, which some methods aim at while they train. ``options`` are
    those of ``learn_gates``: ``epochs``, ``lr``, ``teacher``, ``hardware``,
    ``checkpoint_dir``, ``loggers``, ``seed``, ``progress`` and others.
    Raises ``InputError`` for another recipe, for images without labels, and for bad settings.
    """
    from lowrank_vit.data.loading import as_data_module  # with Lightning
    from lowrank_vit.stages.gates.train_gates import GradualTraining, learn_gates

    check_model(model, data_module)
    check_options(options, learn, learn_gates, GradualTraining)
    recipe = as_recipe(recipe)
    if recipe.gradual is None or not recipe.labelled:
        raise InputError(f"recipe {recipe.name!r} learns nothing on labelled images: compress by it, then fine-tune")
    if options.get("teacher") is model:
        raise InputError("the teacher and the student are the same object: pass a separate dense model")
    data_module = as_data_module(data_module, options.get("hardware", ONE_PROCESS))
    return learn_gates(
        canonical(make_permanent(model)), recipe.gradual, data_module=data_module, target=1 - reduction, **options
    )


def target_share(model: nn.Module, size: Size) -> float:
    """Return the share of its cost that a size leaves; a half for an amount of anything but parameters."""
    budget, dense = budget_of(size), parameter_count(model)
    if budget.unit in (SHARE, REMOVED):
        return budget.limit(dense) / dense
    return min(1.0, budget.limit(dense) / dense) if budget.cost == PARAMETERS else 0.5


def gated(
    model: nn.Module,
    recipe: Recipe,
    units: Sequence[Unit],
    images: Images,
    moments: Mapping[str, Moments],
    learnt: LearntGates | None,
    target: float,
    services: Services,
) -> tuple[LearntGates, dict[str, Moments], Services]:
    """Return what gates have learnt, before or now, the statistics with their scores, and a store that depends on these.

    Raises ``InputError`` where the recipe learns on labelled images, and nothing learnt was given.
    """
    if learnt is None and recipe.labelled:
        raise InputError(
            f"recipe {recipe.name!r} learns on labelled images: call lowrank_vit.learn first, or choose its form for "
            "gates alone"
        )
    store = services.store
    with services.watch("learn"):
        learnt = learnt or gates_alone(model, recipe, images, target, replace(services, store=store.keyed_by(target)))
        scores = {name: _scores(name, layer, units, learnt) for name, layer in moments.items()}
        scored = {name: replace(layer, sums={**layer.sums, **scores[name]}) for name, layer in moments.items()}
    if store.folder is not None:
        services = replace(services, store=store.keyed_by(identity(model, scored)))
    return learnt, scored, services


def gates_alone(model: nn.Module, recipe: Recipe, images: Images, target: float, services: Services) -> LearntGates:
    """Train the gates of a copy towards the model, in the first process; all processes get what it has learnt."""
    from lowrank_vit.stages.gates.train_gates import learn_gates  # with Lightning

    method, data, device = recipe.gradual, images.tensor(), next(model.parameters()).device
    assert method is not None
    hardware = Hardware(accelerator="gpu" if device.type == "cuda" else device.type, precision="32-true")

    def train() -> LearntGates:
        options: dict[str, Any] = {"checkpoint_dir": services.store.place("gates")}
        options |= {"seed": services.seed, "progress": services.progress}
        options |= {"hardware": hardware, "objective": recipe.objective, "target": target, "epochs": EPOCHS}
        mine = learn_gates(copy.deepcopy(model), method, teacher=model, images=data, **options) if is_first() else None
        learnt = agreed(mine)
        assert learnt is not None
        return learnt

    return services.store("learn", train)


def _scores(name: str, layer: Moments, units: Sequence[Unit], learnt: LearntGates) -> dict[str, torch.Tensor]:
    """Return the scores of a layer's inputs, and outputs, under the statistics' names; nothing where it has no gates."""
    device, found = layer.sums["input_sum"].device, dict[str, torch.Tensor]()
    for unit in (each for each in units if name in [site.name for site in each.linears]):
        own = {
            part.removeprefix(f"{unit.name}."): scores
            for part, scores in learnt.scores.items()
            if part.startswith(f"{unit.name}.")
        }
        for part, scores in own.items():
            outputs, site = part in (OUTPUT, ROW), unit.linears[0 if part == INPUT else -1]
            if site.name != name:
                continue
            repeats = 1 if outputs else site.in_features // len(scores)
            statistic = "learnt_outputs" if outputs else "learnt"
            found[statistic] = scores.repeat_interleave(repeats).double().to(device)
        if not own:
            raise InputError(f"nothing was learnt about {unit.name}: learn with this model and this recipe")
    return found

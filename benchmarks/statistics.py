"""What calibration, the refit and a sweep cost, as ratios to a bare forward pass over the same images, on the CPU.

    python -m benchmarks.statistics [--model deit_small_patch16_224] [--images 48] [--recipes exact,best] [--json FILE]

Seconds are the process's CPU seconds, medians over rounds in which all steps take turns with the forward pass, so that
other work on the machine affects all alike. Costs that do not depend on the number of images are ratios to a forward pass
over ``--of`` images (1024, a calibration set). The floor counts multiply-accumulates: the forward pass, the backward
pass to the activations, and half of every second moment, as they are symmetric. Between the floor and the ratio:
products that are slower than the forward pass's ("products", measured alone, beside their share of the floor), and all
that multiplies nothing. Random images and weights: speed does not depend on them, but for the heads' ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

from benchmarks.output import show, write
from benchmarks.ratios import Run, macs, ratios, seconds
from lowrank_vit import (
    Analysis,
    OutputRefit,
    Recipe,
    analyse,
    calibrate,
    family_of,
    first_inputs,
    get_recipe,
)
from lowrank_vit.compression.find import find_units
from lowrank_vit.linalg.metric import gram_panels
from lowrank_vit.modules.counting import input_size
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import amount
from lowrank_vit.stages.calibrate.observe import needs_gradient, resolve
from lowrank_vit.stages.correct import output_refit as refit
from lowrank_vit.stages.correct.regression import Regression, cross_validated

SIZES = 20  # of a sweep
LIMITS = {"statistics of exact": 1.5, "statistics of best": 4.0, f"sweep of {SIZES}, exact": 1.1}


@dataclass(frozen=True)
class Row:
    """Hold a step's cost in forward passes, and how much of it cannot be avoided."""

    step: str
    ratio: float
    floor: float | None = None
    products: float | None = None
    products_floor: float | None = None
    bytes: int | None = None


def layers_of(model: nn.Module, recipe: Recipe) -> dict[Site, frozenset[str]]:
    """Return the statistics of every layer."""
    return {site: unit.needs()[site.name] for unit in find_units(model, recipe).units for site in unit.linears}


def moment_widths(needs: Mapping[Site, frozenset[str]]) -> Iterable[int]:
    """Yield the width of every second moment that is collected."""
    for site, wanted in needs.items():
        for statistic in resolve(wanted, site):
            if statistic.endswith(("input_second", "sensitive_second")):
                yield site.in_features
            elif statistic.endswith(("output_second", "gradient_second")):
                yield site.out_features


def backward(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Run a forward pass, and a backward pass to the activations of all blocks."""
    model.requires_grad_(False)
    hook = next(iter(family_of(model).steps(model).values())).register_forward_pre_hook(
        lambda module, inputs: (inputs[0].requires_grad_(),)
    )
    for images in batches:
        model(images).sum().backward()
    hook.remove()


class Bench:
    """Hold one model, some images, and the forward pass that every step is compared with."""

    def __init__(self, model: nn.Module, images: Tensor, batch: int, rounds: int, of: int) -> None:
        self.model, self.images, self.rounds, self.of = model, images, rounds, of
        self.moments: dict[str, Mapping[str, Moments]] = {}
        self.analysis: Analysis | None = None
        self.batches = list(images.split(batch))
        self.forward_macs = macs(lambda: model(images[:1]))
        with torch.inference_mode():
            (stream,) = first_inputs(model, next(iter(family_of(model).steps(model).values())), [images[:1]])
        self.tokens = stream.shape[1]

    def forward(self) -> None:
        """Run the bare forward pass."""
        with torch.inference_mode():
            for images in self.batches:
                self.model(images)

    def fixed(self, run: Run) -> float:
        """Return a cost that does not depend on the number of images, in forward passes over ``of`` images."""
        return seconds(run) / (seconds(self.forward) * self.of / len(self.images))

    def statistics(self, recipes: Iterable[Recipe]) -> list[Row]:
        """Measure the bare backward pass, and the statistics of each recipe."""
        layers = {recipe.name: layers_of(self.model, recipe) for recipe in recipes}
        runs: dict[str, Run] = {"forward and backward": partial(backward, self.model, self.batches)}
        widths = {width for needs in layers.values() for width in moment_widths(needs)}
        rows = {width: torch.randn(self.tokens * len(self.batches[0]), width) for width in widths}

        def collect(recipe: Recipe) -> None:
            needs = layers[recipe.name]
            named = {site.name: wanted for site, wanted in needs.items()}
            self.moments[recipe.name] = calibrate(
                self.model, list(needs), named, self.batches, objective=recipe.objective
            )

        def products(name: str) -> None:
            for width in moment_widths(layers[name]):
                for _ in self.batches:
                    gram_panels(rows[width])

        for recipe in recipes:
            runs[f"statistics of {recipe.name}"] = partial(collect, recipe)
            runs[recipe.name] = partial(products, recipe.name)
        measured = ratios(self.forward, runs, self.rounds)
        both = macs(partial(backward, self.model, [self.images[:1]])) / self.forward_macs
        table = [Row("forward", 1.0, 1.0), Row("forward and backward", measured["forward and backward"], both)]
        for recipe in recipes:
            needs, moments = layers[recipe.name], self.moments[recipe.name].values()
            least = sum(self.tokens * n * (n + 1) // 2 for n in moment_widths(needs)) / self.forward_macs
            passes = both if any(map(needs_gradient, needs.values())) else 1.0
            step, size = f"statistics of {recipe.name}", sum(t.nbytes for m in moments for t in m.sums.values())
            table.append(Row(step, measured[step], passes + least, measured[recipe.name], least, size))
        return table

    def sizes(self, name: str, statistics: float) -> list[Row]:
        """Measure what follows the statistics: the decomposition, one size, and a sweep of many, all without a refit."""
        recipe, moments = get_recipe(name).but(refit=False), self.moments[name]

        def decompose() -> None:
            self.analysis = analyse(
                self.model, self.batches, recipe, moments=moments, held_out=[self.images[:1]], device="cpu"
            )

        decomposition = self.fixed(decompose)
        assert self.analysis is not None
        first, *others = (self.fixed(partial(self.analysis.compress, share)) for share in (0.5, 0.3, 0.4, 0.5))
        one, size = statistics + decomposition + first, median(others)
        return [
            Row(f"decomposition of {name}", decomposition),
            Row(f"first size of {name}", first),
            Row(f"one more size of {name}", size),
            Row(f"sweep of {SIZES}, {name}", (one + (SIZES - 1) * size) / one),
        ]

    def refit(self, reduction: float) -> list[Row]:
        """Measure the refit of ``best``, after ``sizes("best", ...)``: what depends on the number of images, and the rest."""
        assert self.analysis is not None
        small, _ = self.analysis.compress(reduction)
        names = {site.linears[-1].name: get_linear(small, site.linears[-1]) for site in self.analysis.units}
        sums = {name: self.moments["best"][name].sums["sensitive_tokens"] for name in names}
        least, kept = self.forward_macs + macs(lambda: small(self.images[:1])), 0
        folds = []
        for layer in names.values():
            k, d = layer.in_features, layer.out_features
            least += self.tokens * (k * (k + 1) // 2 + 2 * k * d)  # the sums, and the product of the change
            kept = max(kept, 4 * self.tokens * self.of * (2 * d + k))
            rows = torch.randn(2 * k, k), torch.randn(2 * k, d), torch.ones(2 * k)
            folds.append([Regression.empty(k, d) for _ in range(OutputRefit.folds)])
            for fold in folds[-1]:
                fold.add(*rows)
        ridges = OutputRefit.ridges
        solve = self.fixed(lambda: [cross_validated(layer_folds, ridges) for layer_folds in folds])
        free = patch.object(refit, "cross_validated", lambda folds, ridges: (*folds[0].nothing(), ridges[0]))
        with free:  # on few images the solutions would dominate
            (streamed,) = ratios(
                self.forward, {"": partial(OutputRefit(), self.model, small, sums, self.batches)}, 1
            ).values()
        step = f"refit at -{100 * reduction:g} %"
        return [Row(step, streamed, least / self.forward_macs, bytes=kept), Row("its solutions", solve)]


HEADER = ("step", "ratio", "limit", "floor", "of it products", "products measured", "MiB")


def lines(rows: Iterable[Row]) -> list[list[str]]:
    """Return the cells of the table; a ratio above its limit is marked."""
    found = []
    for row in rows:
        limit = LIMITS.get(row.step)
        size = None if row.bytes is None else row.bytes / 2**20
        mark = "" if limit is None or row.ratio <= limit else " (!)"
        numbers = (limit, row.floor, row.products_floor, row.products, size)
        texts = ("" if number is None else f"{number:.2f}" for number in numbers)
        found.append([row.step, f"{row.ratio:.3f}{mark}", *texts])
    return found


def main() -> None:
    """Measure all steps and print the table."""
    parser = argparse.ArgumentParser(description="Cost of calibration, refit and sweep against a bare forward pass.")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--of", type=int, default=1024, help="images of a calibration set, for costs that do not depend on their number"
    )
    parser.add_argument("--recipes", default="exact,best", metavar="NAME,NAME...")
    parser.add_argument("--reduction", type=float, default=0.5, help="of the refit")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    recipes = [get_recipe(name) for name in args.recipes.split(",")]
    model = timm.create_model(args.model).eval()
    size = input_size(model)
    assert size is not None
    bench = Bench(model, torch.randn(args.images, *size), args.batch, args.rounds, args.of)
    rows = bench.statistics(recipes)
    for recipe in recipes:
        (ratio,) = (row.ratio for row in rows if row.step == f"statistics of {recipe.name}")
        rows += bench.sizes(recipe.name, ratio)
        rows += bench.refit(args.reduction) if recipe.refit else []
    title = f"{args.model}, {args.images} images, {amount(torch.get_num_threads(), 'thread')}: a bare forward pass is 1"
    show(title, HEADER, lines(rows))
    write(args.json, title, HEADER, lines(rows), {"model": args.model, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()

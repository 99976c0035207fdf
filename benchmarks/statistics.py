"""What calibration, the refit and a sweep cost, as ratios to a bare forward pass over the same images, on the CPU.

    python -m benchmarks.statistics [--model deit_small_patch16_224] [--images 48] [--recipes exact,best] [--json FILE]

Seconds are the process's CPU seconds, medians over rounds in which all steps take turns with the forward pass, so that
other work on the machine hits all alike. Costs that do not depend on the number of images are ratios to a forward pass
over ``--of`` images (1024, a calibration set). The floor counts multiply-accumulates: the forward pass, the backward
pass to the activations, and half of every second moment, as they are symmetric. Between the floor and the ratio:
products that are slower than the forward pass's ("products", measured alone, beside their share of the floor), and all
that multiplies nothing. Random images and weights: speed does not depend on them, but for the heads' ranks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import refit
from lowrank_vit.analysis import Analysis
from lowrank_vit.blocks import BlockAnalysis, needs_of
from lowrank_vit.calibrate import NEED_GRADIENT, calibrate, resolve
from lowrank_vit.cost import input_size
from lowrank_vit.files import write_json
from lowrank_vit.gram import gram_panels
from lowrank_vit.halves import find_halves
from lowrank_vit.pipeline import analyse
from lowrank_vit.recipes import Recipe, get_recipe
from lowrank_vit.records import Moments, Site
from lowrank_vit.refit import OutputRefit, Regression, cross_validated
from lowrank_vit.sites import find_sites, get_linear
from lowrank_vit.steps import statistics_needed
from lowrank_vit.streams import first_inputs, steps_of

SIZES = 20  # of a sweep
LIMITS = {"statistics of exact": 1.5, "statistics of best": 4.0, f"sweep of {SIZES}, exact": 1.1}
Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A step's cost in forward passes, and what of it cannot be avoided."""

    step: str
    ratio: float
    floor: float | None = None
    products: float | None = None
    products_floor: float | None = None
    bytes: int | None = None


def seconds(run: Run) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratios(forward: Run, runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """The median ratio of each to the forward pass right before it, after one round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            bare = seconds(forward)
            own = seconds(run) / bare
            found[name] += [own] if index else []
    return {name: median(own) for name, own in found.items()}


def macs(run: Run) -> int:
    """Multiply-accumulates of all products in a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def layers_of(model: nn.Module, recipe: Recipe) -> dict[Site, frozenset[str]]:
    """The statistics of every layer."""
    if not recipe.halves:
        return dict.fromkeys(find_sites(model), statistics_needed(recipe))
    halves = find_halves(model)
    needs = needs_of(recipe, halves)
    return {site: needs[site.name] for half in halves for site in half.linears}


def moment_widths(needs: Mapping[Site, frozenset[str]]) -> Iterable[int]:
    """The width of every second moment that is collected."""
    for site, wanted in needs.items():
        for statistic in resolve(wanted, site):
            if statistic.endswith(("input_second", "sensitive_second")):
                yield site.in_features
            elif statistic.endswith(("output_second", "gradient_second")):
                yield site.out_features


def backward(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """A forward and a backward pass to the activations of all blocks."""
    model.requires_grad_(False)
    hook = next(iter(steps_of(model).values())).register_forward_pre_hook(
        lambda module, inputs: (inputs[0].requires_grad_(),)
    )
    for images in batches:
        model(images).sum().backward()
    hook.remove()


class Bench:
    """One model, some images, and the forward pass that all is measured against."""

    def __init__(self, model: nn.Module, images: Tensor, batch: int, rounds: int, of: int) -> None:
        self.model, self.images, self.rounds, self.of = model, images, rounds, of
        self.moments: dict[str, Mapping[str, Moments]] = {}
        self.analysis: Analysis | BlockAnalysis | None = None
        self.batches = list(images.split(batch))
        self.forward_macs = macs(lambda: model(images[:1]))
        with torch.inference_mode():
            (stream,) = first_inputs(model, next(iter(steps_of(model).values())), [images[:1]])
        self.tokens = stream.shape[1]

    def forward(self) -> None:
        """The bare forward pass."""
        with torch.inference_mode():
            for part in self.batches:
                self.model(part)

    def fixed(self, run: Run) -> float:
        """A cost that does not depend on the number of images, in forward passes over ``of`` images."""
        return seconds(run) / (seconds(self.forward) * self.of / len(self.images))

    def statistics(self, recipes: Iterable[Recipe]) -> list[Row]:
        """The bare backward pass, and the statistics of each recipe."""
        layers = {recipe.name: layers_of(self.model, recipe) for recipe in recipes}
        runs: dict[str, Run] = {"forward and backward": partial(backward, self.model, self.batches)}
        widths = {width for needs in layers.values() for width in moment_widths(needs)}
        rows = {width: torch.randn(self.tokens * len(self.batches[0]), width) for width in widths}

        def collect(recipe: Recipe) -> None:
            needs = layers[recipe.name]
            named = {site.name: own for site, own in needs.items()}
            self.moments[recipe.name] = calibrate(self.model, list(needs), named, self.batches, probe=recipe.probe)

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
            needs, own = layers[recipe.name], self.moments[recipe.name].values()
            least = sum(self.tokens * n * (n + 1) // 2 for n in moment_widths(needs)) / self.forward_macs
            passes = both if any(wanted & NEED_GRADIENT for wanted in needs.values()) else 1.0
            step, size = f"statistics of {recipe.name}", sum(t.nbytes for m in own for t in m.sums.values())
            table.append(Row(step, measured[step], passes + least, measured[recipe.name], least, size))
        return table

    def sizes(self, name: str, statistics: float) -> list[Row]:
        """What comes after the statistics: the decomposition, one size, and a sweep of many, all without a refit."""
        recipe, found = get_recipe(name).but(refit=False), self.moments[name]

        def decompose() -> None:
            self.analysis = analyse(
                self.model, self.batches, recipe, moments=found, held_out=[self.images[:1]], device="cpu"
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
        """The refit of ``best``, after ``sizes("best", ...)``: what goes by images, and what does not."""
        assert isinstance(self.analysis, BlockAnalysis)
        small, _ = self.analysis.compress(reduction)
        names = {site.linears[-1].name: get_linear(small, site.linears[-1]) for site in self.analysis.sites}
        sums = {name: self.moments["best"][name].sums["sensitive_tokens"] for name in names}
        least, kept = self.forward_macs + macs(lambda: small(self.images[:1])), 0
        folds = []
        for layer in names.values():
            k, d = layer.in_features, layer.out_features
            least += self.tokens * (k * (k + 1) // 2 + 2 * k * d)  # the sums, and what the change adds
            kept = max(kept, 4 * self.tokens * self.of * (2 * d + k))
            rows = torch.randn(2 * k, k), torch.randn(2 * k, d), torch.ones(2 * k)
            folds.append([Regression.empty(k, d) for _ in range(OutputRefit.folds)])
            for fold in folds[-1]:
                fold.add(*rows)
        ridges = OutputRefit.ridges
        solve = self.fixed(lambda: [cross_validated(own, ridges) for own in folds])
        free = patch.object(refit, "cross_validated", lambda own, ridges: (*own[0].nothing(), ridges[0]))
        with free:  # on few images the solutions would be most of it
            (streamed,) = ratios(
                self.forward, {"": partial(OutputRefit(), self.model, small, sums, self.batches)}, 1
            ).values()
        step = f"refit at -{100 * reduction:g} %"
        return [Row(step, streamed, least / self.forward_macs, bytes=kept), Row("its solutions", solve)]


def show(title: str, rows: Iterable[Row]) -> None:
    """Print the table; a ratio above its limit is in red."""
    table = Table(title=title)
    for column in ("step", "ratio", "limit", "floor", "of it products", "products measured", "MiB"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        limit = LIMITS.get(row.step)
        size = None if row.bytes is None else row.bytes / 2**20
        ratio = f"{row.ratio:.3f}" if limit is None or row.ratio <= limit else f"[red]{row.ratio:.3f}[/red]"
        numbers = (limit, row.floor, row.products_floor, row.products, size)
        table.add_row(row.step, ratio, *("" if number is None else f"{number:.2f}" for number in numbers))
    Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of calibration, refit and sweep against a bare forward pass.")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--of", type=int, default=1024, help="images of a calibration set, for what does not go by images"
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
    threads = torch.get_num_threads()
    show(f"{args.model}, {args.images} images, {threads} threads: a bare forward pass is 1", rows)
    if args.json:
        write_json(args.json, {"model": args.model, "threads": threads, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()

"""What the calibration statistics of each recipe cost, as a ratio to a bare forward pass over the same images.

    python -m benchmarks.statistics [--model deit_small_patch16_224] [--images 64] [--json FILE]

The floor is one forward pass (for gradients, one forward and one backward pass); what is above it is the products of
the second moments, whose multiply-accumulates are printed beside. Random images and weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lowrank_vit.calibrate import NEED_GRADIENT, calibrate, resolve
from lowrank_vit.cost import input_size, multiply_accumulates
from lowrank_vit.files import write_json
from lowrank_vit.recipes import RECIPES
from lowrank_vit.records import Moments, Site
from lowrank_vit.sites import find_sites
from lowrank_vit.steps import statistics_needed


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """The median of ``repeats`` timed runs after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[repeats // 2]


def product_macs(sites: list[Site], moments: Mapping[str, Moments], needs: frozenset[str]) -> int:
    """Multiply-accumulates of the second moments of one image."""
    total = 0
    for site in sites:
        tokens = moments[site.name].tokens // moments[site.name].images
        for statistic in resolve(needs, site):
            if statistic.endswith("input_second"):
                total += tokens * site.in_features**2
            elif statistic.endswith(("output_second", "gradient_second")):
                total += tokens * site.out_features**2
    return total


def measure(model: nn.Module, images: Tensor, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each distinct set of statistics."""
    sites, size = find_sites(model), input_size(model)
    assert size is not None

    def forward() -> None:
        with torch.inference_mode():
            for part in images.split(batch):
                model(part)

    bare = median_seconds(forward, repeats)
    floor = multiply_accumulates(model, size)
    rows = []
    for name, recipe in RECIPES.items():
        if recipe.halves:
            continue  # its statistics differ from layer to layer
        needs = statistics_needed(recipe)
        collect = partial(calibrate, model, sites, needs)
        seconds = median_seconds(lambda: collect(images.split(batch)), repeats)  # noqa: B023 (called at once)
        rows.append(
            {
                "recipe": name,
                "backward": bool(needs & NEED_GRADIENT),
                "seconds": seconds,
                "ratio_to_forward": seconds / bare,
                "forward_macs": floor,
                "product_macs": product_macs(sites, collect([images[:1]]), needs),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of the calibration statistics against a bare forward pass.")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = timm.create_model(args.model).eval()
    size = input_size(model)
    assert size is not None
    rows = measure(model, torch.randn(args.images, *size), args.batch, args.repeats)
    table = Table(
        title=f"{args.model}, {args.images} images, {torch.get_num_threads()} threads: a bare forward pass is 1"
    )
    for column in ("recipe", "backward", "ratio", "products / forward MACs"):
        table.add_column(column)
    for row in rows:
        share = row["product_macs"] / row["forward_macs"]
        table.add_row(
            row["recipe"], "yes" if row["backward"] else "no", f"{row['ratio_to_forward']:.2f}", f"{share:.2f}"
        )
    Console().print(table)
    if args.json:
        write_json(args.json, {"model": args.model, "rows": rows})


if __name__ == "__main__":
    main()

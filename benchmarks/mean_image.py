"""What the paper's mean image (6) leaves out of every layer: the figures of the README's section on the recipe ``paper``.

    python -m benchmarks.mean_image --model deit_tiny_patch16_224 --checkpoint FILE --data imagefolder:PATH --reduction 0.4

For each layer at the rank that Algorithm 1 gives it, before Z: the cap, the share of the input's energy that the mean
image holds, the loss in the paper's own objective, the true relative error, the least error that any factors of that
rank can have (whitened), and the error that is left at the cap.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from timm.data import resolve_model_data_config

from lowrank_vit.analysis import Analysis
from lowrank_vit.data import ImageData
from lowrank_vit.decompose.whitened import Whitened
from lowrank_vit.metric import output_metric
from lowrank_vit.models import load_model
from lowrank_vit.pipeline import analyse
from lowrank_vit.records import Site
from lowrank_vit.steps import Images, dense_weight

COLUMNS = ("layer", "cap", "rank", "mean image %", "objective %", "true error %", "whitened %", "at the cap %")


def layer_row(analysis: Analysis, site: Site, rank: int | None) -> list[str]:
    """The figures of one layer; a dense one has lost nothing."""
    weight, moments = dense_weight(analysis.model, site), analysis.moments[site.name]
    factors = analysis.factors[site.name]
    mean_image = moments.mean("representative")
    share = mean_image.square().sum() / len(mean_image) / moments.mean("input_second").trace()
    errors = output_metric(weight, moments, centred=False).error_curve(factors)
    best = Whitened()(weight, moments).loss
    figures = [float(share)]
    if rank is not None:
        figures += [float(factors.loss[rank]), float(errors[rank]), float(best[rank]), float(errors[-1])]
    cells = [site.name, str(factors.cap), "dense" if rank is None else str(rank)]
    return cells + [f"{100 * figure:.2f}" for figure in figures]


def main() -> None:
    """Analyse and print."""
    parser = argparse.ArgumentParser(description="What the paper's mean image leaves out of every layer.")
    parser.add_argument("--model", default="digits_deit_base")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", default="digits", metavar="SPEC")
    parser.add_argument("--reduction", type=float, default=0.4)
    args = parser.parse_args()
    model = load_model(args.model, args.checkpoint)
    data = ImageData(args.data, resolve_model_data_config(model))
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
    analysis = analyse(model, images, "paper", progress=True)
    assert isinstance(analysis, Analysis)
    ranks = analysis.plan(args.reduction).ranks
    table = Table(title=f"{args.model}, {100 * args.reduction:g} % fewer parameters, before Z")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=column == "layer")
    for site in analysis.sites:
        table.add_row(*layer_row(analysis, site, ranks[site.name]))
    Console().print(table)


if __name__ == "__main__":
    main()

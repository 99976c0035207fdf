"""What the paper's mean image (6) leaves out of every layer: the figures of the README's section on the recipe ``paper``.

    python -m benchmarks.mean_image --model deit_tiny_patch16_224 --checkpoint FILE --data imagefolder:PATH --reduction 0.4

For each layer at the rank that Algorithm 1 gives it, before Z: the cap, the share of the input's energy that the mean image
holds, the loss in the paper's own objective, the true relative error, the least error that any factors of that rank can
have (whitened), and the error that is left at the cap. The paper is read word by word; ``--as-recipe`` reads it as the
recipe ``paper`` does, whose losses count what the mean image cannot see.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from timm.data import resolve_model_data_config

from benchmarks.output import show, write
from lowrank_vit import analyse, get_recipe
from lowrank_vit.data import ImageData
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.methods.svd_llm import Whitened
from lowrank_vit.models import load_model
from lowrank_vit.records.images import Images
from lowrank_vit.units.linear import DecomposedLinear

COLUMNS = ("layer", "cap", "rank", "mean image %", "objective %", "true error %", "whitened %", "at the cap %")
LITERAL = {"decomposition.unseen": False, "allocator.start": "dense"}  # the paper, word by word


def layer_row(decomposed: DecomposedLinear, rank: int | None) -> list[str]:
    """Return the figures of one layer; a dense one has lost nothing."""
    weight, moments, factors = decomposed.weight, decomposed.moments[decomposed.unit.name], decomposed.found
    mean_image = moments.mean("representative")
    share = mean_image.square().sum() / len(mean_image) / moments.mean("input_second").trace()
    errors = output_metric(weight, moments, centred=False).error_curve(factors)
    best = Whitened()(weight, moments).loss
    figures = [float(share)]
    if rank is not None:
        figures += [
            float(factors.loss[rank] - factors.loss[-1]),
            float(errors[rank]),
            float(best[rank]),
            float(errors[-1]),
        ]
    cells = [decomposed.unit.name, str(factors.cap), "dense" if rank is None else str(rank)]
    return cells + [f"{100 * figure:.2f}" for figure in figures]


def main() -> None:
    """Analyse a model and print the figures."""
    parser = argparse.ArgumentParser(description="What the paper's mean image leaves out of every layer.")
    parser.add_argument("--model", default="digits_deit_base")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", default="digits", metavar="SPEC")
    parser.add_argument("--reduction", type=float, default=0.4)
    parser.add_argument("--calibration-samples", type=int, default=1024)
    parser.add_argument("--as-recipe", action="store_true", help="the recipe's losses, not the literal ones")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_model(args.model, args.checkpoint)
    data = ImageData(
        args.data, resolve_model_data_config(model), calibration_samples=args.calibration_samples, held_out_samples=0
    )
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
    recipe = get_recipe("paper") if args.as_recipe else get_recipe("paper").but(**LITERAL)
    analysis = analyse(model, images, recipe, progress=True)
    ranks = analysis.plan(args.reduction).ranks
    title = f"{args.model}, {100 * args.reduction:g} % fewer parameters, before Z"
    layers = [each for each in analysis.decomposed if isinstance(each, DecomposedLinear)]
    rows = [layer_row(each, ranks[each.unit.name]) for each in layers]
    show(title, COLUMNS, rows)
    write(args.json, title, COLUMNS, rows, {"ranks": ranks, "calibration": data.calibration_record})


if __name__ == "__main__":
    main()

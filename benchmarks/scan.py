"""What scans cost on real shapes: dense, averaged as VMeanba is written, left out, and left out with the rest compressed.

    python -m benchmarks.scan --model vmamba_tiny_s1l8 --batches 1,8 --reduction 0.4 --json FILE

Times depend on shapes, not on weights, so the weights are random and so are the images. Every scan is replaced. All models
run in turns; times are medians, with quartiles. ``--clock cpu`` counts the processor's time, on a machine that others use.
"""

import argparse
from pathlib import Path

import timm
import torch
from torch import nn

from benchmarks.output import show, write
from lowrank_vit import MeanScan, Setting, benchmark, compress, get_recipe, mean_scan
from lowrank_vit.models import VMAMBAS
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.errors import amount
from lowrank_vit.runtime.progress import say

COLUMNS = ("model", "batch", "ms", "quartiles", "speed-up", "quartiles", "params M", "MACs M", "scans M")
KINDS = {"as written": MeanScan(), "left out": MeanScan(mode="left_out")}


def models(dense: nn.Module, recipe: str, reduction: float, images: torch.Tensor) -> dict[str, nn.Module]:
    """Make all forms of a model."""
    made, every = {"dense": dense}, sum(name.endswith("op.scan") for name, _ in dense.named_modules())
    for name, method in KINDS.items():
        made[name], _ = mean_scan(dense, [images[:1]], layers=every, method=method, device="cpu")
    if reduction:
        quick = get_recipe(recipe).but(measured=0, refit=False)  # neither changes a shape by much, and both take long
        small, _ = compress(made["left out"], Images(images.split(1)), quick, reduction, device="cpu", progress=True)
        made[f"left out, {recipe} -{100 * reduction:g} %"] = small
    return made


def main() -> None:
    """Time all forms in turns."""
    parser = argparse.ArgumentParser(description="What scans cost on real shapes.")
    parser.add_argument("--model", default="vmamba_tiny_s1l8", choices=VMAMBAS)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--reduction", type=float, default=0.4, help="of what is left; 0: none")
    parser.add_argument("--recipe", default="best", help="by which the rest is compressed")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, for each batch size")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    dense = timm.create_model(args.model).eval().requires_grad_(False)
    made = models(dense, args.recipe, args.reduction, torch.randn(4, 3, 224, 224))
    say(f"{len(made)} models are made")
    settings = [Setting("cpu", "float32", "eager", int(batch)) for batch in args.batches.split(",")]
    found = benchmark(made, settings, seconds=args.seconds, clock=args.clock, progress=True)
    rows = []
    for row in found["rows"]:
        for name in made:
            one = row[name]
            low, high = (f"{1e3 * value:.0f}" for value in one["seconds_quartiles"])
            fast = [1.0, 1.0, 1.0] if name == "dense" else [one["speedup"], *one["speedup_quartiles"]]
            size = (found["params"][name], found["macs"][name], found["scans"][name])
            times = (f"{1e3 * one['seconds']:.0f}", f"{low}-{high}", f"{fast[0]:.2f}", f"{fast[1]:.2f}-{fast[2]:.2f}")
            rows.append([name, str(row["batch"]), *times, *(f"{count / 1e6:.1f}" for count in size)])
    title = f"{args.model}, 224 px, {amount(found['threads'], 'thread')}, {args.clock} clock, random weights"
    show(title, COLUMNS, rows)
    write(args.json, title, COLUMNS, rows, found)


if __name__ == "__main__":
    main()

"""Two thin products in one launch of a GPU, beside two launches: layers of DeiT in bfloat16, image by image.

    python -m benchmarks.pairs --batches 1,2 --json pairs.json

Each way is timed as torch launches it, and as a CUDA graph replays it, which leaves the launches out; the ratio is the
time of two launches over that of one. It needs a CUDA device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.output import show, write
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.export.fused_pairs import MOST_RANK

TOKENS = 197
WIDTHS = {"DeiT-T": 192, "DeiT-S": 384, "DeiT-B": 768}
LAYERS = {"qkv": (1, 3), "proj": (1, 1), "fc1": (1, 4), "fc2": (4, 1)}  # inputs and outputs, in widths
COLUMNS = ("layer", "batch", "rank", "launched: two us", "one us", "ratio", "replayed: two us", "one us", "ratio")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Two thin products in one launch, beside two launches.")
    parser.add_argument("--batches", default="1,2", help="images at a time")
    parser.add_argument("--share", type=float, default=0.5, help="of a layer's weights that its factors keep")
    parser.add_argument("--multiple", type=int, default=16, help="of the ranks")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def line(name: str, batch: int, inputs: int, outputs: int, rank: int) -> list[str]:
    """Time one layer both ways."""
    from triton.testing import do_bench, do_bench_cudagraph

    from lowrank_vit.stages.export.pair_kernel import pair

    sizes = [(batch * TOKENS, inputs), (rank, inputs), (outputs, rank), (outputs,)]
    x, down, up, bias = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes)
    ways = (lambda: F.linear(F.linear(x, down), up, bias), lambda: pair(x, down, up, bias))
    shown = [name, str(batch), str(rank)]
    for timed in (do_bench, do_bench_cudagraph):
        two, one = (1e3 * float(timed(way, return_mode="median")) for way in ways)
        shown += [f"{two:.1f}", f"{one:.1f}", f"{two / one:.2f}"]
    return shown


def main() -> None:
    """Time every layer at every batch, and print the table."""
    args = arguments()
    if not torch.cuda.is_available():
        sys.exit("error: this needs a CUDA device")
    cases = []
    for model, width in WIDTHS.items():
        for layer, (before, after) in LAYERS.items():
            inputs, outputs = before * width, after * width
            rank = int(args.share * inputs * outputs / (inputs + outputs)) // args.multiple * args.multiple
            if rank <= MOST_RANK:
                cases += [(f"{model} {layer}", int(batch), inputs, outputs, rank) for batch in args.batches.split(",")]
    rows = [line(*case) for case in track(cases, "benchmark", shown=True)]
    title = f"pairs of thin products in bfloat16, {torch.cuda.get_device_name()}"
    show(title, COLUMNS, rows)
    write(args.json, title, COLUMNS, rows, {"share": args.share})


if __name__ == "__main__":
    main()

"""A budget in time: the time that sizes were chosen for, the time that their prices add up to, and the time measured.

    python -m benchmarks.latency --model deit_tiny_patch16_224 --checkpoint FILE --data imagefolder:PATH --threads 1,2

Sizes are priced by the times of modules on this machine, which are measured once and kept; the model of these sizes and the
dense one are then timed in turns. Times of an earlier run are not read. It asks for a quiet machine.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config

from benchmarks.output import show, write
from lowrank_vit import analyse
from lowrank_vit.data import ImageData
from lowrank_vit.models import load_model
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.progress import say

COLUMNS = ("budget", "threads", "batch", "dense ms", "asked ms", "predicted ms", "measured ms", "off by %")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Budgets in time, predicted and measured.")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--shares", default="0.6,0.5", help="of the dense model's time that may remain")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--calibration-samples", type=int, default=128)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def line(entry: dict[str, Any]) -> list[str]:
    """Write the result of one budget; times are in nanoseconds."""
    times = [f"{entry[name] / 1e6:.1f}" for name in ("dense", "limit", "predicted", "counted")]
    off = 100 * (entry["counted"] / entry["limit"] - 1)
    where = entry["where"]
    return [entry["asked"], str(where["threads"]), str(where["batch"]), *times, f"{off:+.1f}"]


def main() -> None:
    """Choose sizes for all budgets, with a cache of its own for the times of modules."""
    args = arguments()
    dense = load_model(args.model, args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOWRANK_VIT_CACHE"] = folder
        run(args, dense)


def run(args: argparse.Namespace, dense: Any) -> None:
    """Calibrate once, choose the sizes and print the table."""
    config, samples = resolve_model_data_config(dense), args.calibration_samples
    data = ImageData(args.data, config, calibration_samples=samples, held_out_samples=0)
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
    first = analyse(dense, images, args.recipe, progress=True)
    entries: list[dict[str, Any]] = []
    for threads in (int(count) for count in args.threads.split(",")):
        torch.set_num_threads(threads)
        for batch in (int(count) for count in args.batches.split(",")):
            analysis = replace(first, batch_size=batch)
            for share in args.shares.split(","):
                entry: Any = analysis.plan(f"latency={share}").budget
                entries.append(entry)
                say(" ".join(line(entry)))
    rows = [line(entry) for entry in entries]
    title = f"{args.model}, {args.recipe} within a share of the dense model's time"
    show(title, COLUMNS, rows)
    write(args.json, title, COLUMNS, rows, {"entries": entries, "calibration": data.calibration_record})


if __name__ == "__main__":
    main()

"""Exported files in float, in 8-bit and in 4-bit integers: bytes, accuracy and speed of a dense and a compressed model.

    python -m benchmarks.integers --model deit_tiny_patch16_224 --checkpoint FILE --data imagefolder:PATH --clock cpu

All files take turns in onnxruntime, on as many threads as torch has; a speed-up is over the dense model's 8-bit file. Ranges
and the compression use the same calibration images; top-1 is of validation images, ± its standard error.
``--rank-multiple`` rounds sizes to what a processor multiplies well.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from benchmarks.output import show, write
from experiments.report.formats import number
from experiments.report.uncertainty import standard_error
from lowrank_vit import compress, get_recipe
from lowrank_vit.compression.exported_files import compare_files
from lowrank_vit.data import ImageData
from lowrank_vit.models import load_model
from lowrank_vit.modules.counting import input_size
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.progress import say
from lowrank_vit.stages.export.export import export
from lowrank_vit.stages.export.integers import export_integers

FIRST = "dense, int8"  # which the others are compared with
RANGES = 128  # images that ranges of activations are calibrated on


def files(models: dict[str, nn.Module], images: Images, folder: Path) -> dict[str, tuple[Path, str]]:
    """Write all files; return, by name, their paths and how many products stay in float. ``FIRST`` is the first name."""
    batches = list(images.tensor()[:RANGES].split(16))
    made: dict[str, tuple[Path, str]] = {}
    for name, model in models.items():
        for form, bits in (("int8", 8), ("float", None), ("int4", 4)):
            path, kept = folder / f"{len(made)}.onnx", ""
            if bits is None:
                export(model, path, "onnx")
            else:
                kept = str(len(export_integers(model, path, bits, batches, progress=True).kept))
            made[f"{name}, {form}"] = (path, kept)
    return made


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Exported files in float and in integers.")
    parser.add_argument("--model", default="digits_deit_small")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", default="digits", metavar="SPEC")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--reduction", type=float, default=0.5)
    parser.add_argument("--rank-multiple", type=int, default=1)
    parser.add_argument("--calibration-samples", type=int, default=256)
    parser.add_argument("--limit", type=int, help="of the validation images (default: all)")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--seconds", type=float, default=40.0, help="of timing, for each batch size")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def line(name: str, kept: str, row: dict[str, Any]) -> list[str]:
    """Write what was found of a file."""
    top1 = number(row["top1"], standard_error(row["top1"], row["n"]), digits=1)
    cells = [name, f"{row['bytes'] / 2**20:.2f}", top1, kept]
    for one in row["times"].values():
        low, high = one["speedup_quartiles"]
        cells += [f"{1e3 * one['seconds']:.1f}", f"{one['speedup']:.2f} ({low:.2f}-{high:.2f})"]
    return cells


def main() -> None:
    """Compress, export, time and print the table."""
    args = arguments()
    dense: Any = load_model(args.model, args.checkpoint)
    config, samples = resolve_model_data_config(dense), args.calibration_samples
    data = ImageData(args.data, config, calibration_samples=samples, held_out_samples=0, limit=args.limit)
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
    recipe = get_recipe(args.recipe).but(rank_multiple=args.rank_multiple)
    small, _ = compress(dense, images, recipe, args.reduction, progress=True)
    multiple = f" in multiples of {args.rank_multiple}" if args.rank_multiple > 1 else ""
    models = {"dense": dense, f"{args.recipe} -{100 * args.reduction:g} %{multiple}": small}
    size, batches = input_size(dense), [int(batch) for batch in args.batches.split(",")]
    assert size is not None
    with tempfile.TemporaryDirectory() as folder:
        made = files(models, images, Path(folder))
        say(f"{len(made)} files are written")
        options: dict[str, Any] = {"seconds": args.seconds, "clock": args.clock, "labelled": data.val_dataloader()}
        found = compare_files([path for path, _ in made.values()], size, batches, **options)
    rows = [line(name, kept, row) for (name, (_, kept)), row in zip(made.items(), found, strict=True)]
    columns = ["file", "MiB", "top-1 %", "kept float", *(f"{kind} {n}" for n in batches for kind in ("ms", "speed-up"))]
    title = f"{args.model} in onnxruntime, {args.clock} clock, {found[0]['n']} validation images, by {FIRST}"
    show(title, columns, rows)
    for row, name in zip(found, made, strict=True):
        row["file"] = name
    write(args.json, title, columns, rows, {"rows": found, "calibration": data.calibration_record})


if __name__ == "__main__":
    main()

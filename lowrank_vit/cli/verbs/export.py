"""``export``: write a folder's model to a file that runs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lowrank_vit.runtime.errors import InputError


def add_parser(verbs: Any) -> None:
    """Add the verb and its arguments."""
    parser = verbs.add_parser("export", help="write a model for onnxruntime or torch.export, and check the file")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--format", choices=("onnx", "torch-export"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export a folder's model; the file is compared with the model before it gets its name."""
    from lowrank_vit.cli.view import mebibytes
    from lowrank_vit.stages.export.formats import check_onnx, export
    from lowrank_vit.storage import folder as storage

    if args.out.exists():
        raise InputError(f"{args.out} exists already: choose another --out")
    storage.check_free(args.out)
    if args.format == "onnx":
        check_onnx()
    differences = export(storage.load(args.folder), args.out, args.format)
    shown = ", ".join(f"{difference:.1e} at batch {batch}" for batch, difference in differences.items())
    print(f"largest difference of a logit from the model in torch: {shown}")
    print(f"{mebibytes(args.out.stat().st_size)}, any batch size; saved to {args.out}")

"""What several verbs ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from lowrank_vit.data import ImageData


def add_model(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """``--model`` and ``--checkpoint``."""
    parser.add_argument("--model", required=required, metavar="TIMM_NAME", help="a timm model, or an embedded stand-in")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="its weights, .safetensors (default: timm's hub)"
    )


def natural(text: str) -> int:
    """A whole number from 0 to 2^32 - 1, as random generators and counts take it."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to {2**32 - 1}")
    return number


def chosen_model(args: argparse.Namespace) -> nn.Module:
    """The model that DIR or ``--model`` names. Raises ``InputError`` unless it is exactly one of them."""
    from lowrank_vit import storage
    from lowrank_vit.models import load_model

    if (args.folder is None) == (args.model is None):
        raise InputError("give either DIR or --model TIMM_NAME")
    return storage.load(args.folder) if args.folder else load_model(args.model, args.checkpoint)


def lightning_accelerator(args: argparse.Namespace) -> str:
    """Lightning's name of ``--device``. Raises ``InputError`` for a device that is not there."""
    from lowrank_vit.steps import resolve_device

    device = resolve_device(args.device)
    return "gpu" if device.type == "cuda" else device.type


def add_data(parser: argparse.ArgumentParser) -> None:
    """``--data`` and how it is read."""
    parser.add_argument(
        "--data", required=True, metavar="SPEC", help="digits | imagefolder:PATH | parquet:PATH | arrow:PATH | hf:NAME"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=natural, help="processes that read images (default: by the data)")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument(
        "--devices",
        type=int,
        help="processes that share the work, a GPU each (default: as torchrun or srun started, or 1)",
    )


def image_data(args: argparse.Namespace, model: nn.Module, **options: Any) -> ImageData:
    """The images that ``--data`` names, as ``model`` wants them. Raises ``InputError`` for a bad specification."""
    from timm.data import resolve_model_data_config

    from lowrank_vit.data import ImageData

    return ImageData(
        args.data,
        resolve_model_data_config(model),
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        **options,
    )

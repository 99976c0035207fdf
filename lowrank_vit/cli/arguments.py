"""Arguments that several verbs share, and what they stand for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from lowrank_vit.data import ImageData
    from lowrank_vit.records.images import Images
    from lowrank_vit.runtime.hardware import Hardware


FOLDER = "the folder of a compressed model, hf_hub:OWNER/NAME, or deit_tiny_4mib, which comes with the package"
SHARE = "a share between 0 and 1, such as 0.4 for 40 %"


def natural(text: str) -> int:
    """Read a whole number from 0 to 2^32 - 1, the range of seeds and counts."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to {2**32 - 1}")
    return number


SHARED: dict[str, dict[str, Any]] = {  # options of several verbs
    "--class-order": {
        "metavar": "ORDER",
        "help": "order of the class names: natural, text, or a file with one name a line (default: wnids and numbers as they "
        "are, others as text)",
    },
    "--budget": {
        "metavar": "COST=VALUE[,VALUE...]",
        "help": "what may remain of params, macs, bytes or latency: a share of the dense model's, as in macs=0.5, or an "
        "amount, as in bytes=6MiB or latency=12ms (of --batch-size images on --device); several sizes go to folders of their "
        "own; COST=VALUE,COST=VALUE is one size within both",
    },
    "--sites": {"metavar": "REGEX", "help": "compress the linear layers whose names match (default: all in blocks)"},
    "--compile": {"action": "store_true", "help": "measure a budget in time on the model as torch.compile runs it"},
    "--runtime": {
        "choices": ("torch", "compile", "onnxruntime", "openvino"),
        "default": "torch",
        "help": "what will run the model, for a budget in time",
    },
    "--recipe": {"default": "best", "help": "see `list recipes`"},
    "--json": {"action": "store_true", "help": "print one JSON object"},
    "--seed": {"type": natural, "default": 0, "help": "seed of all random choices"},
    "--device": {"default": "auto", "help": "auto | cpu | cuda"},
}


def add(parser: argparse._ActionsContainer, *options: str) -> None:
    """Add options that several verbs share."""
    for option in options:
        parser.add_argument(option, **SHARED[option])


def add_folder(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add DIR, the folder of a compressed model; ``optional`` where ``--model`` can take its place."""
    text = f"{FOLDER} (or give --model)" if optional else FOLDER
    parser.add_argument("folder", nargs="?" if optional else None, type=Path, metavar="DIR", help=text)


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, the folder of the new model."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.set_defaults(check=check_out)


def check_out(args: argparse.Namespace) -> None:
    """Raise ``InputError`` unless ``--out`` is free, before PyTorch is imported."""
    from lowrank_vit.storage.contents import check_free

    resumed = ", or --resume to keep a finished model" if "resume" in args else ""
    check_free(args.out, f"choose another --out{resumed}")


def add_model(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add ``--model``, ``--checkpoint``, and the arguments that the model was made with."""
    group = parser.add_argument_group("the dense model")
    group.add_argument(
        "--model",
        required=required,
        metavar="NAME",
        help="a timm model, hf_hub:OWNER/NAME, hf:OWNER/NAME of transformers, or an embedded stand-in",
    )
    add_dense_weights(group)
    group.add_argument(
        "--num-classes", type=natural, help="classes of the model (default: as many as the checkpoint has)"
    )
    group.add_argument(
        "--img-size", type=natural, metavar="PIXELS", help="image size of the model (default: the checkpoint's)"
    )
    group.add_argument(
        "--model-args",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another argument of timm.create_model, its value in JSON; can be repeated",
    )


def add_dense_weights(parser: argparse._ActionsContainer, *older: str) -> None:
    """Add ``--checkpoint``, the weights of the dense model, in every verb; ``older``: other names that it has had there."""
    parser.add_argument(
        "--checkpoint",
        *older,
        type=Path,
        metavar="FILE",
        help="the dense model's weights, a .safetensors, .pth, .pt, .ckpt or .bin file; FILE#ENTRY where it holds several, "
        "as of a moving average (default: fetched from the hub)",
    )


class BesideDense(argparse.Action):
    """Ask for the dense model beside a folder's: ``--dense``, or as it was, ``--dense FILE``, with its ``--checkpoint``."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        args.dense = True
        if values is not None:
            args.checkpoint = Path(values)


def key_value(text: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE``; a value that is no JSON is text."""
    key, equals, value = text.partition("=")
    if not key.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def given_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that were given."""
    named = {"num_classes": args.num_classes, "img_size": args.img_size}
    return dict(args.model_args) | {name: value for name, value in named.items() if value is not None}


def chosen_model(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Load the model that DIR or ``--model`` names, with the arguments to save with what is made of it.

    Raises ``InputError`` unless exactly one of them is given.
    """
    check_one_model(args)
    if args.folder is None:
        return named_model(args)
    from lowrank_vit.storage import folder as storage

    return storage.load_wide(args.folder), storage.load_model_args(args.folder)


def check_one_model(args: argparse.Namespace) -> None:
    """Raise ``InputError`` unless DIR or ``--model`` is given, and only the latter with arguments."""
    if (args.folder is None) == (args.model is None):
        raise InputError("give either DIR or --model NAME")
    if args.folder and (given_arguments(args) or (args.checkpoint and not getattr(args, "dense", False))):
        beside = ", or --checkpoint with --dense, for the model to compare with" if "dense" in args else ""
        raise InputError(
            f"{args.folder} says how its model is made: --checkpoint and model arguments go with --model NAME{beside}"
        )


def named_model(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Load the model that ``--model`` names; return it, and the arguments to save with what is made of it."""
    from lowrank_vit.models import load_model, model_arguments

    given = given_arguments(args)
    model = load_model(args.model, args.checkpoint, arguments=given)
    return model, model_arguments(args.model, args.checkpoint, given)


def lightning_accelerator(args: argparse.Namespace) -> str:
    """Return Lightning's name for ``--device``. Raises ``InputError`` for a device that is not there."""
    from lowrank_vit.runtime.hardware import resolve_device

    device = resolve_device(args.device)
    return "gpu" if device.type == "cuda" else device.type


def lightning_hardware(args: argparse.Namespace) -> Hardware:
    """Return what Lightning runs on: ``--device``, in the processes that were started."""
    from lowrank_vit.runtime.hardware import Hardware
    from lowrank_vit.runtime.processes import layout

    return Hardware(*layout(), accelerator=lightning_accelerator(args))


def add_data(parser: argparse.ArgumentParser, *, required: bool = True, shared: bool = True) -> None:
    """Add ``--data`` and the options for reading it; ``shared``: several processes can share the work."""
    group = parser.add_argument_group("images and machine")
    group.add_argument(
        "--data",
        required=required,
        metavar="SPEC",
        help="digits | imagefolder:PATH | parquet:PATH | arrow:PATH | hf:NAME | joined:FOLDER,SPEC | ordered:ORDER,SPEC",
    )
    add(group, "--class-order")
    group.add_argument("--batch-size", type=int, default=64, help="images at a time")
    group.add_argument("--workers", type=natural, help="processes that read images (default: by the data)")
    add(group, "--seed", "--device")
    if shared:
        group.add_argument(
            "--devices",
            type=int,
            help="processes that share the work, one GPU each (default: those that torchrun or srun started, or 1)",
        )


def image_data(args: argparse.Namespace, model: nn.Module, **options: Any) -> ImageData:
    """Return the images that ``--data`` names, preprocessed for ``model``. Raises ``InputError`` for a bad specification."""
    from timm.data import resolve_model_data_config

    from lowrank_vit.data import ImageData
    from lowrank_vit.objectives.classification import classes_of

    return ImageData(
        args.data,
        resolve_model_data_config(model),
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        classes=classes_of(model),
        class_order=args.class_order,
        **options,
    )


def add_calibration(parser: argparse.ArgumentParser, *, held_out: bool = True) -> None:
    """Add how many images calibrate, and how many are held out."""
    group = parser.add_argument_group("calibration images")
    group.add_argument(
        "--calibration-samples", type=int, default=1024, help="training images on which statistics are collected"
    )
    if held_out:
        unseen = "other training images, for errors on unseen images; 0: none (default: 256; at most a tenth of them)"
        group.add_argument("--held-out-samples", type=int, help=unseen)
    else:
        parser.set_defaults(held_out_samples=0)
    group.add_argument("--stratified", action="store_true", help="draw the calibration images evenly over the classes")


def shares(text: str) -> dict[str, float]:
    """Read numbers, keyed by their text, which names their folders."""
    try:
        return {part.strip(): float(part) for part in text.split(",")}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {SHARE}") from None


def words(text: str) -> list[str]:
    """Read words."""
    return [part.strip() for part in text.split(",")]


def whole_numbers(text: str) -> list[int]:
    """Read whole numbers."""
    return [int(part) for part in text.split(",")]


def chosen_sites(args: argparse.Namespace) -> dict[str, Any]:
    """Return the option ``sites``, where it is given."""
    return {} if args.sites is None else {"sites": args.sites}


def calibration_data(args: argparse.Namespace, model: nn.Module) -> ImageData:
    """Return the images to calibrate on, and those held out."""
    return image_data(
        args,
        model,
        calibration_samples=args.calibration_samples,
        held_out_samples=args.held_out_samples,
        stratified=args.stratified,
    )


def calibration_images(data: ImageData) -> Images:
    """Return the images to calibrate on, with what identifies them."""
    from lowrank_vit.records.images import Images

    return Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)


def held_out_images(data: ImageData) -> Images | None:
    """Return the held-out images, with what identifies them; None where there are none."""
    from lowrank_vit.records.images import Images

    if not data.holds_out:
        return None
    return Images(data.held_out_dataloader(), data.held_out_fingerprint)

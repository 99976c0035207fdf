"""What ``finetune`` and ``distill`` share: they load a folder, train its model, and save it to another folder."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from lowrank_vit.cli.arguments import add_dense_weights, add_folder, add_out
from lowrank_vit.cli.unfinished import check_new
from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from torch import nn

    from lowrank_vit.records.report import Report


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Add DIR, ``--out``, and the file of the dense weights."""
    add_folder(parser)
    add_dense_weights(parser, "--teacher-checkpoint")
    add_out(parser)
    parser.set_defaults(check=check_new)


def add_logger(parser: argparse.ArgumentParser) -> None:
    """Add where the training's losses go."""
    parser.add_argument(
        "--logger", choices=("csv", "wandb"), help="log the losses to OUT.log, beside --out (default: none)"
    )


def chosen_logger(args: argparse.Namespace) -> Logger | None:
    """Make the logger; W&B runs offline unless ``WANDB_MODE`` says otherwise."""
    from lightning.pytorch.loggers import CSVLogger, WandbLogger

    folder = args.out.with_name(f"{args.out.resolve().name}.log")
    if args.logger is None:
        return None
    if args.logger == "csv":
        return CSVLogger(folder, name=None, version="")
    offline = os.environ.get("WANDB_MODE", "offline") == "offline"
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(project="lowrank-vit", name=args.out.resolve().name, save_dir=folder, offline=offline)


def untrained(args: argparse.Namespace, verb: str) -> tuple[nn.Module, Report]:
    """Load the model in DIR and its report. Raises ``InputError`` where ``--out`` is taken, and for a quantised model."""
    from lowrank_vit.storage import folder as storage

    storage.check_free(args.out)
    model, report = storage.load_wide(args.folder), storage.load_report(args.folder)
    if "quantization" in report:
        raise InputError(f"{args.folder} is quantised: {verb} the folder that it was made from, then quantise that")
    return model, report


def dense_model(args: argparse.Namespace) -> nn.Module:
    """Load the dense model that DIR was made from, with the folder's own arguments, and the weights of ``--checkpoint``."""
    from lowrank_vit.models import load_model, pretrained_classes
    from lowrank_vit.storage import folder as storage

    folder, checkpoint = args.folder, args.checkpoint
    name, config = str(storage.load_report(folder)["model"]), storage.read_config(folder)
    if "factory" in config:  # such a model says all about itself
        return load_model(name, checkpoint)
    arguments = storage.load_model_args(folder)
    if config["num_classes"] != pretrained_classes(config):
        arguments["num_classes"] = config["num_classes"]
    return load_model(name, checkpoint, arguments=arguments)


def save_trained(args: argparse.Namespace, model: nn.Module, report: Report) -> None:
    """Write ``--out``, from one process only."""
    from lowrank_vit.runtime.processes import is_first
    from lowrank_vit.storage import folder as storage

    if is_first():
        storage.save(model.cpu(), args.out, report, model_args=storage.load_model_args(args.folder))

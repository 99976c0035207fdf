"""What is wrong with the arguments of a command, found before anything heavy is imported or loaded."""

import argparse
import math
from pathlib import Path

from lowrank_vit.cli.arguments import SHARE, check_one_model
from lowrank_vit.cli.recipe_file import is_file
from lowrank_vit.data.kinds import check_spec
from lowrank_vit.records.budgets import parse_budgets
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.extras import require
from lowrank_vit.runtime.files import entry_of
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.storage.shipped import shipped_folder

COUNTS = ("batch_size", "calibration_samples", "epochs", "limit")


def check_early(args: argparse.Namespace) -> None:
    """Raise ``InputError`` for what is missing or unknown and for numbers out of range; then by the verb's own ``check``."""
    given = vars(args)
    if given.get("logger") == "wandb":
        require("--logger wandb", "wandb")  # Lightning would notice after everything is loaded
    if "folder" in given and "model" in given:
        check_one_model(args)
    if given.get("folder") is not None:
        check_folder(args.folder)
    file = given.get("checkpoint")
    if file is not None and not entry_of(file)[0].exists():
        raise InputError(f"checkpoint {file} does not exist: pass a file of weights, such as .safetensors or .pth")
    if given.get("data"):
        check_spec(args.data)
    for name in COUNTS:
        count = given.get(name)
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}: at least one is needed")
    reductions = given.get("reduction")
    for share in reductions.values() if isinstance(reductions, dict) else []:
        if not (math.isfinite(share) and 0 < share < 1):
            raise InputError(f"reduction {share:g} is out of reach: it is {SHARE}")
    if isinstance(given.get("budget"), str):
        parse_budgets(args.budget)
    if "check" in given:
        args.check(args)
    recipe = given.get("recipe") or []
    for name in [recipe] if isinstance(recipe, str) else recipe:
        if not is_file(name):  # the last, as recipes need PyTorch
            from lowrank_vit.compression.recipes import RECIPES, RENAMED

            if RENAMED.get(name, name) not in RECIPES:
                raise unknown("recipe", name, RECIPES)


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` unless it is a compressed model's folder, the name of one at the hub, or of one in the package."""
    from lowrank_vit.storage.hub import is_hub_name

    if is_hub_name(folder) or shipped_folder(folder) or (folder / "config.json").exists():
        return
    remedy = "" if folder.exists() else f"; for a dense model, give --model {folder}"
    raise InputError(f"{folder / 'config.json'} is missing: {folder} is not the folder of a compressed model{remedy}")


def check_figure(path: Path) -> None:
    """Raise ``InputError`` for a figure's file of another kind than those that can be drawn."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"cannot draw {path.name!r}: end its name in .png, .pdf or .svg")

"""Kinds of random inputs. Each takes a generator and returns what it gave, and whether that was accepted.

What is refused raises ``InputError`` or, from a command, one line and exit code 2 (``outcome`` asserts it). What is accepted
has to work. Anything else - another exception, a changed file, a result that cannot be used - is a fault.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from experiments.jobs.job import Job
from lowrank_vit import RECIPES, InputError, check_budget, load
from lowrank_vit.data import open_source
from lowrank_vit.models import STANDINS, load_model
from lowrank_vit.records.budgets import Budget, parse_budget, parse_budgets
from lowrank_vit.storage.contents import CONFIG, REPORT, WEIGHTS, sealed
from tests.fuzz.values import changed_bytes, changed_tree, mixed, odd_text, odd_value
from tests.support.hostile import outcome
from tests.support.kinds import KINDS as MODELS

Given = tuple[str, bool]
SHARES: list[Any] = [0.1, 0.4, 0.9, 0, 1, -3, float("nan"), "macs=0.5", "bytes=1kB", {"params": 0.9}, {"x": 1}, {}]
MODEL = next(name for name in STANDINS if name.endswith("_tiny"))


@dataclass
class Field:
    """What the inputs are about: folders of models of several kinds, weights, and a folder to work in."""

    folders: dict[str, Path]
    weights: Path
    work: Path
    images: torch.Tensor

    def __post_init__(self) -> None:
        self.before = {path: path.read_bytes() for folder in self.folders.values() for path in folder.iterdir()}

    def unchanged(self) -> None:
        """Assert that no folder was changed."""
        after = {path: path.read_bytes() for folder in self.folders.values() for path in folder.iterdir()}
        assert after == self.before, "a folder was changed"

    def out(self) -> Path:
        """A place for a result, which is not there."""
        out = self.work / "out"
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)
        return out


def accepted(call: Callable[[], Any]) -> bool:
    """Whether a call goes well; False where it is refused."""
    try:
        call()
    except InputError as error:
        lines = str(error).splitlines()
    else:
        return True
    assert len(lines) == 1, lines
    return False


def one_line(text: str) -> str:
    """A text without line breaks: a message repeats what a user wrote."""
    return " ".join(text.splitlines())


def command(field: Field, random: Random) -> Given:
    """A verb whose arguments are right but for one or two."""
    folder = random.choice(list(field.folders.values()))
    out = field.out()
    model = {"--model": MODEL, "--checkpoint": str(field.weights)}
    images = {"--data": "digits", "--batch-size": "64", "--workers": "0", "--device": "cpu", "--seed": "0"}
    seen = {**images, "--calibration-samples": "8"}
    small = {**model, **seen, "--held-out-samples": "4", "--recipe": "svd", "--reduction": "0.3", "--out": str(out)}
    learnt = {**model, **seen, "--held-out-samples": "4", "--out": str(out)}
    verbs: dict[str, tuple[list[str], dict[str, str]]] = {
        "compress": ([], small),
        "plan": ([], {**model, **seen, "--recipe": "svd"}),
        "sweep": ([], {**model, **seen, "--recipe": "svd", "--reduction": "0.3,0.4", "--limit": "8"}),
        "learn": (["--epochs=1"], {**learnt, "--method": "losparse", "--reduction": "0.3"}),
        "shrink": ([str(folder)], {"--reduction": "0.5", "--device": "cpu", "--out": str(out)}),
        "evaluate": ([str(folder)], {**images, "--split": "validation", "--limit": "8"}),
        "quantize": ([str(folder)], {"--bits": "8", "--method": "nearest", "--out": str(out)}),
        "tokens": ([str(folder)], {"--rule": "tome", "--macs": "0.8", "--out": str(out)}),
        "scan": ([], {**model, **seen, "--layers": "1", "--mode": "inputs", "--skip": "mean", "--out": str(out)}),
        "inspect": ([str(folder)], {}),
        "export": ([str(folder)], {"--format": "torch-export", "--out": str(out)}),
        "benchmark": ([str(folder)], {"--batches": "1", "--modes": "eager", "--device": "cpu", "--seconds": "0.01"}),
        "list": (["recipes"], {}),
    }
    verb = random.choice(list(verbs))
    positional, options = verbs[verb]
    for _ in range(random.randrange(1, 3)):
        name = random.choice([*options, "--model-args", "--sites", "--img-size", "--budget", "--unknown", "DIR"])
        if name == "DIR" and positional:
            positional = [odd_text(random)]
        elif name != "--out":
            options[name] = odd_text(random)
    arguments = [verb, *positional, *(f"{name}={value}" for name, value in options.items())]
    code, _ = outcome(*arguments)
    field.unchanged()
    if code:
        assert not out.exists(), "something was left behind"
    elif (out / CONFIG).is_file():
        works(field, out)
    return " ".join(arguments), code == 0


def works(field: Field, folder: Path) -> None:
    """Assert that a folder's model runs."""
    model = load(folder)
    size = getattr(model, "patch_embed", None)
    shape = getattr(size, "img_size", None) or (8, 8)
    with torch.no_grad():
        assert model(torch.zeros(2, 1, *shape)).isfinite().all(), "the model's outputs are not finite"


def source(field: Field, random: Random) -> Given:
    """A SPEC of images."""
    parts = [
        "digits",
        "imagefolder:",
        "parquet:",
        "arrow:",
        "hf:",
        "tar:",
        ":",
        "/",
        str(field.work),
        "..",
        "~",
        "#",
        "@",
    ]
    text = one_line(mixed(parts, random))
    return text, accepted(lambda: open_source(text).split("train"))


def budget(field: Field, random: Random) -> Given:
    """A budget, or several."""
    text = mixed(["macs", "params", "bytes", "latency", "=", "0.5", "6MiB", "12ms", ",", "1", "G", "-"], random)
    read: Callable[[], Any] = lambda: parse_budget(text)  # noqa: E731
    fine = accepted(read)
    if fine:
        found: Budget = parse_budget(text)
        assert found.limit(1000) >= 0, found
    accepted(lambda: parse_budgets(text))
    return text, fine


def edited(field: Field, random: Random) -> Given:
    """A folder of which one file was edited: refused, whatever the edit was."""
    name, folder = random.choice(list(field.folders.items()))
    copied = field.work / "edited"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(folder, copied)
    file = random.choice([CONFIG, REPORT, WEIGHTS])
    path = copied / file
    if file == WEIGHTS or random.random() < 0.5:
        path.write_bytes(changed_bytes(path.read_bytes(), random))
    else:
        path.write_text(json.dumps(changed_tree(json.loads(path.read_text()), random)))
    same = file == CONFIG and _same_json(path, folder / file)
    fine = accepted(lambda: load(copied))
    code, _ = outcome("inspect", copied)
    assert same or not fine or file == REPORT, f"{file} was edited, and the model is loaded"
    assert same or code == 2, f"{file} was edited, and the folder is shown"
    return f"{name}/{file}", fine


def _same_json(one: Path, other: Path) -> bool:
    try:
        return bool(json.loads(one.read_text()) == json.loads(other.read_text()))
    except ValueError:
        return False


def forged(field: Field, random: Random) -> Given:
    """A folder whose configuration is another one, with checksums that agree: refused, or a model that runs."""
    name, folder = random.choice(list(field.folders.items()))
    copied = field.work / "forged"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(folder, copied)
    config = json.loads((copied / CONFIG).read_text())
    config["lowrank_vit"].pop("sha256")
    config = changed_tree(config, random)
    try:
        text = json.dumps(sealed(config, copied, [WEIGHTS, REPORT]))
    except (KeyError, TypeError, ValueError, AttributeError):
        text = json.dumps(config)
    (copied / CONFIG).write_text(text)
    if fine := accepted(lambda: load(copied)):
        works(field, copied)
    outcome("inspect", copied)
    return f"{name}/{text[:200]}", fine


def architecture(field: Field, random: Random) -> Given:
    """Arguments of a model, of which most are odd: refused, or a model, whose budget is then worked out, or out of reach."""
    names = [
        "img_size",
        "patch_size",
        "embed_dim",
        "num_heads",
        "depth",
        "mlp_ratio",
        "num_classes",
        "init_values",
        "x",
    ]
    arguments = {random.choice(names): odd_value(random)}
    if any(isinstance(value, int | float) and value > 1000 for value in arguments.values()):
        arguments = {}  # it would take all memory
    made: list[Any] = []
    fine = accepted(lambda: made.append(load_model(MODEL, field.weights, arguments=arguments)))
    if fine:
        accepted(lambda: check_budget(made[0], random.choice(list(RECIPES.values())), random.choice(SHARES)))
    return str(arguments), fine


def family(field: Field, random: Random) -> Given:
    """A recipe and a size for a model of any family: they fit, or are refused."""
    kind, recipe, share = random.choice(list(MODELS)), random.choice(list(RECIPES)), random.choice(SHARES)
    return f"{kind} {recipe} {share}", accepted(lambda: check_budget(MODELS[kind].make(), RECIPES[recipe], share))


def job(field: Field, random: Random) -> Given:
    """A job's description, as it stands in plans and results."""
    known = Job(MODEL, True, "digits", "1297+500", "svd", 0.4, 0, changes={"solver": "closed_form"}).as_json()
    tree = changed_tree(known, random)
    return json.dumps(tree), accepted(lambda: Job.from_json(tree))


KINDS: dict[str, tuple[float, Callable[[Field, Random], Given]]] = {  # shares of all inputs
    "commands": (0.2, command),
    "SPEC of images": (0.15, source),
    "budgets": (0.15, budget),
    "edited folders": (0.15, edited),
    "forged configurations": (0.15, forged),
    "arguments of models": (0.05, architecture),
    "families": (0.05, family),
    "jobs": (0.1, job),
}

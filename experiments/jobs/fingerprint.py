"""Fingerprint the code and the recipe behind a job: a result with another fingerprint is stale.

Hashed are the recipe's record, with all hyperparameters, and the syntax trees of the files that the numbers come from: what
``jobs/stages.py`` imports, directly or not, at the top of a file or within a function. Two kinds of files are left out.
Some only name, keep or tell (``NEVER``). Others are one choice of several - methods, families, kinds of data, trainings -
and count, with what they import, for the jobs that choose them. So a comment, a docstring or a new method makes nothing
stale, and a changed constant makes stale what was computed with it. Libraries are not hashed: results record versions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.source import Source
from lowrank_vit import Recipe, get_recipe

JOBS, PIPELINE, STAGE, MODELS = "experiments/jobs", "lowrank_vit/pipeline", "lowrank_vit/stages", "lowrank_vit/models"
START, RUNNERS = f"{JOBS}/stages.py", (f"{JOBS}/", f"{PIPELINE}/api.py", f"{PIPELINE}/tokens.py")
NEVER = (
    "experiments/tracking/",
    "lowrank_vit/__init__.py",
    "lowrank_vit/storage/",
    *(f"{JOBS}/{name}.py" for name in ("fingerprint", "job", "ledger", "results", "source", "task")),
    f"{PIPELINE}/nested/",
    *(f"{PIPELINE}/{name}.py" for name in ("phases", "saving")),
    *(f"{PIPELINE}/{name}.py" for name in ("recipe", "recipes")),  # they name all methods: a recipe's record is hashed
    *(f"lowrank_vit/runtime/{name}.py" for name in ("checkpoints", "errors", "files", "kept_weights", "launch")),
    *(f"lowrank_vit/runtime/{name}.py" for name in ("network", "progress", "provenance", "registry", "serialization")),
)
MEASURES, STATISTICS = "experiments/measures", f"{STAGE}/calibrate/statistics"
LINEAR, GROUPS, FAMILIES = f"{STAGE}/decompose/linear", f"{PIPELINE}/groups", "lowrank_vit/architectures"
DATA, KINDS = "lowrank_vit/data", ("decompose", "allocate", "compensate/kinds", "search", "gradual/methods")
METHODS = tuple(f"{STAGE}/{kind}" for kind in KINDS)
DELTAS, TOKENS = "lowrank_vit/customize/deltas", f"{STAGE}/tokens"
REGISTRIES = (
    *METHODS,
    MEASURES,
    STATISTICS,
    GROUPS,
    FAMILIES,
    DATA,
    DELTAS,
    TOKENS,
)  # what is registered there is a choice
FAMILY_OF = {"deit": "vit"}  # a word in models' names: the family that is called otherwise


def fingerprint(job: Job, source: Source | None = None) -> str:
    """Return 16 hexadecimal digits, the same for all seeds; ``source``: another one than the project's own.

    Raises ``InputError`` for a recipe, or a change to it, that is not known (any more).
    """
    source, recipes = source or present(), _recipes(job, source or present())
    files = {name: source[name].digest for name in files_behind(job, source)}
    content = [files, [_described(recipe) for recipe in recipes]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def present() -> Source:
    """Return the project's source, each file as it is when it is first read."""
    return Source()


def files_behind(job: Job, source: Source) -> set[str]:
    """List the files that the job's numbers come from."""
    recipes, options = _recipes(job, source), _options(job, _recipes(job, source))
    choices = options.keys() | {name for folder in REGISTRIES for name in source.members(folder)}
    chosen = {name for name, taken in options.items() if taken} | _methods(job, recipes, source)

    def follows(importer: str, name: str) -> bool:
        if name in choices:  # a method imports what it builds upon, but what runs the stages imports all choices
            return importer in choices and not importer.startswith(RUNNERS)
        return not name.startswith(NEVER)

    return source.behind({START} | chosen | _named(job, chosen, source), follows)


def _recipes(job: Job, source: Source) -> list[Recipe]:
    """List the job's recipe, and those that its measurement looks up by name."""
    names = {name for file in _measure(job, source) for name in source[file].recipes}
    return [*([] if job.recipe is None else [job.recipe_used()]), *map(get_recipe, sorted(names))]


def _described(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's record without its name, its description and its empty fields."""
    return {
        name: value for name, value in recipe.record().items() if name not in ("name", "about") and value is not None
    }


def _options(job: Job, recipes: Sequence[Recipe]) -> dict[str, bool]:
    """Tell for each optional file that is registered nowhere whether the job uses it."""
    real = job.recipe is not None and job.measure is None
    training = {"finetune": real and job.epochs > 0, "distill": job.distill_epochs > 0}
    correct = {
        "measured_curves": any(recipe.sense is not None for recipe in recipes),
        "measured_losses": any(recipe.measured is not None for recipe in recipes),
        "output_refit": any(recipe.refit is not None for recipe in recipes),
    }
    learns = job.learns_tokens
    jobs = {"training": any(training.values()) or (learns and job.gradual_epochs > 0), "quantize": job.bits is not None}
    jobs |= {"measure": job.measure is not None, "memory": job.data == "digits"}
    jobs |= {"tokens": bool(job.tokens), "speed": job.timed}
    standin = dict.fromkeys(("standins", "standin_cache", "standin_training"), job.standin)
    gates = any(recipe.gradual is not None for recipe in recipes)
    gradual = dict.fromkeys(("__init__", "expected", "gates", "learning", "training"), gates)
    folders = {JOBS: jobs, f"{STAGE}/training": training, f"{STAGE}/correct": correct, f"{STAGE}/gradual": gradual}
    folders |= {PIPELINE: {"api": real, "learning": gates, "tokens": bool(job.tokens)}}
    folders |= {f"{STAGE}/compensate": {"minibatch": any(recipe.solver == "minibatch" for recipe in recipes)}}
    folders |= {MODELS: standin | {"weights": not job.standin}}
    at_bytes = job.measure is not None and job.measure.startswith("bytes_")  # these round, and name what by
    rounding = {"nearest": job.bits is not None, "gptq": job.quantizer == "gptq", "inputs": job.quantizer is not None}
    folders |= {f"{STAGE}/quantize": {name: taken or at_bytes for name, taken in rounding.items()}}
    folders |= {"lowrank_vit/storage": {"folder": job.bits is not None}}  # whose files' sizes are measured
    folders |= {
        "lowrank_vit/records/costs": {name: bool(recipes) and job.cost == name for name in ("parameters", "macs")}
    }
    folders |= {f"{STAGE}/tokens": dict.fromkeys(("learning", "training"), learns)}
    folders |= {f"{STAGE}/evaluate": {"speed": job.timed}}
    folders |= {f"{PIPELINE}/scales": {"counted": bool(recipes), "latency": False}}  # budgets are in parameters
    return {f"{folder}/{name}.py": taken for folder, files in folders.items() for name, taken in files.items()}


def _methods(job: Job, recipes: Sequence[Recipe], source: Source) -> set[str]:
    """List the files of the recipes' methods and kinds of units, and of the measurement."""
    methods = [recipe.method(slot) for recipe in recipes for slot in recipe.record()["hyperparameters"]]
    files = {home for method in methods if (home := source.home(type(method).__module__)) is not None}
    units = {kind for recipe in recipes for kind in recipe.units}
    return files | source.members(GROUPS, units.__contains__) | _measure(job, source)


def _measure(job: Job, source: Source) -> set[str]:
    return source.members(MEASURES, lambda name: name == job.measure)


def _named(job: Job, chosen: set[str], source: Source) -> set[str]:
    """List the registered files that are found by a name: in what is chosen, in the model's name, in the SPEC of the data."""
    words = {word for name in chosen for word in source[name].strings}
    measured = {word for name in _measure(job, source) for word in source[name].strings}
    return (
        source.members(STATISTICS, lambda name: not words.isdisjoint(_names(name)))
        | source.members(LINEAR, measured.__contains__)
        | source.members(FAMILIES, _family(job.model, source))
        | source.members(DELTAS, (measured | {job.changes.get("method")}).__contains__)
        | source.members(TOKENS, lambda name: name == job.tokens.get("rule"))
        | source.members(DATA, lambda name: name == job.data.partition(":")[0])
    )


def _names(statistic: str) -> Iterator[str]:
    """List the names that methods may give a statistic: its own, and the one without a side, for the smaller side."""
    yield statistic
    yield re.sub(r"(in|out)put_second$", "second", statistic)


def _family(model: str, source: Source) -> Any:
    """Choose families by the words in a model's name; where none is known there, any of them may be the model's."""
    words = {FAMILY_OF.get(word, word) for word in re.findall("[a-z]+", model)}
    known = {name for file in source.members(FAMILIES) for name in source[file].registered} & words
    return known.__contains__ if known else lambda name: True

"""Tell what makes a job's numbers: its recipe, and the revisions of the methods and parts of the engine that it uses.

A result, or a published row, is older where one of these has changed since. Messages, names and files make nothing older.
"""

import hashlib
import json
import operator
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.measure import MEASURES
from lowrank_vit import Recipe, recipe_of, revisions_of
from lowrank_vit.runtime.errors import InputError

FAMILIES = {"deit": "vit", "vit": "vit", "swin": "swin", "vmamba": "vmamba"}  # by a word in a model's name
SCAN_UNITS = ("unit.scan", "scan.leave_out")  # of ``best``, for models that scan
Made = dict[str, Any]


def made_by(job: Job) -> Made:
    """Return what makes the job's numbers today: the ``recipe``'s record, or None, and the ``revisions`` by part.

    It is the same for all seeds. Raises ``InputError`` for a recipe, or a change to it, that is not known (any more).
    """
    measure = None if job.measure is None else MEASURES.get(job.measure)
    recipe = job.recipe_used() if job.recipe else measure.recipe() if measure and measure.recipe else None
    made = revisions_of({*_parts(job, recipe)}, recipe)
    if measure is not None:
        made |= {**revisions_of(measure.parts), **measure.methods(job), f"measure.{job.measure}": measure.revision}
    used = {part: made[part] for part in sorted(made) if "vmamba" in job.model or part not in SCAN_UNITS}
    return {"recipe": None if recipe is None else recipe.record(), "revisions": used}


def is_stale(result: Mapping[str, Any]) -> bool:
    """Tell whether another revision or recipe made a result, or a published row, than would make it now."""
    if "revisions" not in result:  # of a time when nobody kept them
        return True
    try:
        return not same_makers(result, made_by(Job.from_json(result["job"])))
    except InputError:  # the recipe, a method, or a field of the job is gone
        return True


def same_makers(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two results, or what ``made_by`` returns, have the same recipe and revisions.

    Every part began with revision 1: a record from before a part had one does not differ for that. Fields of a recipe
    that came later than its record count by their defaults. Raises ``InputError`` for a recipe that cannot be made now.
    """
    parts = one["revisions"].keys() | other["revisions"].keys()
    revisions = ([made["revisions"].get(part, 1) for part in parts] for made in (one, other))
    return operator.eq(*revisions) and _plain(one["recipe"]) == _plain(other["recipe"])


def digest(made: Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits of what makes a job's numbers, or of a result that holds it."""
    content = [made["revisions"], _plain(made["recipe"])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _parts(job: Job, recipe: Recipe | None) -> Iterator[str]:
    """List the parts of the engine that the job uses, and methods beside its recipe."""
    yield from ("images", "evaluate")
    if job.standin:
        yield "standins"
    if recipe is not None:
        yield from ("calibrate", "plan", "cut")
        if recipe.compensation is not None:
            yield "compensate"
    if job.trained_epochs or job.distill_epochs or job.learns_tokens or (recipe is not None and recipe.gradual):
        yield "train"
    if job.timed:
        yield "time"
    words = re.findall("[a-z]+", job.model)
    yield from {f"family.{family}" for word, family in FAMILIES.items() if word in words}
    if job.bits is not None:
        yield from ("quantise", f"quantizer.{job.quantizer or 'nearest'}")
    if job.tokens:
        yield f"tokens.{job.tokens['rule']}"


def _plain(record: Mapping[str, Any] | None) -> Any:
    return None if record is None else _completed(json.dumps(record, sort_keys=True))


@cache
def _completed(record: str) -> dict[str, Any]:
    """Complete a recipe's record by today's defaults; its name and description compute nothing."""
    completed = recipe_of(json.loads(record)).record()
    return {name: value for name, value in completed.items() if name not in ("name", "about") and value is not None}

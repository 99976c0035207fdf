"""A recipe as a file: ``compress --recipe small/report.json`` repeats what made a folder, and so does a TOML.

A report holds its recipe field by field, and the words of its command. A TOML has options of ``compress`` by their names, and
may have a table ``[recipe_fields]`` as reports have it. Words of the command at hand go before those of the file.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.runtime.errors import InputError, reason_of

if TYPE_CHECKING:
    from lowrank_vit.compression.recipe import Recipe

SUFFIXES = (".json", ".toml")
VERB, FIELDS = "compress", "recipe_fields"
SIZES = ("--reduction", "--budget", "--max-loss")
OWN = ("--recipe", "--out", "--resume", "--devices", "--workers")  # are not repeated


def is_file(recipe: str) -> bool:
    """Tell whether a recipe is given as a file."""
    return recipe.endswith(SUFFIXES)


def expanded(given: Sequence[str]) -> list[str]:
    """Return the words of a command with those of its recipe's file before its own.

    Raises ``InputError`` for a file that is not there or cannot be read.
    """
    words = list(given)
    recipe = next((value for name, value in options(words) if name == "--recipe"), None)
    if VERB not in words or recipe is None or not is_file(recipe):
        return words
    start = words.index(VERB) + 1
    sized = any(name in SIZES for name, _ in options(words))
    told: list[str] = []
    for name, value in options(_told(recipe, read(recipe))):
        if name not in OWN and not (sized and name in SIZES):
            told += [name] if value is None else [f"{name}={value}"]
    return [*words[:start], *told, *words[start:]]


def options(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options among words, with their values; None for a switch."""
    for index, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word.partition("=")
        following = words[index + 1] if index + 1 < len(words) else "--"
        yield name, value if equals else None if following.startswith("--") else following


def read(path: str) -> Mapping[str, Any]:
    """Read a report, or a TOML. Raises ``InputError`` where it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(
            f"--recipe {path} does not exist: give a report.json, a TOML, or a name of `list recipes`"
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(f"--recipe {path} cannot be read: {reason_of(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"--recipe {path} holds no fields: give a report.json, or a TOML of options")
    return found


def recipe_from(text: str) -> "Recipe":
    """Return the recipe of a name, or of a file. Raises ``InputError`` for an unknown name or field."""
    from lowrank_vit.compression.recipe import recipe_of
    from lowrank_vit.compression.recipes import get_recipe

    if not is_file(text):
        return get_recipe(text)
    found = read(text)
    if not found.get(FIELDS):
        if not found.get("recipe"):
            raise InputError(f'--recipe {text} names no recipe: give one, as in recipe = "best"')
        return get_recipe(str(found["recipe"]))
    try:
        return recipe_of(found[FIELDS])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--recipe {text}: {FIELDS} is not what a report has ({error})") from None


def _told(path: str, found: Mapping[str, Any]) -> list[str]:
    """Return the words of a file: a report's command, or a TOML's options."""
    if path.endswith(".toml"):
        return [word for name, value in found.items() if name != FIELDS for word in _flags(name, value)]
    made = found.get("provenance", {})
    words = made.get("arguments") or str(made.get("command", "")).split()
    if VERB not in words:
        return []  # made in Python: its recipe is known, and nothing else
    words = [str(word) for word in words[words.index(VERB) + 1 :]]
    size = str(found.get("budget", {}).get("asked", ""))
    several = any(
        name in SIZES and "," in str(value) and "=" not in str(value).partition(",")[2]
        for name, value in options(words)
    )
    if several and size:
        kept = [f"{name}={value}" if value is not None else name for name, value in options(words) if name not in SIZES]
        return [*kept, f"--reduction={size.split()[1]}" if size.startswith("reduction ") else f"--budget={size}"]
    return words


def _flags(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, dict):
        return [f"{flag}={key}={json.dumps(each)}" for key, each in value.items()]
    return [f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}"]

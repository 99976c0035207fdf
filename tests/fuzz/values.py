"""Odd values, and changes to trees of JSON and to bytes, by a random generator that a seed begins."""

from __future__ import annotations

import copy
import string
from random import Random
from typing import Any

from tests.support.hostile import places

NUMBERS = ["0", "-1", "1", "2.5", "1e308", "nan", "inf", "-0.0", str(2**70), "0.3", "1e-9", "007", "0x10", "\u0661"]
TEXTS = [
    "",
    " ",
    "☃",
    "../..",
    "/dev/null",
    "[/b]",
    "a" * 300,
    "x\ny",
    "%s",
    "{}",
    "hf-hub:x/y",
    "None",
    "-",
    "--",
    "*",
    "(",
]
SCALARS = [None, True, False, 0, -1, 3, 300, 2**70, 1e308, float("nan"), float("inf"), *TEXTS]


def odd_text(random: Random) -> str:
    """A number, a text, or a few random characters."""
    if random.random() < 0.2:
        return "".join(random.choices(string.printable.strip() + "é☃", k=random.randrange(12)))
    return random.choice(NUMBERS + TEXTS)


def odd_value(random: Random) -> Any:
    """A value of JSON: mostly a scalar, sometimes a list or an object of some."""
    kind = random.random()
    if kind < 0.7:
        return random.choice(SCALARS)
    few = [random.choice(SCALARS) for _ in range(random.randrange(4))]
    return few if kind < 0.85 else dict(zip("abc", few, strict=False))


def changed_tree(tree: Any, random: Random) -> Any:
    """The tree with one entry, anywhere, taken away, or something else."""
    tree = copy.deepcopy(tree)
    *path, last = random.choice(places(tree))
    parent = tree
    for key in path:
        parent = parent[key]
    if random.random() < 0.3:
        del parent[last]
    else:
        parent[last] = odd_value(random)
    return tree


def changed_bytes(content: bytes, random: Random) -> bytes:
    """The bytes with one changed, a stretch left out, or a tail cut off."""
    at = random.randrange(len(content))
    kind = random.randrange(3)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ random.randrange(1, 256)]) + content[at + 1 :]
    return content[:at] + (content[at + random.randrange(1, 64) :] if kind == 1 else b"")


def mixed(parts: list[str], random: Random) -> str:
    """Some of the parts in a row, with an odd text in between now and then."""
    chosen = [random.choice(parts) for _ in range(random.randrange(1, 4))]
    return "".join(text if random.random() < 0.7 else odd_text(random) for text in chosen)

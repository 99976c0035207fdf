"""What hostile tests share: a command in this process, changes at random to JSON, markup in its texts, a full disk."""

import contextlib
import copy
import errno
import io
import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lowrank_vit.cli import main

QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 300),
    st.sampled_from([2**70, -(2**70), 1e308, float("nan"), float("inf"), "", "../../x", "[/b]", "hf-hub:x/y", "☃"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2))


def outcome(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and, if that is not 0, the one line that says why."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
    if code == 0:
        return 0, ""
    lines = err.getvalue().splitlines()
    assert code == 2, (code, lines)
    assert [line.startswith("error: ") for line in lines].count(True) == 1, lines
    assert lines[-1].startswith("error: "), lines
    assert "Traceback" not in err.getvalue()
    return 2, lines[-1]


def refused(*arguments: str | Path) -> str:
    """The line that a command is refused with."""
    code, line = outcome(*arguments)
    assert code == 2
    return line


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a tree of JSON: keys and indices from the root."""
    found = [path] if path else []
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found += places(tree[key], (*path, key))
    return found


def changed(tree: Any, draw: Any) -> Any:
    """The tree with one entry, anywhere, taken away or something else."""
    tree = copy.deepcopy(tree)
    *path, last = draw(st.sampled_from(places(tree)))
    parent = tree
    for key in path:
        parent = parent[key]
    if draw(st.booleans()):
        parent[last] = draw(VALUES)
    else:
        del parent[last]
    return tree


def poisoned(value: Any, markup: str) -> Any:
    """The same value with ``markup`` behind every text in it; the keys of its entries stay."""
    if isinstance(value, dict):
        return {key: poisoned(part, markup) for key, part in value.items()}
    if isinstance(value, list):
        return [poisoned(part, markup) for part in value]
    return value + markup if isinstance(value, str) else value


def full_disk(*arguments: object) -> None:
    """In place of whatever writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

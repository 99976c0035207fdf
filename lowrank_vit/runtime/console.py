"""Where text for people goes: the terminal, at its width, or a pipe or a file, where nothing is cut."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

WIDE = 1000  # columns: more than any line has


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Make a console on the standard output or the error stream."""
    return Console(quiet=quiet, **console_options(stderr=stderr))


def console_options(*, stderr: bool = False) -> dict[str, Any]:
    """Return the options of a console that cuts nothing.

    Rich takes a stream that is no terminal for one of 80 columns, and cuts tables to it; here it has ``COLUMNS``, or as
    many as a line needs.
    """
    console = Console(stderr=stderr)
    known = console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ
    return {"stderr": stderr, "width": None if known else WIDE}

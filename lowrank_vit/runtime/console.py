"""Where text for people goes: the terminal, at its width, or a pipe or a file, where nothing is cut."""

from __future__ import annotations

import os

from rich.console import Console

WIDE = 1000  # columns: more than any line has


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Make a console on the standard output or the error stream.

    Rich takes a stream that is no terminal for one of 80 columns, and cuts tables to it; here it has ``COLUMNS``, or as
    many as a line needs.
    """
    console = Console(stderr=stderr, quiet=quiet)
    if not (console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ):
        console.width = WIDE
    return console

"""Parsers of the command line: defaults and examples in the help, mistakes in one line."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from lowrank_vit.cli.arguments import natural

COUNTS = (int, natural)


class DefaultsFormatter(argparse.HelpFormatter):
    """Show every default that is not nothing, and short names for values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        nothing = default is None or default is False or default in ([], argparse.SUPPRESS)
        shown = action.option_strings and not nothing
        return f"{text} (default: %(default)s)" if text and shown and "(default" not in text else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        """Name a whole number N, anything else by the last word of its option."""
        return "N" if action.type in COUNTS else action.dest.rpartition("_")[2].upper()


class OneLineParser(argparse.ArgumentParser):
    """Report a mistake in one line, like all other errors, and show defaults."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": DefaultsFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with code 2."""
        self.exit(fail(f"{message}; see {self.prog} --help"))


class Verbs:
    """Add verbs; the help of each begins with its line in the overview, and ends with an example."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.added = parser.add_subparsers(required=True, metavar="VERB")

    def add_parser(self, name: str, *, help: str, example: str) -> argparse.ArgumentParser:
        """Add a verb; ``example``: what may follow its name."""
        description = f"{help[0].upper()}{help[1:]}."
        parser = self.added.add_parser(name, help=help, description=description)
        parser.epilog = f"example: {parser.prog} {example}"
        return parser


def fail(message: str) -> int:
    """Print a mistake on the error stream; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2

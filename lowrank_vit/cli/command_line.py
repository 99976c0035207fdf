"""The commands' entry point; each verb is a file in ``verbs`` and imports what it needs when it runs.

Parsers show defaults and examples in the help, and report mistakes in one line.
"""

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from lowrank_vit import __version__
from lowrank_vit.cli.arguments import natural
from lowrank_vit.cli.early import check_early
from lowrank_vit.cli.recipe_file import expanded
from lowrank_vit.cli.verbs import shrink
from lowrank_vit.runtime.errors import InputError, disk_failed, in_shell
from lowrank_vit.runtime.extras import not_installed

COUNTS = (int, natural)
VERBS = (  # in the order of the help
    "compress", "plan", "sweep", "shrink", "classify", "evaluate", "learn", "finetune", "distill", "quantize", "tokens",
    "scan", "customize", "inspect", "export", "benchmark", "push", "list",
)  # fmt: skip


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
        self.exit(fail(f"{message}; see {self.prog} --help"))


class ShellFormatter(logging.Formatter):
    """Write arguments in what is logged as the ``options`` of a command."""

    def __init__(self, options: Collection[str]) -> None:
        super().__init__()
        self.options = options

    def format(self, record: logging.LogRecord) -> str:
        return in_shell(super().format(record), self.options)


def fail(message: str, options: Collection[str] = ()) -> int:
    """Print a mistake on the error stream, with arguments as ``options``; returns the exit code."""
    print(f"error: {in_shell(' '.join(message.split()), options)}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all verbs; the help of each begins with its line in the overview, and ends with an example."""
    parser = OneLineParser(prog="lowrank-vit", description="Make a vision transformer smaller.")
    parser.add_argument("--version", action="version", version=f"lowrank-vit {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more on the error stream")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name in VERBS:
        verb = importlib.import_module(f"lowrank_vit.cli.verbs.{name}")
        own = verbs.add_parser(name, help=verb.HELP, description=f"{verb.HELP[0].upper()}{verb.HELP[1:]}.")
        own.epilog = f"example: {own.prog} {verb.EXAMPLE}"
        verb.add_arguments(own)
        own.set_defaults(run=verb.run)
        if hasattr(verb, "check"):
            own.set_defaults(check=verb.check)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is one line on the error stream and exit code 2."""
    parser, given = make_parser(), sys.argv[1:] if arguments is None else list(arguments)
    empty = next((text for text in given if text.startswith("--") and text.endswith("=--")), None)
    if empty is not None:  # argparse would make an empty list of it
        parser.error(f"argument {empty.partition('=')[0]}: a value is expected, not '--'")
    try:
        given = expanded(given)
        args = parser.parse_args(given)
    except InputError as error:
        sys.exit(fail(str(error)))
    if arguments is None:
        sys.argv[1:] = given  # which a report records: with the words of its recipe's file
    options = vars(args).keys()
    _log(options, logging.INFO if args.verbose else logging.WARNING)
    try:
        check_early(args)
        if getattr(args, "folder", None):
            from lowrank_vit.storage.hub import local_folder  # importing the network modules takes a while

            args.folder = local_folder(args.folder, nested=args.run is shrink.run)
        _run(args)
    except InputError as error:
        sys.exit(fail(str(error), options))
    except ModuleNotFoundError as error:
        line = not_installed(error)
        if line is None:
            raise
        sys.exit(fail(str(line)))
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:
        remedy = "free some space, then run again; finished work is kept"
        remedy = remedy if disk_failed(error) else "check the path, its permissions and the space on the disk"
        sys.exit(fail(f"{error}: {remedy}"))
    except KeyboardInterrupt:
        print("interrupted: finished work is kept; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _log(options: Collection[str], level: int) -> None:
    """Write on the error stream what is logged and warned of, without the line of code that it came from."""
    handler = logging.StreamHandler()
    handler.setFormatter(ShellFormatter(options))
    logging.basicConfig(level=level, handlers=[handler])

    def one_line(message: Warning | str, *_: object, **__: object) -> str:
        return f"warning: {in_shell(' '.join(str(message).split()), options)}\n"

    warnings.formatwarning = one_line


def _run(args: argparse.Namespace) -> None:
    """Run the verb in the processes that ``--devices`` asks for."""
    if "devices" not in args:
        args.run(args)
        return
    from lowrank_vit.cli.arguments import lightning_accelerator
    from lowrank_vit.runtime.launch import launch

    launch(args.run, args, devices=args.devices, accelerator=lightning_accelerator(args))

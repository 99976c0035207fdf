"""The commands' entry point; each verb is a file in ``verbs`` and imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from lowrank_vit import __version__
from lowrank_vit.cli.command_line import OneLineParser, Verbs, fail
from lowrank_vit.cli.early import check_early
from lowrank_vit.cli.recipe_file import expanded
from lowrank_vit.cli.verbs import (
    benchmark,
    classify,
    compress,
    customize,
    distill,
    evaluate,
    export,
    finetune,
    inspect,
    learn,
    plan,
    push,
    quantize,
    scan,
    shrink,
    sweep,
    tokens,
)  # fmt: skip
from lowrank_vit.cli.verbs import list as list_names
from lowrank_vit.runtime.errors import InputError, disk_failed
from lowrank_vit.runtime.extras import not_installed

VERBS = (
    compress, plan, sweep, shrink, classify, evaluate, learn, finetune, distill, quantize, tokens, scan, customize, inspect,
    export, benchmark, push, list_names,
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all verbs."""
    parser = OneLineParser(prog="lowrank-vit", description="Make a vision transformer smaller.")
    parser.add_argument("--version", action="version", version=f"lowrank-vit {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more on the error stream")
    verbs = Verbs(parser)
    for verb in VERBS:
        verb.add_parser(verbs)
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
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    warnings.formatwarning = _one_line
    try:
        check_early(args)
        if getattr(args, "folder", None):
            from lowrank_vit.storage.hub import local_folder  # importing the network modules takes a while

            args.folder = local_folder(args.folder, nested=args.run is shrink.run)
        _run(args)
    except InputError as error:
        sys.exit(fail(str(error)))
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


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """Format a warning without the line of code that it came from."""
    return f"warning: {' '.join(str(message).split())}\n"


def _run(args: argparse.Namespace) -> None:
    """Run the verb in the processes that ``--devices`` asks for."""
    if "devices" not in args:
        args.run(args)
        return
    from lowrank_vit.cli.arguments import lightning_accelerator
    from lowrank_vit.runtime.launch import launch

    launch(args.run, args, devices=args.devices, accelerator=lightning_accelerator(args))

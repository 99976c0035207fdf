"""The commands' entry point; each verb is a file in ``commands`` and imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from lowrank_vit.commands import (
    benchmark,
    compress,
    distill,
    evaluate,
    export,
    finetune,
    inspect,
    push,
    quantize,
    shrink,
)  # fmt: skip
from lowrank_vit.commands import list as list_names
from lowrank_vit.errors import InputError, disk_failed

VERBS = (
    compress, shrink, evaluate, finetune, distill, quantize, inspect, export, benchmark, push, list_names,
)  # fmt: skip


class OneLineParser(argparse.ArgumentParser):
    """A parser that says a mistake in one line, as every other mistake is said."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(_fail(f"{message}; see {self.prog} --help"))


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = OneLineParser(prog="lowrank_vit", description="Smaller vision transformers by low rank.")
    parser.add_argument("--verbose", action="store_true", help="say more on the error stream")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is one line on the error stream and exit code 2."""
    args = make_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    try:
        if getattr(args, "folder", None):
            from lowrank_vit.hub import local_folder  # the network's modules take a while

            args.folder = local_folder(args.folder, nested=args.run is shrink.run)
        _run(args)
    except InputError as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:
        remedy = "free some space, then run again; what was finished before is kept"
        remedy = remedy if disk_failed(error) else "check the path, its permissions and the space on the disk"
        sys.exit(_fail(f"{error}: {remedy}"))
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept whole, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def _run(args: argparse.Namespace) -> None:
    """The verb, in as many processes as it is to have."""
    if "devices" not in args:
        args.run(args)
        return
    from lowrank_vit.commands.arguments import lightning_accelerator
    from lowrank_vit.launch import launch

    launch(args.run, args, devices=args.devices, accelerator=lightning_accelerator(args))


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2

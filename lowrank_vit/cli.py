"""The commands' entry point; each verb is a file in ``commands`` and imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from lowrank_vit.commands import compress, distill, evaluate, finetune, inspect, quantize
from lowrank_vit.commands import list as list_names
from lowrank_vit.errors import InputError

VERBS = (compress, evaluate, finetune, distill, quantize, inspect, list_names)


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
        args.run(args)
    except InputError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:  # of a path or a disk that nobody foresaw
        sys.exit(_fail(f"{error}: check the path, its permissions and the space on the disk"))


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2

"""``python -m experiments``: list the tables, run one, report on it. Each verb imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.workspace import add_options
from lowrank_vit.errors import InputError, disk_failed

RESULTS = Path("results")
LAUNCHERS = ("local", "slurm")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def _epochs(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of epochs")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds such as 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE such as partition=gpu")
    return name.replace("-", "_"), value


def _add_options(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "targets",
        nargs="+",
        metavar="TABLE[/ROW]",
        help="all, a table, a row of it, a group of rows such as table2/deit_b, or a pattern such as 'table2/*/svd-40'",
    )
    run.add_argument(
        "--data",
        default="digits",
        metavar="SPEC",
        help="digits (the stand-ins) | imagefolder:PATH | parquet:PATH | ...",
    )
    run.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of NAME.safetensors (default: timm's hub)")
    run.add_argument(
        "--seeds", type=_seeds, metavar="0,1,2", help="default: 0,1,2 for the stand-ins, 0 for real models"
    )
    run.add_argument("--epochs", type=_epochs, help="of fine-tuning (default: 20; 0 leaves it out)")
    run.add_argument("--steps", type=_count, help="of Z's gradient solvers (default: the recipe's)")
    run.add_argument("--solver", choices=("closed_form", "moments", "minibatch"), help="of Z (default: the recipe's)")
    run.add_argument("--limit", type=_count, help="evaluate this many images, drawn by the seed")
    run.add_argument("--calibration-samples", type=_count, default=1024)
    run.add_argument("--batch-size", type=_count, default=64, help="of one device (default: 64)")
    run.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    run.add_argument(
        "--workers", type=_count, help="jobs side by side (default: a core each for the stand-ins, else 1)"
    )
    run.add_argument("--devices", type=_count, help="of each job (default: as torchrun or srun started, or 1)")
    run.add_argument("--num-nodes", type=_count, help="of each job (likewise)")
    run.add_argument(
        "--launcher", choices=LAUNCHERS, help="hand each job to submitit: SLURM's queue, or processes of this machine"
    )
    run.add_argument(
        "--slurm", type=_option, action="append", default=[], metavar="KEY=VALUE", help="such as partition=gpu time=600"
    )
    run.add_argument("--strategy", default="auto", help="Lightning's")
    run.add_argument("--precision", help="Lightning's, for fine-tuning (default: bf16-mixed where a GPU has it)")
    run.add_argument(
        "--accelerator", default="auto", help="Lightning's (default: the CPU for the stand-ins, else auto)"
    )
    run.add_argument("--rerun-stale", action="store_true", help="run again what another version of the package made")
    run.add_argument("--no-wandb", action="store_true", help="keep no Weights & Biases runs (they are offline anyway)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="experiments", description="The paper's tables: list, run, report.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="the tables, or the rows of one")
    listing.add_argument("table", nargs="?", metavar="TABLE")
    listing.set_defaults(run=list_tables)
    run = verbs.add_parser("run", help="run what is not finished yet, then report")
    _add_options(run)
    run.set_defaults(run=run_table)
    report = verbs.add_parser("report", help="render the last run again")
    report.add_argument("tables", nargs="+", metavar="TABLE", help="or all")
    report.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    report.set_defaults(run=report_table)
    publish = verbs.add_parser("publish", help="keep results in the repository, and render them in the README")
    publish.add_argument("tables", nargs="*", metavar="TABLE", help="or all; none: only render the README again")
    publish.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    publish.set_defaults(run=publish_tables)
    workspace = verbs.add_parser(
        "workspace", help="describe, or publish, the Weights & Biases workspace of all methods"
    )
    add_options(workspace)
    workspace.set_defaults(run=publish_workspace)
    return parser


def publish_workspace(args: argparse.Namespace) -> int:
    """``workspace``."""
    from experiments.workspace import run

    return run(args)


def list_tables(args: argparse.Namespace) -> int:
    """``list``."""
    from experiments.registry import Row, find, tables

    if args.table is None:
        for table in tables().values():
            print(f"{table.name}  {table.title}: {len(table.runnable)} rows to run, {len(table.rows)} in all")
        return 0
    table, row = find(args.table)
    print(f"{table.about.strip()}\n")
    chosen = {item.id for item in table.select(row)} if row else {item.id for item in table.rows}
    width = max(len(item.id) for item in table.rows)
    for item in table.rows:
        if item.id in chosen:
            reported = item.top1_reported if isinstance(item, Row) else item.top1
            about = "" if isinstance(item, Row) else f"reported only ({item.protocol})"
            model = item.model if isinstance(item, Row) else ""
            print(f"{item.id:{width}}  {'' if reported is None else f'{reported:.2f}':>6}  {model or about}".rstrip())
    return 0


def report_table(args: argparse.Namespace) -> int:
    """``report``."""
    from experiments.registry import find_all
    from experiments.report import write_report
    from experiments.terminal import show

    for table, _ in find_all(args.tables):
        show(write_report(args.results, table))
    return 0


def publish_tables(args: argparse.Namespace) -> int:
    """``publish``."""
    from experiments.publish import run
    from experiments.registry import find_all

    return run(args.results, [table for table, _ in find_all(args.tables)])


def run_table(args: argparse.Namespace) -> int:
    """``run``."""
    from experiments.campaign import run

    return run(args)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb. A user's mistake is one line on the error stream and exit code 2; a failed job is exit code 1."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(args.run(args))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not disk_failed(error):
            raise
        print(f"error: {error}: free some space, then run again; what was finished before is kept", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(f"interrupted: {stopped or 'what is finished is kept; the same command continues'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
